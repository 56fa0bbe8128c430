from .checkpoints import Checkpoint as Checkpoint, HistoryRow as HistoryRow
from .run import (
    ReadOnlyRun as ReadOnlyRun,
    Run as Run,
    create_run as create_run,
    open_run as open_run,
    refuse_run_folder as refuse_run_folder,
    refuse_taken as refuse_taken,
)

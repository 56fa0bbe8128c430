from .check import CheckResult as CheckResult, check_config as check_config, describe_pair as describe_pair
from .dry_run import DryRun as DryRun
from .experiment import Result as Result, resume_run as resume_run, train_config as train_config
from .run_training import run_training as run_training, train_on_this_machine as train_on_this_machine
from .search_space import check_search_space as check_search_space, read_search_space as read_search_space
from .sweep import run_sweep as run_sweep
from .sweep_results import SweepResult as SweepResult

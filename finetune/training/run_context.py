"""What every stage of a run needs: the run, its config and images, the clock, the terminal, and who may stop it.

with context.stage("features") as update:      timed, shown, and interrupted when somebody asks to stop
    update(done, total)
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from finetune.config import Config
from finetune.data import Dataset
from finetune.evaluation import display_path
from finetune.runs import Run
from finetune.training.distributed.group import ProcessGroup
from finetune.training.run_journal import Stopwatch
from finetune.utils import ProgressCallback, Stop, Terminal, shell_command

STAGE_TITLES = {
    "building": "Building the network",
    "features": "Features",
    "trials": "Trial steps",
    "baseline": "Baseline",
    "saving": "Saving",
    "evaluation": "Testing",
    "report": "Report",
}


@dataclass(frozen=True)
class RunContext:
    """What every stage of a run needs."""

    run: Run
    config: Config
    dataset: Dataset
    watch: Stopwatch
    stop: Stop
    terminal: Terminal
    group: ProcessGroup

    @contextmanager
    def stage(self, name: str) -> Iterator[ProgressCallback]:
        """Times a stage and shows its progress; `update(done, total)` also raises Stopped if somebody asked to stop.

        A phase, which has no title here, is shown by its callback.
        """
        title = STAGE_TITLES.get(name)
        with self.watch.time(name), self.terminal.stage(title) if title else nullcontext(_ignore) as update:
            yield stoppable(update, self.stop, how_to_resume(self.run))

    def check_stop(self) -> None:
        """Raises Stopped between two steps, when somebody asked one of the processes to stop and all know of it."""
        if self.group.stopping:
            self.stop.requested = self.stop.requested or "SIGTERM"
            self.group.all_leave = True
        if self.group.stopping or self.group.world_size == 1:
            self.stop.check(how_to_resume(self.run))


def _ignore(done: int, total: int | None) -> None: ...


def stoppable(update: ProgressCallback, stop: Stop, hint: str = "") -> ProgressCallback:
    """`update` that raises Stopped, with `hint`, once somebody asked to stop."""

    def update_and_check(done: int, total: int | None) -> None:
        update(done, total)
        stop.check(hint)

    return update_and_check


def how_to_resume(run: Run) -> str:
    command = shell_command("finetune", "train", "--resume", display_path(run.path))
    return f"Everything up to here is saved. Go on with: {command}"

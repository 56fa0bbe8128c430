"""`finetune train`: a new run or a resumed one, alone or as one of several processes that train together.

    code = run_training("configs/flowers.yaml", ["head.epochs=5"])
    code = run_training(resume="runs/flowers-1")

Several processes are either started here (`nproc`) or named by the environment, where a scheduler has put the place
of this one (`distributed.cluster`). TensorFlow is not loaded before it is known that there is something to train.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config import Config, load_config
from finetune.data import config_source
from finetune.training.distributed.cluster import ProcessPlace, find_process_place
from finetune.training.distributed.launch import run_local_processes
from finetune.utils import (
    FinetuneError,
    Stop,
    Terminal,
    UsageError,
    exit_at_once,
    stop_on_signals,
    survive_closed_output,
)

if TYPE_CHECKING:
    from finetune.runs import Run
    from finetune.training.experiment import Result


@dataclass(frozen=True)
class TrainingRequest:
    """What the command line asks for. `resume` is None for a new run, "" for the newest unfinished one."""

    config: str | None
    overrides: Sequence[str]
    resume: str | None
    accept_data_change: bool
    break_lock: bool
    run_dir: Path | None

    def find(self) -> "Run | Config":
        """The run to resume, or the config of a new one. Raises UsageError, and what `find_run_to_resume` raises."""
        if self.resume is None and self.accept_data_change:
            raise UsageError("--accept-data-change is for --resume: a new run takes the images as they are.")
        if self.resume is None and not self.config:
            raise UsageError(
                "train needs a config, or a folder or table of images.",
                hint="For example: finetune train photos/     or the shipped: finetune train digits",
            )
        if self.run_dir and self.resume:
            raise UsageError("--resume RUN and --run-dir both name a run.", hint="Give --resume alone with --run-dir.")
        if self.resume is not None and not (self.run_dir and not self.run_dir.exists()):
            from finetune.training.resume import find_run_to_resume  # with NumPy: a wrong config is reported at once

            named = str(self.run_dir) if self.run_dir else None

            run = find_run_to_resume(self.resume or named, self.config, self.overrides, break_lock=self.break_lock)
            if run is not None:
                return run
        source = config_source(self.config or self.resume or "", self.overrides)
        return load_config(source, self.overrides)

    def requested_config(self) -> "Config | None":
        """The config that the words name, None where they name a run."""
        from finetune.training.resume import config_to_resume

        return config_to_resume(self.resume, self.config, self.overrides)


def run_training(
    config: str | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: str | None = None,
    accept_data_change: bool = False,
    break_lock: bool = False,
    run_dir: Path | None = None,
    words: Sequence[str] = (),
    quiet: bool = False,
) -> "Result | None":
    """Trains `config` in a new run (the folder `run_dir`, if given), or continues the run `resume` ("": the newest
    unfinished one, or that in `run_dir`).

    Of processes that train together, only rank 0 has a result. Raises what a training raises. `words` are those of the
    command line, noted in the run.
    """
    request = TrainingRequest(config, overrides, resume, accept_data_change, break_lock, run_dir)
    command, terminal = ["finetune", *words], Terminal(quiet=quiet)
    with survive_closed_output(), stop_on_signals() as stop:
        place = find_process_place()
        if place.world_size > 1:
            return _train_as_one_of_several(place, request, command, terminal, stop)
        return _train(request.find(), request, command, terminal, stop)


def train_on_this_machine(nproc: int, words: Sequence[str]) -> int:
    """Start the command of these `words` as `nproc` processes that train together; returns their exit code."""
    return run_local_processes(nproc, _without_option(words, "--nproc"))


def _train(
    target: "Run | Config", request: TrainingRequest, command: Sequence[str], terminal: Terminal, stop: Stop
) -> "Result":
    from finetune.training.experiment import resume_run, train_config

    stop.check()  # a signal may have come meanwhile
    if isinstance(target, Config):
        return train_config(target, command=command, run_dir=request.run_dir, terminal=terminal)
    return resume_run(
        target, terminal=terminal, break_lock=request.break_lock, accept_changes=request.accept_data_change
    )


def _train_as_one_of_several(
    place: ProcessPlace, request: TrainingRequest, command: Sequence[str], terminal: Terminal, stop: Stop
) -> "Result | None":
    """Rank 0 trains as if it were alone, the others do the same work for it; the result is rank 0's."""
    device = "auto"
    with suppress(FinetuneError):  # raised below, when all are there: nobody must wait for one that has gone
        requested = request.requested_config()
        device = requested.device if requested else device
    if place.rank == 0:
        terminal.say(f"Waiting for {place.world_size - 1} other process(es): {', '.join(place.addresses)}")
    from finetune.training.distributed.group import join_group
    from finetune.training.experiment import train_as_follower
    from finetune.training.start_checks import assert_same_command

    exit_at_once()  # TensorFlow would wait for the others, who may have gone
    with join_group(place, device) as group:
        with group.synchronized():
            requested = request.requested_config()
        assert_same_command(group, requested)
        target: Run | Config | None = None
        with group.synchronized():
            if group.rank == 0:
                target = request.find()
        if target is not None:
            return _train(target, request, command, terminal, stop)
        train_as_follower()
        return None


def _without_option(words: Sequence[str], option: str) -> list[str]:
    """`words` without `option` and its value, given as two words or with `=`."""
    kept: list[str] = []
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word == option:
            is_value = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept

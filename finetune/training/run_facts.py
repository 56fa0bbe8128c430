"""run.json: where a run comes from and what was decided on the way; and the seconds by stage."""

import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import finetune
from finetune.runs import ReadOnlyRun, Run
from finetune.utils import describe_device, library_versions, write_json


def read_run_facts(run: Run) -> dict[str, Any]:
    """run.json: versions, command, seed, device, hash of the weights, seconds by stage. Empty if there is none yet."""
    try:
        facts: dict[str, Any] = json.loads(run.run_json.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def write_run_facts(run: Run, **changed: Any) -> None:
    """Change some of the facts in run.json; versions and device are always those of now."""
    if isinstance(run, ReadOnlyRun):
        return
    environment = {
        "versions": {"finetune": finetune.__version__, **library_versions()},
        "device": describe_device(),
        "machine": platform.platform(),
        "python": sys.version.split()[0],
    }
    write_json(run.run_json, {**read_run_facts(run), **environment, **changed})


class Stopwatch:
    """Seconds by stage, over all restarts of a run."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of `stage`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

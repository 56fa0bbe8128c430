"""Who takes part in a training on several machines, read from what the scheduler says; or started here, to try it out.

    place = find()                      from TF_CONFIG, SLURM's variables, those of a Kubernetes Indexed Job; else alone
    place.rank, place.size              which of how many processes this one is; rank 0 is the chief
    run_local(2, ["train", "digits"])   two processes on this machine, and their common exit code

No TensorFlow here: a wrong variable is answered at once. What the processes do together is in `distribution`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO

from finetune.utils import ResourceError, UsageError

PORT = 29400  # where a process listens unless FINETUNE_PORT says otherwise
PATIENCE = 40.0  # seconds in which the others notice by themselves that one has ended, and say so


@dataclass(frozen=True)
class ProcessPlace:
    """Rank 0 is the chief; `addresses` has a `host:port` for every rank; `local` counts on this machine from 0."""

    rank: int = 0
    addresses: tuple[str, ...] = ("",)
    local: int = 0

    @property
    def size(self) -> int:
        return len(self.addresses)


def find_place(environment: Mapping[str, str] = os.environ) -> ProcessPlace:
    """This process' place among those that train together, by the first of the three that is there; else alone.

    Raises UsageError for variables that contradict themselves.
    """
    for read in (_from_tensorflow, _from_slurm, _from_kubernetes):
        try:
            place = read(environment)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{_NAMES[read]} cannot be understood: {type(error).__name__} {error}",
                hint="docs/scale.md says what it must hold. To train alone, unset it.",
            ) from error
        if place is None:
            continue
        if not 0 <= place.rank < place.size:
            raise UsageError(f"{_NAMES[read]}: this is process {place.rank}, but there are only {place.size} (from 0).")
        return place if place.size > 1 else ProcessPlace()
    return ProcessPlace()


def _from_tensorflow(environment: Mapping[str, str]) -> ProcessPlace | None:
    """TF_CONFIG: {"cluster": {"chief": [host:port], "worker": [...]}, "task": {"type": "worker", "index": 0}}."""
    given = json.loads(environment.get("TF_CONFIG") or "{}")
    if not given.get("cluster"):
        return None
    jobs, task = given["cluster"], given["task"]
    if unknown := set(jobs) - {"chief", "worker", "master", "evaluator"}:
        raise ValueError(f"has {', '.join(sorted(unknown))}; only chief and workers can train together here")
    first = "chief" if "chief" in jobs else "master"
    addresses = (*jobs.get(first, ()), *jobs.get("worker", ()))
    if task["type"] not in (first, "worker"):
        raise ValueError(f"task type {task['type']!r} has no work here; only chief and workers")
    before = len(jobs.get(first, ())) if task["type"] == "worker" else 0
    return ProcessPlace(before + int(task["index"]), addresses, int(environment.get("LOCAL_RANK", 0)))


def _from_slurm(environment: Mapping[str, str]) -> ProcessPlace | None:
    """The variables that `srun` gives to each task; each task is one process."""
    if "SLURM_PROCID" not in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return None
    nodes = expand_nodelist(environment["SLURM_STEP_NODELIST"])
    each = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    if len(nodes) != len(each):
        raise ValueError(f"{len(nodes)} nodes, but numbers of tasks for {len(each)}")
    first = int(environment.get("FINETUNE_PORT", PORT))
    addresses = [f"{node}:{first + at}" for node, count in zip(nodes, each, strict=True) for at in range(count)]
    return ProcessPlace(int(environment["SLURM_PROCID"]), tuple(addresses), int(environment.get("SLURM_LOCALID", 0)))


def expand_nodelist(nodes: str) -> list[str]:
    """`gpu[01-03,7],login` -> gpu01 gpu02 gpu03 gpu7 login, as `scontrol show hostnames` does."""
    found: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        found += _spread(word)
    return found


def _spread(word: str) -> list[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", word)
    if not match:
        return [word]
    before, ranges, after = match.groups()
    numbers: list[str] = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        numbers += [f"{number:0{len(low)}}" for number in range(int(low), int(high or low) + 1)]
    return [f"{before}{number}{rest}" for number in numbers for rest in _spread(after)]


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> 2 2 2 1."""
    matches = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]


def _from_kubernetes(environment: Mapping[str, str]) -> ProcessPlace | None:
    """An Indexed Job: JOB_COMPLETION_INDEX comes from Kubernetes, the other two from the manifest.

    FINETUNE_WORKERS is how many, FINETUNE_HOST the name of a pod in the headless service with `{}` for its index,
    such as `train-{}.train`.
    """
    if "JOB_COMPLETION_INDEX" not in environment or "FINETUNE_WORKERS" not in environment:
        return None
    port = environment.get("FINETUNE_PORT", PORT)
    names = [environment["FINETUNE_HOST"].format(index) for index in range(int(environment["FINETUNE_WORKERS"]))]
    if len(set(names)) < len(names):
        raise ValueError("FINETUNE_HOST needs {} in the place of the index")
    return ProcessPlace(int(environment["JOB_COMPLETION_INDEX"]), tuple(f"{name}:{port}" for name in names))


_NAMES = {
    _from_tensorflow: "TF_CONFIG",
    _from_slurm: "What SLURM says (SLURM_STEP_NODELIST and others)",
    _from_kubernetes: "What Kubernetes says (JOB_COMPLETION_INDEX, FINETUNE_WORKERS, FINETUNE_HOST)",
}


# ------------------------------------------------------------------------------------------------ a local group


def run_local_processes(count: int, words: Sequence[str]) -> int:
    """Runs `finetune WORDS` in `count` processes of this machine that train together; returns their exit code.

    The chief speaks for all. When one is killed, the others notice and end too; those that do not are killed.
    """
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_worker(rank, place, words))
            for rank, place in enumerate(local_process_environments(count))
        ]
        asked = stack.enter_context(_passed_on(workers))
        ended = _wait(workers)
        if ended is None:
            return 0
        return 128 + asked[0] if asked else _explain(ended, workers)


@dataclass(frozen=True)
class _Worker:
    rank: int
    process: "subprocess.Popen[bytes]"
    said: IO[bytes] | None  # by all but the chief, shown only if it crashes


def local_process_environments(count: int) -> list[dict[str, str]]:
    """For each of `count` processes on this machine the variables that tell it its place; their ports were free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    places = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}} for rank in range(count)]
    return [{"TF_CONFIG": json.dumps(place), "LOCAL_RANK": str(rank)} for rank, place in enumerate(places)]


@contextmanager
def _worker(rank: int, place: Mapping[str, str], words: Sequence[str]) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "finetune.cli", *words]
    with tempfile.TemporaryFile() as file:
        said = file if rank else None
        try:
            process = subprocess.Popen(
                command, env={**os.environ, **place}, stdout=said, stderr=said, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            raise ResourceError(f"cannot start a process: {error}") from None
        try:
            yield _Worker(rank, process, said)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _passed_on(workers: Sequence[_Worker]) -> Iterator[list[int]]:
    """SIGTERM and SIGHUP go on to the workers, Ctrl-C reaches them by itself; yields those that came."""
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for worker in workers if number != signal.SIGINT else ():
            with suppress(ProcessLookupError):
                worker.process.send_signal(number)

    kept = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[_Worker]) -> _Worker | None:
    """The first worker that ended with a fault, once all have ended; None if none has."""
    first: _Worker | None = None
    deadline = float("inf")
    while running := [worker for worker in workers if worker.process.poll() is None]:
        first = first or next((worker for worker in workers if worker.process.returncode), None)
        if first and deadline == float("inf"):
            deadline = time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            for worker in running:
                worker.process.kill()
        time.sleep(0.1)
    return first or next((worker for worker in workers if worker.process.returncode), None)


def _explain(first: _Worker, workers: Sequence[_Worker]) -> int:
    """The exit code of all, said in words where the chief could not."""
    code = first.process.returncode
    spoken = workers[0].process.returncode > 0  # the chief has said what was wrong
    if code > 0 and spoken:
        return code
    if code < 0:
        name = signal.Signals(-code).name
        what = f"process {first.rank} of {len(workers)} (id {first.process.pid}) was ended by {name}"
    else:
        what = f"process {first.rank} of {len(workers)} ended with exit code {code}"
    if first.said and not spoken:
        first.said.seek(0)
        lines = first.said.read().decode("utf-8", "replace").strip().splitlines()
        what += "".join(f"\n  {line}" for line in lines[-5:])
    raise ResourceError(what, hint="The others were ended too. Start again with --resume to go on.")

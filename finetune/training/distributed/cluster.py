"""Which process of a cluster this one is, read from what the scheduler puts into the environment.

    place = find_process_place()        TF_CONFIG, the variables of SLURM or of a Kubernetes Indexed Job; else alone
    place.rank, place.world_size        this process' number, and how many train together

TensorFlow has resolvers for the first two (`tf.distribute.cluster_resolver`). They are not used: the one for SLURM
(TensorFlow 2.21) sorts the nodes by name, so that `gpu10` comes before `gpu9` and ranks are mixed up, fails without
GPUs, and does not know `rack[1-2]node[1-2]`; both need TensorFlow, and a wrong variable should be answered at once.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.utils import UsageError

PORT = 29400  # where a process listens unless FINETUNE_PORT says otherwise


@dataclass(frozen=True)
class ProcessPlace:
    """Rank 0 speaks and writes; `addresses` has a `host:port` for every rank."""

    rank: int = 0
    addresses: tuple[str, ...] = ("",)
    local_rank: int = 0  # among the processes of this machine

    @property
    def world_size(self) -> int:
        return len(self.addresses)


def find_process_place(environment: Mapping[str, str] = os.environ) -> ProcessPlace:
    """The place of this process, from the first of the three schedulers that has set its variables; else alone.

    Raises UsageError for variables that cannot be read or contradict each other.
    """
    for source, read in SCHEDULERS.items():
        try:
            place = read(environment)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{source} cannot be understood: {type(error).__name__} {error}",
                hint="docs/scale.md says what it must hold. To train alone, unset it.",
            ) from error
        if place is None:
            continue
        if not 0 <= place.rank < place.world_size:
            raise UsageError(f"{source}: this is process {place.rank}, but there are only {place.world_size} (from 0).")
        return place if place.world_size > 1 else ProcessPlace()
    return ProcessPlace()


def _read_tf_config(environment: Mapping[str, str]) -> ProcessPlace | None:
    """TF_CONFIG: {"cluster": {"chief": [host:port], "worker": [...]}, "task": {"type": "worker", "index": 0}}."""
    content: dict[str, Any] = json.loads(environment.get("TF_CONFIG") or "{}")
    if not content.get("cluster"):
        return None
    jobs, task = content["cluster"], content["task"]
    if unknown := set(jobs) - {"chief", "worker", "master", "evaluator"}:
        raise ValueError(
            f"has {', '.join(sorted(unknown))}; only the tasks 'chief' and 'worker' can train together here"
        )
    first_job = "chief" if "chief" in jobs else "master"
    first_addresses = jobs.get(first_job, ())
    if task["type"] not in (first_job, "worker"):
        raise ValueError(f"task type {task['type']!r} has no work here; only 'chief' and 'worker'")
    rank = int(task["index"])
    if task["type"] == "worker":
        rank += len(first_addresses)
    addresses = (*first_addresses, *jobs.get("worker", ()))
    return ProcessPlace(rank, addresses, int(environment.get("LOCAL_RANK", 0)))


def _read_slurm(environment: Mapping[str, str]) -> ProcessPlace | None:
    """The variables that `srun` gives to each task; each task is one process.

    Ranks count the tasks node by node. That is SLURM_PROCID, unless tasks were dealt out to the nodes in turn
    (`--distribution=cyclic`) or in any other way.
    """
    if "SLURM_PROCID" not in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return None
    nodes = expand_nodelist(environment["SLURM_STEP_NODELIST"])
    tasks_per_node = _expand_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    if len(nodes) != len(tasks_per_node):
        raise ValueError(f"{len(nodes)} nodes, but numbers of tasks for {len(tasks_per_node)}")
    port = int(environment.get("FINETUNE_PORT", PORT))
    addresses = [
        f"{node}:{port + task}"
        for node, tasks in zip(nodes, tasks_per_node, strict=True)
        for task in range(tasks)
    ]  # fmt: skip
    node, local_rank = int(environment["SLURM_NODEID"]), int(environment["SLURM_LOCALID"])
    if local_rank >= tasks_per_node[node]:
        raise ValueError(f"task {local_rank} of node {node}, which has {tasks_per_node[node]} (from 0)")
    return ProcessPlace(sum(tasks_per_node[:node]) + local_rank, tuple(addresses), local_rank)


def expand_nodelist(nodelist: str) -> list[str]:
    """`gpu[01-03,7],login` -> gpu01 gpu02 gpu03 gpu7 login, as `scontrol show hostnames` does."""
    nodes: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        nodes += _expand_brackets(word)
    return nodes


def _expand_brackets(word: str) -> list[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", word)
    if not match:
        return [word]
    before, ranges, after = match.groups()
    numbers: list[str] = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        numbers += [f"{number:0{len(low)}}" for number in range(int(low), int(high or low) + 1)]
    return [f"{before}{number}{rest}" for number in numbers for rest in _expand_brackets(after)]


def _expand_tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> 2 2 2 1."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match:
            tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _read_kubernetes(environment: Mapping[str, str]) -> ProcessPlace | None:
    """An Indexed Job: JOB_COMPLETION_INDEX comes from Kubernetes, the other two from the manifest.

    FINETUNE_WORKERS is how many, FINETUNE_HOST the name of a pod in the headless service with `{}` for its index,
    such as `train-{}.train`.
    """
    if "JOB_COMPLETION_INDEX" not in environment or "FINETUNE_WORKERS" not in environment:
        return None
    port = environment.get("FINETUNE_PORT", PORT)
    hosts = [environment["FINETUNE_HOST"].format(index) for index in range(int(environment["FINETUNE_WORKERS"]))]
    if len(set(hosts)) < len(hosts):
        raise ValueError("FINETUNE_HOST needs {} in the place of the index")
    return ProcessPlace(int(environment["JOB_COMPLETION_INDEX"]), tuple(f"{host}:{port}" for host in hosts))


SCHEDULERS: dict[str, Callable[[Mapping[str, str]], ProcessPlace | None]] = {  # by what a message calls its variables
    "TF_CONFIG": _read_tf_config,
    "What SLURM says (SLURM_STEP_NODELIST and others)": _read_slurm,
    "What Kubernetes says (JOB_COMPLETION_INDEX, FINETUNE_WORKERS, FINETUNE_HOST)": _read_kubernetes,
}

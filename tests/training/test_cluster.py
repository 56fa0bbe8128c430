"""Which process of a cluster this is, as the schedulers say it."""

import json

import pytest

from finetune.training.distributed.cluster import PORT, ProcessPlace, expand_nodelist, find_process_place
from finetune.utils import UsageError


def tensorflow(task: str, index: int, **jobs: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": task, "index": index}})}


def test_alone_without_a_word():
    assert find_process_place({}) == ProcessPlace()
    assert find_process_place({"TF_CONFIG": "{}"}) == ProcessPlace()
    assert find_process_place(tensorflow("worker", 0, worker=["a:1"])) == ProcessPlace()  # a cluster of one
    assert find_process_place({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}) == ProcessPlace()  # sbatch without srun
    assert find_process_place({"JOB_COMPLETION_INDEX": "3"}) == ProcessPlace()  # an Indexed Job that shards by itself


def test_tf_config_with_and_without_a_chief():
    assert find_process_place(tensorflow("worker", 1, worker=["a:1", "b:1"])) == ProcessPlace(1, ("a:1", "b:1"))
    assert find_process_place(tensorflow("worker", 0, chief=["c:1"], worker=["a:1"])) == ProcessPlace(1, ("c:1", "a:1"))
    assert find_process_place(tensorflow("chief", 0, chief=["c:1"], worker=["a:1"])) == ProcessPlace(0, ("c:1", "a:1"))


def test_slurm():
    """Tasks in blocks (0 and 1 on the first node) or in turn (0 and 2): each must listen on the node where it runs."""
    step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
    addresses = ("gpu07:5000", "gpu07:5001", "gpu08:5000")
    for distribution in ([(0, 0), (0, 1), (1, 0)], [(0, 0), (1, 0), (0, 1)]):
        ranks = []
        for process, (node, local) in enumerate(distribution):
            numbers = {"SLURM_PROCID": str(process), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
            place = find_process_place({**step, **numbers, "FINETUNE_PORT": "5000"})
            assert place.addresses == addresses
            assert place.addresses[place.rank].startswith(("gpu07", "gpu08")[node])
            assert place.local_rank == local
            ranks.append(place.rank)
        assert sorted(ranks) == [0, 1, 2]
        assert ranks[0] == 0


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("login", "login"),
        ("a,b7", "a b7"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[08-10,12],x", "n08 n09 n10 n12 x"),
        ("r[1-2]c[1-2]", "r1c1 r1c2 r2c1 r2c2"),
        ("n[1,3].cluster", "n1.cluster n3.cluster"),
    ],
)
def test_lists_of_nodes(nodes, names):
    assert expand_nodelist(nodes) == names.split()


def test_a_kubernetes_indexed_job():
    variables = {"JOB_COMPLETION_INDEX": "1", "FINETUNE_WORKERS": "2", "FINETUNE_HOST": "train-{}.train"}
    assert find_process_place(variables) == ProcessPlace(1, (f"train-0.train:{PORT}", f"train-1.train:{PORT}"))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG"),
        (tensorflow("worker", 2, worker=["a:1", "b:1"]), "process 2, but there are only 2"),
        (tensorflow("ps", 0, worker=["a:1"], ps=["b:1"]), "ps"),
        (tensorflow("evaluator", 0, worker=["a:1", "b:1"], evaluator=["b:1"]), "evaluator"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NODELIST"),
        ({"JOB_COMPLETION_INDEX": "0", "FINETUNE_WORKERS": "2"}, "FINETUNE_HOST"),
        ({"JOB_COMPLETION_INDEX": "0", "FINETUNE_WORKERS": "2", "FINETUNE_HOST": "train"}, "{}"),
    ],
)
def test_contradictions_are_named(variables, words):
    with pytest.raises(UsageError, match=words.replace("{", r"\{")):
        find_process_place(variables)

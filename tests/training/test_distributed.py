"""Processes and devices that train together must end where one ends alone, and fail together."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import EAGER, SLOW, Crowd, furnish, outcome

pytestmark = pytest.mark.slow

CONFIG = """
name: colours
recipe: none
deterministic: true
data: {folder: images, split: {train: 0.6, validation: 0.2, test: 0.2}}
model: {backbone: tiny, weights: none, dropout: 0.2}
head: {start: random, epochs: 3, batch_size: 8, learning_rate: 0.01}
fine_tune: {unfreeze: 2, epochs: 2, batch_size: 8, learning_rate: 0.003}
"""
EXACT = "import keras; keras.config.set_floatx('float64')\n"
DEVICES = """
import tensorflow
(cpu,) = tensorflow.config.list_physical_devices("CPU")
tensorflow.config.set_logical_device_configuration(cpu, [tensorflow.config.LogicalDeviceConfiguration()] * 2)
"""
COUNTING = """
import finetune.data.batches as batches
read, prepare = batches.read_square, experiment.prepare_shared_features
counted = []
def counting(path, transform):
    counted.append(path)
    return read(path, transform)
def announced(*args, **more):
    counted.clear()
    found = prepare(*args, **more)
    os.write(2, f"read {len(counted)} images\\n".encode())
    return found
batches.read_square, experiment.prepare_shared_features = counting, announced
"""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Crowd]:
    crowd = Crowd(furnish(tmp_path_factory.mktemp("together"), images, CONFIG))
    yield crowd
    crowd.close()


@pytest.fixture
def output(crowd: Crowd, tmp_path: Path) -> Path:
    """A folder for runs, and a cold cache beside it."""
    shutil.rmtree(crowd.forges[0].folder / "cache", ignore_errors=True)
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def unbroken(crowd: Crowd) -> dict:
    """What two processes come to that nobody touched."""
    assert crowd.run("train", "cfg.yaml", "--output", "unbroken") == [0, 0], crowd.said()
    return outcome(crowd.forges[0].folder / "unbroken" / "colours-1")


def trained(output: Path) -> dict[str, np.ndarray]:
    """The weights in the last checkpoint of the only run in `output`."""
    (run,) = output.iterdir()
    folder = run / "checkpoints" / (run / "checkpoints" / "LAST").read_text().strip()
    with np.load(folder / "arrays.npz") as arrays:
        return {key: arrays[key] for key in arrays if key.startswith("model/")}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[key].astype(float) - other[key]).max()) for key in one)


def test_two_processes_end_where_one_ends(crowd: Crowd, output: Path) -> None:
    patch = EXACT + COUNTING
    alone = crowd.forges[0]
    assert alone.run("train", "cfg.yaml", "--output", output / "one", patch=patch) == 0, alone.said()
    assert "read 72 images" in alone.said()
    shutil.rmtree(alone.folder / "cache")
    assert crowd.run("train", "cfg.yaml", "--output", output / "two", patches=[patch, patch]) == [0, 0], crowd.said()
    assert difference(trained(output / "one"), trained(output / "two")) < 1e-12
    counts = [int(forge.said().partition("read ")[2].partition(" ")[0]) for forge in crowd.forges]
    assert sorted(counts) == [32, 40]  # of 72, in whole batches of 32: none twice
    assert "2 processes together; batches of 8 in all" in crowd.forges[0].said()
    assert "epoch" not in crowd.forges[1].said()  # one speaks


def test_two_devices_end_where_one_ends(crowd: Crowd, output: Path) -> None:
    alone = crowd.forges[0]
    for name, patch in (("one", EXACT), ("two", EXACT + DEVICES)):
        assert alone.run("train", "cfg.yaml", "device=all", "--output", output / name, patch=patch) == 0, alone.said()
    assert "2 devices together" in alone.said()
    assert difference(trained(output / "one"), trained(output / "two")) < 1e-12


def test_a_head_in_float32_mixed_and_accumulated(crowd: Crowd, output: Path) -> None:
    head = ("train", "cfg.yaml", "fine_tune=null", "augment=light", "augment.mixup=0.2", "head.accumulate=2")
    head = (*head, "head.ema=0.9", "time_budget=1 h")  # which all processes keep to, by the same trial steps
    assert crowd.forges[0].run(*head, "--output", output / "one") == 0, crowd.said()
    shutil.rmtree(crowd.forges[0].folder / "cache")
    assert crowd.run(*head, "--output", output / "two") == [0, 0], crowd.said()
    assert difference(trained(output / "one"), trained(output / "two")) < 1e-6


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_the_run_goes_on(crowd: Crowd, output: Path, unbroken: dict, victim: int) -> None:
    command = ("train", "cfg.yaml", "--output", output, "--resume")
    patches = [EAGER, EAGER]
    patches[victim] += "at(Trainer, 'train_batch', 5)"
    codes = crowd.run(*command, patches=patches)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 5, crowd.said()
    assert "has ended or cannot be reached" in crowd.forges[1 - victim].said()
    assert crowd.run(*command) == [0, 0], crowd.said()
    assert outcome(output / "colours-1") == unbroken


def test_asking_one_stops_all_at_the_same_step(crowd: Crowd, output: Path, unbroken: dict) -> None:
    command = ("train", "cfg.yaml", "--output", output, "--resume")
    notice = "at(Trainer, 'train_batch', 4, act=lambda: os.write(2, b'fourth'))\n"
    crowd.start(*command, patches=[SLOW, SLOW + notice])
    crowd.forges[1].said("fourth")
    crowd.forges[1].send(signal.SIGTERM)
    assert crowd.wait() == [143, 143], crowd.said()
    assert crowd.run(*command) == [0, 0], crowd.said()
    assert outcome(output / "colours-1") == unbroken


OTHER = {  # what one process has otherwise, by the exit code of all
    "config: ": (2, "import sys; sys.argv[2] = 'other.yaml'"),
    "keras: ": (
        2,
        "import finetune.training.start_checks as checks; checks.library_versions = lambda: {'keras': '3.99'}",
    ),
    "images: ": (
        3,
        "real = experiment.reopen_dataset\n"
        "experiment.reopen_dataset = lambda *args, **more: reversed_labels(real(*args, **more))",
    ),
    "weights: ": (
        4,
        "real = experiment.build_classifier\n"
        "experiment.build_classifier = lambda *args, **more: real(*args, **{**more, 'seed': 1})",
    ),
}
REVERSED = """
import dataclasses
def reversed_labels(dataset): return dataclasses.replace(dataset, labels=dataset.labels[::-1])
"""


@pytest.mark.parametrize("name", OTHER)
def test_what_differs_is_named_before_anything_begins(crowd: Crowd, output: Path, name: str) -> None:
    (crowd.forges[0].folder / "other.yaml").write_text(CONFIG.replace("0.003", "0.004"))
    code, patch = OTHER[name]
    codes = crowd.run("train", "cfg.yaml", "--output", output, patches=["", REVERSED + patch])
    assert codes == [code, code], crowd.said()
    for forge in crowd.forges:
        assert name in forge.said()
        assert "on process 1 of 2 (127.0.0.1:" in forge.said()

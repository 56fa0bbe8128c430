"""Fixtures that every test may use."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_network  # noqa: F401 (registers the backbone `tiny`)
from drawing import leave_out_drawing
from PIL import Image

from finetune.data import scan_images

HERE = Path(__file__).resolve().parent
# Every process that a test starts finds `sitecustomize.py` there, which registers the backbone `tiny` in it too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Started in the background, or under nohup: children would inherit the deafness.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
SHARED = HERE.parents[1] / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file go to one process, so that what its fixtures train is trained once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def private_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Every test has a cache folder of its own and no network, so that none can lean on the machine's state.

    The cache knows `images` already: to scan them, processes have to start, which takes longer than most tests.
    """
    folder = tmp_path_factory.mktemp("cache")
    if "scanned_images" in request.fixturenames:
        shutil.copy(request.getfixturevalue("scanned_images").cache_file, folder)
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    monkeypatch.setenv("FINETUNE_OFFLINE", "1")
    return folder


@pytest.fixture
def report_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For trainings whose figures nobody looks at (see `leave_out_drawing`)."""
    leave_out_drawing(monkeypatch)


@pytest.fixture(scope="session")
def common_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("common-cache")


@pytest.fixture
def warm_cache(private_cache: Path, common_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For trainings on `images`: one cache for all of them, so that images are read and features computed once."""
    monkeypatch.setenv("FINETUNE_CACHE", str(common_cache))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights beside the project, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the real photos and weights in ../shared, absent on this machine")
    return SHARED


class ScannedImages(NamedTuple):
    folder: Path
    cache_file: Path  # remembers the scan


@pytest.fixture(scope="session")
def scanned_images(tmp_path_factory: pytest.TempPathFactory, common_cache: Path) -> ScannedImages:
    root = tmp_path_factory.mktemp("images")
    for number, (name, seed) in enumerate((("blue", 2), ("green", 7), ("red", 27))):
        random = np.random.default_rng(seed)
        (root / name).mkdir()
        for index in range(24):
            pixels = random.integers(0, 160, (36, 40, 3))
            pixels[..., 2 - number] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index:02}.png", compress_level=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(common_cache))
        assert all(inspection.reason is None for inspection in scan_images(map(str, root.rglob("*.png"))))
    return ScannedImages(root, common_cache / "scan.sqlite")


@pytest.fixture(scope="session")
def images(scanned_images: ScannedImages) -> Path:
    """A folder of 3 classes with 24 noisy images each, of one main colour: easy, but not trivial, to tell apart.

    With the fractions of `settings` and seed 0 each class has 14 training, 5 validation and 5 test images: the split of
    an image depends on the bytes of its file, so these seeds were looked for, and the files are not compressed.
    """
    return scanned_images.folder


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> dict[str, Any]:
    """A config for `finetune.config.load_config` that trains in seconds: the tiny network, two short phases."""
    return {
        "name": "colours",
        "recipe": "none",
        "output": str(tmp_path / "runs"),
        "data": {"folder": str(images), "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "model": {"backbone": "tiny", "weights": "none", "resize": "crop", "dropout": 0.2},
        "head": {"start": "random", "epochs": 3, "batch_size": 8, "learning_rate": 0.01},
        "fine_tune": {"unfreeze": 2, "epochs": 2, "batch_size": 8, "learning_rate": 0.003},
    }


@pytest.fixture
def own_images(settings: dict[str, Any], images: Path, tmp_path: Path) -> Path:
    """A copy of `images`, which `settings` then names, for tests that change or damage some."""
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    settings["data"]["folder"] = str(folder)
    return folder

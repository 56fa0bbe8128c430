"""The machine that TensorFlow computes on, and TensorFlow itself: imported at its first use only."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.utils import ResourceError, device, has_gpu, library_versions, select_devices, silence_cpp_logs


class FakeConfig:
    """Stands for `tf.config` on a machine with GPUs."""

    def __init__(self, *gpus: str) -> None:
        self.gpus = list(gpus)

    def get_visible_devices(self, kind: str) -> list[str]:
        return self.gpus

    def set_visible_devices(self, gpus: list[str], kind: str) -> None:
        self.gpus = gpus


class FakeTensorFlow:
    def __init__(self, *gpus: str) -> None:
        self.config = FakeConfig(*gpus)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "", **variables})


def test_tensorflow_is_imported_at_its_first_use() -> None:
    done = run(
        "import sys; from finetune.utils import keras, tf; print('keras' in sys.modules, 'tensorflow' in sys.modules);"
        "tf.constant(1); print(keras.backend.backend())"
    )
    assert (done.stdout, done.stderr) == ("False False\ntensorflow\n", "")


def test_another_backend_is_refused() -> None:
    done = run("from finetune.utils import keras; keras.Model", KERAS_BACKEND="jax")
    assert "UsageError: finetune needs Keras on TensorFlow, got KERAS_BACKEND=jax" in done.stderr


@pytest.mark.parametrize(
    ("driver", "gpus", "expected"), [(True, ["gpu"], True), (True, [], False), (False, ["gpu"], False)]
)
def test_a_gpu_needs_a_driver_and_tensorflow_must_see_it(
    driver: bool, gpus: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "GPU_DRIVERS", (str(tmp_path if driver else tmp_path / "none"),))
    monkeypatch.setattr(device, "tf", FakeTensorFlow(*gpus))
    assert has_gpu() == expected


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [("cpu", 0, []), ("auto", 0, ["a"]), ("auto", 1, ["b"]), ("gpu", 2, ["a"]), ("all", 0, ["a", "b"])],
)
def test_devices_are_selected_by_name(
    name: str, number: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorflow = FakeTensorFlow("a", "b")
    monkeypatch.setattr(device, "tf", tensorflow)
    select_devices(name, number)
    assert tensorflow.config.gpus == expected


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "tf", FakeTensorFlow())
    select_devices("auto")
    with pytest.raises(ResourceError, match=r"finds no GPU here.*\n.*device=cpu"):
        select_devices("gpu")


def test_what_cpp_prints_is_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    with silence_cpp_logs():
        subprocess.run([sys.executable, "-c", "import sys; print('noise', file=sys.stderr)"], check=True)
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


@pytest.mark.slow
def test_versions_are_those_of_the_libraries() -> None:
    assert library_versions().keys() == {"tensorflow", "keras", "python"}

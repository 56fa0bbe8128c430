"""A TensorFlow dataset becomes a folder of images, or is refused with what to do."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_tools import opened, refusal, sizes, tree
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TensorFlow Datasets and what it imports
]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shapes` and `sounds`, written by TFDS itself, and known to it by their files only."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def images(seed: int, count: int) -> Any:
        for index in range(count):
            pixels = np.random.default_rng([seed, index]).integers(0, 256, (12, 10, 3), np.uint8)
            yield f"{seed}-{index}", {"image": pixels, "kind": ("disc", "box")[index % 2], "size": index}

    with tfds.core.registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.3")

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "kind": tfds.features.ClassLabel(names=["disc", "box"]),
                    "size": tfds.features.Scalar(np.int64),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": images(0, 30), "test": images(1, 8), "extra": images(2, 3)}

            def _generate_examples(self) -> Any: ...

        class Sounds(Shapes):
            def _info(self) -> Any:
                features = {"loudness": tfds.features.Scalar(np.float32)}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": [("a", {"loudness": 1.0})]}

    for builder in (Shapes(data_dir=folder), Sounds(data_dir=folder)):
        builder.download_and_prepare()
    return folder


def test_tfds(tfds_dir: Path, monkeypatch: pytest.MonkeyPatch, private_cache: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    before = tree(tfds_dir)
    dataset = opened(tfds="shapes")
    assert (dataset.name, dataset.classes) == ("shapes", ("disc", "box"))
    assert sizes(dataset) == [26, 4, 8]
    assert any("splits left out: extra" in warning for warning in dataset.warnings)
    wanted = {np.random.default_rng([s, i]).integers(0, 256, (12, 10, 3), np.uint8).tobytes(): (s, i % 2)
              for s, n in ((0, 30), (1, 8)) for i in range(n)}  # fmt: skip
    for index in range(len(dataset)):
        pixels = np.asarray(Image.open(dataset.path(index)))
        assert wanted.pop(pixels.tobytes()) == (int(dataset.splits[index] == 2), dataset.labels[index])
    assert not wanted
    assert tree(tfds_dir) == before
    monkeypatch.setenv("TFDS_DATA_DIR", str(private_cache))  # the prepared files gone, ours remain
    assert opened(tfds="shapes").hashes == dataset.hashes


def test_tfds_leftovers_are_reported_and_left_alone(
    tfds_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    left = folder / "shapes" / "incomplete.ABC123_1.2.3"  # as TFDS calls it
    left.mkdir()
    (left / "shapes-train.tfrecord-00000-of-00001").write_bytes(bytes(1_500_000))
    warning = next(warning for warning in opened(tfds="shapes").warnings if "broken preparation" in warning)
    assert "1.5 MB" in warning
    assert str(left) in warning
    assert left.is_dir()


def test_tfds_without_image_and_label(tfds_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert "its features: loudness (Scalar)" in refusal(tfds="sounds")


def test_tfds_damaged(tfds_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    shard = next(folder.glob("shapes/*/shapes-train.*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    message = refusal(tfds="shapes")
    assert "damaged" in message
    assert "tfds build shapes" in message


def test_tfds_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert "Did you mean 'tf_flowers'" in refusal(tfds="tf_flower")
    for offline in ("1", "0"):
        monkeypatch.setenv("FINETUNE_OFFLINE", offline)
        monkeypatch.setattr("finetune.data.prepared.urllib.request.urlopen", no_network)
        message = refusal(tfds="tf_flowers")
        assert str(tmp_path) in message
        assert "tfds build tf_flowers" in message
        assert "finetune train digits" in message
        assert ("No route to host" in message) == (offline == "0")


def test_tfds_download_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def breaks(*args: object, **options: object) -> None:
        raise tfds.download.download_manager.NonMatchingChecksumError("https://x.org/f.tgz: got 1234, expected 5678")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FINETUNE_OFFLINE", "0")
    monkeypatch.setattr("finetune.data.prepared.connection_problem", lambda url: "")
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", breaks)
    message = refusal(tfds="tf_flowers")
    assert "could not be prepared: https://x.org/f.tgz: got 1234, expected 5678" in message
    assert "tfds build tf_flowers" in message


def no_network(*args: object, **options: object) -> None:
    raise OSError("No route to host")

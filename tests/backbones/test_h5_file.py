"""HDF5 weight files, sound and hostile."""

import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from finetune.backbones import check_h5, shape_counts
from finetune.backbones.h5_file import layers_of
from finetune.utils import WeightsError


def _file(path: Path, write: Callable[[Any], object]) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("dense/kernel", data=np.ones((4, 3), "float32"))
        file.create_dataset("dense/bias", data=np.zeros(3, "float32"))
        write(file)
    return path


def test_sound_file(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.h5", lambda file: file.create_dataset("count", data=3))
    check_h5(path)
    check_h5(path, shape_counts([(4, 3), (3,)]))


def test_shared_files_are_sound(shared: Path) -> None:
    for path in (shared / "weights" / "keras_home" / "models").glob("*.h5"):
        check_h5(path)
        assert layers_of(path)[0][0].lower().startswith("conv1")


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    file.create_virtual_dataset("virtual", layout)


def _loop(file: Any) -> None:
    file["dense/again"] = file["dense"]


def _soft(file: Any) -> None:
    file["soft"] = h5py.SoftLink("/dense/kernel")


def _external(file: Any) -> None:
    file["external"] = h5py.ExternalLink("/etc/passwd", "/x")


def _deep(file: Any) -> None:
    group = file
    for _ in range(1000):
        group = group.create_group("g")


HOSTILE = {
    "soft link": (_soft, "link"),
    "external link": (_external, "link"),
    "virtual data": (_virtual, "another file"),
    "external data": (
        lambda file: file.create_dataset("e", (3,), "f4", external=[("/etc/hostname", 0, 12)]),
        "another file",
    ),
    "loop": (_loop, "twice"),
    "deep": (_deep, "too deep"),
    "shape bomb": (lambda file: file.create_dataset("b", (1 << 40,), "f4", chunks=(1 << 16,)), "holds none"),
    "shape bomb in one chunk": (lambda file: file.create_dataset("b", (1 << 28,), "f4"), "holds none"),
    "compressed bomb": (
        lambda file: file.create_dataset("b", data=np.zeros(1 << 24, "f4"), compression="gzip"),
        "more than such a file can hold",
    ),
    "text": (lambda file: file.create_dataset("t", data="text"), "not numbers"),
    "objects": (lambda file: file.create_dataset("o", data=[b"abc"]), "not numbers"),
    "compound": (
        lambda file: file.create_dataset("c", (2,), np.dtype([("a", "f4")])),
        "not numbers|holds none",
    ),
    "empty": (lambda file: file.create_dataset("n", data=h5py.Empty("f4")), "not an array"),
    "named type": (lambda file: file.__setitem__("type", np.dtype("f4")), "not an array"),
    "nan": (lambda file: file.create_dataset("nan", data=np.array([1, np.nan])), "NaN or infinity in /nan"),
    "infinity": (
        lambda file: file.create_dataset("inf", data=np.array([-np.inf])),
        "NaN or infinity in /inf",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once_and_cheaply(tmp_path: Path, name: str) -> None:
    write, reason = HOSTILE[name]
    path = _file(tmp_path / "x.h5", write)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(WeightsError, match=reason) as caught:
            check_h5(path)
        assert time.perf_counter() - begin < 5
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_weights_of_another_network_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.h5", lambda file: file.create_dataset("nan", data=np.array([np.nan])))
    with pytest.raises(WeightsError, match=r"missing 2 of shape \(7, 7\)"):
        check_h5(path, Counter({(7, 7): 2, (3,): 1}))
    path = _file(tmp_path / "y.h5", lambda file: file.create_dataset("more", data=np.ones(50_000)))
    with pytest.raises(WeightsError, match="far more"):
        check_h5(path, Counter({(4, 3): 1, (3,): 1}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>Please log in</html>", "DOCTYPE html"),
        (b"\x80\x02}q\x00.", "not an HDF5 file"),
    ],
)
def test_other_files_say_what_they_are(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        check_h5(path)


def test_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = _file(tmp_path / "x.h5", lambda file: None).read_bytes()
    for length in range(1, len(whole) - 8, 97):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.h5"):
            check_h5(tmp_path / "cut.h5")


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """Damage anywhere is refused as a WeightsError, or harmless; never another exception."""
    whole = bytearray(_file(tmp_path / "x.h5", lambda file: None).read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= int(random.integers(1, 256))
        (tmp_path / "damaged.h5").write_bytes(damaged)
        try:
            check_h5(tmp_path / "damaged.h5")
        except WeightsError as error:
            assert "damaged.h5" in str(error)  # noqa: PT017 (most of them pass)


def test_layers_in_the_order_of_the_network(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = [b"z", b"pool", b"a"]
        for name, value in (("z", 1.0), ("a", 2.0)):
            file.create_dataset(f"{name}/{name}/kernel:0", data=np.full(2, value))
            file[name].attrs["weight_names"] = [f"{name}/kernel:0".encode()]
        file.create_group("pool").attrs["weight_names"] = np.array([], "S1")
    assert [(name, arrays[0][0]) for name, arrays in layers_of(tmp_path / "x.h5")] == [("z", 1), ("a", 2)]


def test_names_in_pieces(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names0"] = [b"a"]
        file.attrs["layer_names1"] = [b"b"]
        for name in "ab":
            file.create_dataset(f"{name}/w", data=np.ones(1))
            file[name].attrs["weight_names"] = [b"w"]
    assert [name for name, _ in layers_of(tmp_path / "x.h5")] == ["a", "b"]


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = [b"absent"]
    with pytest.raises(WeightsError, match="damaged"):
        layers_of(tmp_path / "x.h5")
    with pytest.raises(WeightsError, match=r"layout of keras\.applications"):
        layers_of(_file(tmp_path / "y.h5", lambda file: None))

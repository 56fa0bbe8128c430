"""Torch files, sound and hostile. No torch is needed: the files are made by hand, as torch makes them."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.backbones import registry as catalog, weights
from finetune.backbones.torch_file import LEGACY_MAGIC, read_torch_file
from finetune.utils import WeightsError


class _Global:
    """Pickled as a reference to `module.name`, which need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Storage:
    def __init__(self, array: np.ndarray[Any, Any], key: str, kind: str = "FloatStorage", count: int | None = None):
        self.array, self.key, self.kind = array, key, kind
        self.count = array.size if count is None else count


class _Tensor:
    def __init__(self, storage: _Storage, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> None:
        self.storage, self.shape, self.strides, self.offset = storage, shape, strides, offset


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return ("storage", _Global("torch", value.kind), value.key, "cpu", value.count, None)
        return None

    def save(self, value: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(value, _Global):
            return self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        if isinstance(value, _Tensor):
            self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
            self.save((value.storage, value.offset, value.shape, value.strides, False, {}))
            return self.write(pickle.REDUCE)
        return super().save(value, save_persistent_id)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def _legacy(path: Path, value: Any, storages: list[_Storage]) -> Path:
    parts = [_pickled(LEGACY_MAGIC), _pickled(1001), _pickled({"little_endian": True}), _pickled(value)]
    parts.append(_pickled([storage.key for storage in storages]))
    parts += [struct.pack("<q", storage.array.size) + storage.array.tobytes() for storage in storages]
    path.write_bytes(b"".join(parts))
    return path


def _zipped(path: Path, value: Any, storages: list[_Storage], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", _pickled(value))
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
    return path


NUMBERS = np.arange(24, dtype="float32")


@pytest.mark.parametrize("write", [_legacy, _zipped])
def test_tensors_come_out_as_they_went_in(tmp_path: Path, write: Any) -> None:
    storage = _Storage(NUMBERS, "7")
    long = _Storage(np.array([5]), "8", "LongStorage")
    value = {
        "plain": _Tensor(storage, (2, 3, 4), (12, 4, 1)),
        "transposed": _Tensor(storage, (4, 3, 2), (1, 4, 12)),
        "offset": _Tensor(storage, (2, 2), (2, 1), 4),
        "number": _Tensor(long, (), ()),
    }
    tensors = read_torch_file(write(tmp_path / "x.pth", value, [storage, long]))
    assert list(tensors) == list(value)
    np.testing.assert_array_equal(tensors["plain"], NUMBERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(tensors["transposed"], NUMBERS.reshape(2, 3, 4).transpose(2, 1, 0))
    np.testing.assert_array_equal(tensors["offset"], [[4, 5], [6, 7]])
    assert tensors["number"] == 5
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


def test_package_of_the_default_backbone() -> None:
    found = weights.resolve_weights(catalog.find_backbone("efficientnet_lite0"), "imagenet", top=True)
    assert found is not None
    tensors = read_torch_file(found.path)
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert len(tensors) == 296


class _System:
    def __reduce__(self) -> Any:
        return os.system, ("touch {}",)


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b"cposix\nsystem\n(X\x08\x00\x00\x00touch %stR.",
        b"c__builtin__\neval\n(X\x04\x00\x00\x001+%stR.",
        b"cbuiltins\nexec\n(X\x01\x00\x00\x001tR.",
        b"ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00acos\nsystem\n)Rs.",
        b"(i__main__\nsystem\n.",  # the INST instruction
        b"\x80\x02cos\nsystem\n\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"ctorch.hub\nload\n)R.",
        b"r\xff\xff\xff\x7f.",
        b"}r\xff\xff\xff\x7f.",  # a memo index of two thousand millions
        b"\x8a\xff",  # cut
        b"",
    ],
)
def test_hostile_pickles_are_refused_and_not_run(tmp_path: Path, payload: bytes) -> None:
    trap = tmp_path / "trap"
    payload = payload.replace(b"%s", os.fsencode(trap))
    head = _pickled(LEGACY_MAGIC) + _pickled(1001) + _pickled({})
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    (tmp_path / "bare.pth").write_bytes(payload)
    (tmp_path / "legacy.pth").write_bytes(head + payload)
    for name in ("zip.pth", "bare.pth", "legacy.pth"):
        with pytest.raises(WeightsError, match=name):
            read_torch_file(tmp_path / name)
    assert not trap.exists()


def test_the_same_payload_does_run_in_pickle(tmp_path: Path) -> None:
    """That the traps above are sharp."""
    trap = tmp_path / "trap"
    pickle.loads(b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(trap))
    assert trap.exists()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (_Tensor(_Storage(NUMBERS, "0"), (5, 5), (5, 1)), "fit"),
        (_Tensor(_Storage(NUMBERS, "0"), (2,), (24,)), "beyond"),
        (_Tensor(_Storage(NUMBERS, "0"), (4,), (1,), 22), "beyond"),
        (_Tensor(_Storage(NUMBERS, "0"), (4,), (-1,), 22), "fit"),
        (_Tensor(_Storage(NUMBERS, "0"), (4,), (1,), -4), "fit"),
        (_Tensor(_Storage(NUMBERS, "0"), (1 << 40,), (0,)), "fit"),
        (_Tensor(_Storage(NUMBERS, "0", count=1 << 40), (3,), (1,)), "claim"),
        (_Tensor(_Storage(NUMBERS, "0", count=-1), (3,), (1,)), "claim"),
        (_Tensor(_Storage(NUMBERS, "0", kind="UntypedStorage"), (3,), (1,)), "UntypedStorage"),
    ],
)
@pytest.mark.parametrize("write", [_legacy, _zipped])
def test_impossible_tensors_are_refused(tmp_path: Path, tensor: _Tensor, reason: str, write: Any) -> None:
    path = write(tmp_path / "x.pth", {"a": tensor}, [tensor.storage])
    with pytest.raises(WeightsError, match=reason):
        read_torch_file(path)


def test_many_tensors_from_one_storage_are_no_bomb(tmp_path: Path) -> None:
    storage = _Storage(np.zeros(10_000, "float32"), "0")
    value = {str(i): _Tensor(storage, (100, 100), (1, 100)) for i in range(1000)}
    with pytest.raises(WeightsError, match="larger than the file"):
        read_torch_file(_legacy(tmp_path / "x.pth", value, [storage]))


def test_compressed_zip_is_refused(tmp_path: Path) -> None:
    storage = _Storage(np.zeros(10_000, "float32"), "0")
    path = _zipped(tmp_path / "x.pth", {"a": _Tensor(storage, (10_000,), (1,))}, [storage], zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        read_torch_file(path)


def test_other_than_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="more than a dictionary of tensors"):
        read_torch_file(_legacy(tmp_path / "x.pth", {"epoch": 3}, []))
    with pytest.raises(WeightsError, match="more than a dictionary of tensors"):
        read_torch_file(_legacy(tmp_path / "y.pth", [1, 2], []))


@pytest.mark.parametrize("write", [_legacy, _zipped])
def test_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path, write: Any) -> None:
    storage = _Storage(NUMBERS, "0")
    whole = write(tmp_path / "x.pth", {"a": _Tensor(storage, (24,), (1,))}, [storage]).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            read_torch_file(tmp_path / "cut.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weight file"):
        read_torch_file(tmp_path / "absent.pth")

"""Torch weight files, read without torch and without running the pickle that they are.

read_torch_file(path)    {"features.0.weight": array of shape (64, 3, 11, 11), ...}
"""

import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from finetune.utils import WeightsError

Array = NDArray[Any]

STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch file from before torch 1.6

# What a dictionary of tensors is made of. Anything else in the pickle is refused before it is run.
OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 BINFLOAT
    UNICODE BINUNICODE SHORT_BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    APPEND APPENDS SETITEM SETITEMS GLOBAL REDUCE BUILD BINPERSID
    BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE
""".split()  # noqa: SIM905 (a list in one column would be 37 lines)


def read_torch_file(path: Path) -> dict[str, Array]:
    """The named tensors of a torch file (either format), as contiguous arrays.

    The pickle inside is read by an unpickler that knows dictionaries and tensors and nothing else, so that a
    hostile file can only be refused. WeightsError if `path` holds anything but a dictionary of tensors.
    """
    try:
        loaded = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(loaded, dict) or not all(isinstance(value, np.ndarray) for value in loaded.values()):
            raise pickle.UnpicklingError("it holds more than a dictionary of tensors")
        if sum(value.nbytes for value in loaded.values()) > 2 * path.stat().st_size:
            raise pickle.UnpicklingError("its tensors are larger than the file")
        return {str(name): np.ascontiguousarray(value) for name, value in loaded.items()}
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such weight file") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path}: not a torch weight file that can be read safely: {error}") from None


class _TensorUnpickler(pickle.Unpickler):
    """Knows the handful of names that tensors are pickled with; a storage is fetched by `open_storage`."""

    def __init__(self, file: IO[bytes], open_storage: Callable[[str, str, int], Array]) -> None:
        super().__init__(file)
        self.open_storage = open_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return type("OrderedDict", (dict,), {})  # a fresh class: BUILD gives it attributes
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild_tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it uses {module}.{name}, and only tensors are allowed")

    def persistent_load(self, pid: Any) -> Array:
        kind, dtype, key, _location, count = pid[:5]
        if kind != "storage" or dtype not in STORAGES.values():
            raise pickle.UnpicklingError("it refers to something that is no tensor storage")
        return self.open_storage(str(key), dtype, int(count))


def _unpickle(file: IO[bytes], open_storage: Callable[[str, str, int], Array]) -> Any:
    """One pickle from `file`, its opcodes inspected before any of them is executed."""
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it uses the pickle instruction {opcode.name}")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > count:  # would only eat memory
            raise pickle.UnpicklingError("its pickle is malformed")
    file.seek(start)
    return _TensorUnpickler(file, open_storage).load()


def _rebuild_tensor(storage: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Array:
    """The tensor that lies in a flat `storage` at `offset` with `strides` in elements (often transposed)."""
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0 or math.prod(shape) > storage.size:
        raise pickle.UnpicklingError("a tensor does not fit its storage")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


def _read_legacy(path: Path) -> Any:
    """Before torch 1.6: four pickles, then the list of storages, then the storages, each after its length."""
    end = path.stat().st_size
    storages: dict[str, Array] = {}

    def allocate(key: str, dtype: str, count: int) -> Array:
        size = count * np.dtype(dtype).itemsize
        if key not in storages:
            if count < 0 or size + sum(storage.nbytes for storage in storages.values()) > end:
                raise pickle.UnpicklingError("it claims more than the file holds")
            storages[key] = np.empty(count, dtype)  # filled below
        return storages[key]

    with path.open("rb") as file:
        if _unpickle(file, allocate) != LEGACY_MAGIC:
            raise pickle.UnpicklingError("it does not begin as a torch file does")
        _unpickle(file, allocate)  # protocol version
        _unpickle(file, allocate)  # sizes of types on the machine that wrote it
        loaded = _unpickle(file, allocate)
        for key in _unpickle(file, allocate):
            storage = storages.pop(str(key))
            count = int.from_bytes(file.read(8), "little")
            if count != storage.size or file.readinto(storage.view(np.uint8).data) != storage.nbytes:
                raise pickle.UnpicklingError("it ends too early")
        if storages:
            raise pickle.UnpicklingError("a storage is missing")
    return loaded


def _read_zip(path: Path) -> Any:
    """Since torch 1.6: a zip (stored, never compressed) of one pickle and one member per storage."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise pickle.UnpicklingError("its members are compressed, as torch never writes them")
        if len(set(names)) != len(names) or sum(name.endswith("/data.pkl") for name in names) != 1:
            raise pickle.UnpicklingError("its members are not those of a torch file")
        root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        storages: dict[str, Array] = {}

        def open_storage(key: str, dtype: str, count: int) -> Array:
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(f"{root}/data/{key}"), dtype)
            if storages[key].size != count or storages[key].dtype != np.dtype(dtype):
                raise pickle.UnpicklingError(f"storage {key} is not as long as claimed")
            return storages[key]

        with archive.open(f"{root}/data.pkl") as file:
            return _unpickle(file, open_storage)

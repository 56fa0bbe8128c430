"""Class names and the range of pixels inside a .tflite file, where Android and MediaPipe look for them.

TFLite metadata are two things: a FlatBuffer among the model's buffers that says what goes in and out, and files such as
labels.txt as a zip archive behind the model, so that `unzip model.tflite` shows them. Google's writer is not kept up
any more (tflite-support ends at Python 3.11), and what is needed here is small. Schema:
https://github.com/tensorflow/tflite-support/blob/master/tensorflow_lite_support/metadata/metadata_schema.fbs
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import flatbuffers
import numpy as np

LABELS = "labels.txt"  # line n is class n
_IDENTIFIER = b"M001"
_AXIS_LABELS = 2  # AssociatedFileType
_NORMALIZATION = 1  # ProcessUnitOptions
_IMAGE, _RGB = 2, 1  # ContentProperties, ColorSpaceType

Field = Callable[[flatbuffers.Builder], None]


def add_metadata(path: Path, *, name: str, description: str, classes: Sequence[str]) -> None:
    """Add both to the model in `path`, which takes pixels 0..255 as they are and has one output per class."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    buffer = schema.BufferT()
    buffer.data = list(_metadata(name, description))
    model.buffers.append(buffer)
    entry = schema.MetadataT(name="TFLITE_METADATA", buffer=len(model.buffers) - 1)
    model.metadata = [*(model.metadata or []), entry]
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, "".join(f"{name}\n" for name in classes))


def _metadata(name: str, description: str) -> bytes:
    build = flatbuffers.Builder(1024)
    text = build.CreateString
    labels = _table(build, _offset(0, text(LABELS)), _byte(2, _AXIS_LABELS))
    zero, unity, largest = (build.CreateNumpyVector(np.array([value], np.float32)) for value in (0, 1, 255))
    as_is = _table(build, _offset(0, zero), _offset(1, unity))  # mean, deviation
    unit = _table(build, _byte(0, _NORMALIZATION), _offset(1, as_is))
    content = _table(build, _byte(0, _IMAGE), _offset(1, _table(build, _byte(0, _RGB))))
    pixels = _table(
        build,
        _offset(0, text("image")),
        _offset(1, text("RGB pixels, 0 to 255")),
        _offset(3, content),
        _offset(4, _vector(build, unit)),
        _offset(5, _table(build, _offset(0, largest), _offset(1, zero))),
    )
    probabilities = _table(
        build,
        _offset(0, text("probability")),
        _offset(1, text("one for each class")),
        _offset(6, _vector(build, labels)),
    )
    subgraph = _table(build, _offset(2, _vector(build, pixels)), _offset(3, _vector(build, probabilities)))
    fields = [(0, text(name)), (1, text(description)), (3, _vector(build, subgraph)), (7, text("1.0.0"))]
    build.Finish(_table(build, *(_offset(slot, at) for slot, at in fields)), _IDENTIFIER)
    return bytes(build.Output())


def _table(build: flatbuffers.Builder, *fields: Field) -> int:
    build.StartObject(8)
    for field in fields:
        field(build)
    return int(build.EndObject())


def _offset(slot: int, at: int) -> Field:
    return lambda build: build.PrependUOffsetTRelativeSlot(slot, at, 0)


def _byte(slot: int, value: int) -> Field:
    return lambda build: build.PrependUint8Slot(slot, value, 0)


def _vector(build: flatbuffers.Builder, table: int) -> int:
    build.StartVector(4, 1, 4)
    build.PrependUOffsetTRelative(table)
    return int(build.EndVector())

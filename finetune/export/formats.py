"""The formats of `finetune export`: how each is written, and how its own runtime runs what was written.

To add one, add a `Format` to `FORMATS`. Every format holds the same network: pixels (N, S, S, 3) float 0..255 in,
scaling inside, probabilities (N, classes) out.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from finetune.utils import UsageError, require_packages

Forward = Callable[[np.ndarray], np.ndarray]  # pixels (n, S, S, 3) float32 -> probabilities (n, classes) float32


@dataclass(frozen=True)
class ExportJob:
    """What a format is written from.

    `network` is a Keras model in float32, pixels -> probabilities; `calibration` gives training images
    (1, S, S, 3) float32 for int8.
    """

    classifier: Any
    network: Any
    quantize: str | None
    calibration: Callable[[], Iterator[np.ndarray]]

    @property
    def size(self) -> int:
        return int(self.classifier.spec.image_size)

    @property
    def signature(self) -> list[Any]:
        """The input, of any number of images."""
        from finetune.utils import keras

        return [keras.InputSpec(shape=(None, self.size, self.size, 3), dtype="float32", name="image")]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.classifier.classes)


@dataclass(frozen=True)
class ExportFormat:
    """One way to deploy. `packages` are those it needs beyond ours, all in the extra `extra`."""

    title: str
    file: str  # the main file in the export folder
    runtime: str  # the package that runs it
    write: Callable[[ExportJob, Path], None]
    open: Callable[[Path], Forward]
    extra: str = ""
    packages: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()

    @property
    def runtime_version(self) -> str:
        return f"{self.runtime} {version(self.runtime)}"


def find_format(name: str, quantize: str | None = None) -> ExportFormat:
    """The format called `name`. UsageError where it cannot be quantised so, or its packages are not installed."""
    format = EXPORT_FORMATS[name]
    if quantize and quantize not in format.quantize:
        able = ", ".join(
            f"{other} ({', '.join(one.quantize)})" for other, one in EXPORT_FORMATS.items() if one.quantize
        )
        raise UsageError(f"{format.title} is not exported as {quantize}.", hint=f"These are quantised: {able}.")
    require_packages(format.title, *format.packages, extra=format.extra)
    return format


# ---------------------------------------------------------------------------------------------------- Keras


def _write_keras(job: ExportJob, folder: Path) -> None:
    job.classifier.save(folder / "model.keras")


def _open_keras(folder: Path) -> Forward:
    from finetune.models import load_classifier
    from finetune.utils import tf

    forward = load_classifier(folder / "model.keras").forward
    return lambda pixels: np.asarray(forward(tf.constant(pixels)))


# ----------------------------------------------------------------------------------------------- SavedModel


def _write_saved_model(job: ExportJob, folder: Path) -> None:
    """In the layout of TensorFlow Serving, `1/` being the first version. The first signature is the default one."""
    from finetune.export.serving import batch_pixels
    from finetune.utils import keras, tf

    names, transform = tf.constant(job.labels), job.classifier.transform

    def answer(pixels: Any) -> dict[str, Any]:
        probabilities = job.network(pixels, training=False)
        return {
            "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    archive = keras.export.ExportArchive()  # without `track`, which would store every weight twice
    files = tf.TensorSpec((None,), tf.string, name="image_bytes")
    batch = tf.TensorSpec((None, job.size, job.size, 3), tf.float32, name="pixels")
    archive.add_endpoint("image_bytes", lambda image_bytes: answer(batch_pixels(image_bytes, transform)), [files])
    archive.add_endpoint("pixels", answer, [batch])
    archive.write_out(str(folder / "1"), verbose=False)


def _open_saved_model(folder: Path) -> Forward:
    from finetune.utils import tf

    loaded = tf.saved_model.load(str(folder / "1"))
    run = loaded.signatures["pixels"]

    def forward(pixels: np.ndarray, _keep: Any = loaded) -> np.ndarray:  # a signature does not keep its model alive
        return np.asarray(run(pixels=tf.constant(pixels))["probabilities"])

    return forward


def open_bytes(folder: Path) -> Callable[[bytes], np.ndarray | None]:
    """The other signature of a SavedModel: one file -> probabilities (classes,), None if it cannot be decoded."""
    from finetune.utils import tf

    loaded = tf.saved_model.load(str(folder / "1"))
    run = loaded.signatures["image_bytes"]

    def forward(content: bytes, _keep: Any = loaded) -> np.ndarray | None:
        try:
            answer: np.ndarray = run(image_bytes=tf.constant([content]))["probabilities"].numpy()[0]
        except tf.errors.InvalidArgumentError:
            return None
        return answer

    return forward


# --------------------------------------------------------------------------------------------------- LiteRT


def _write_litert(job: ExportJob, folder: Path) -> None:
    """One image at a time: phones want fixed shapes. Input and output stay float32 whatever is quantised."""
    from finetune.export.tflite_metadata import add_metadata
    from finetune.utils import tf

    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if job.quantize:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if job.quantize == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    if job.quantize == "int8":
        options["representative_dataset"] = lambda: ([image] for image in job.calibration())
    one = tf.TensorSpec((1, job.size, job.size, 3), tf.float32, name="image")
    path = folder / "model.tflite"
    job.network.export(str(path), format="litert", input_signature=[one], verbose=False, **options)
    about = f"{job.classifier.row.title}, {len(job.labels)} classes"
    add_metadata(path, name=job.classifier.name, description=about, classes=job.labels)


def _open_litert(folder: Path) -> Forward:
    from ai_edge_litert.interpreter import Interpreter

    from finetune.utils import available_cores

    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=available_cores())
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def one(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken, image[None])
        interpreter.invoke()
        return np.array(interpreter.get_tensor(given)[0])

    return lambda pixels: np.stack([one(image) for image in pixels])


# ----------------------------------------------------------------------------------------------------- ONNX


def _write_onnx(job: ExportJob, folder: Path) -> None:
    """Class names and the size of the input are in the metadata of the file, as JSON."""
    import onnx

    path = folder / "model.onnx"
    job.network.export(str(path), format="onnx", input_signature=job.signature, verbose=False)
    model = onnx.load(path)
    facts = {"classes": json.dumps(job.labels), "input": f"RGB pixels 0..255, {job.size} x {job.size}"}
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)


def _open_onnx(folder: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    path = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: np.asarray(session.run(None, {name: pixels})[0])


# ------------------------------------------------------------------------------------------------- OpenVINO


def _openvino() -> Any:
    """The package, which otherwise reports each import and conversion to its maker over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not installed", and it uses a stub
    import openvino

    return openvino


def _write_openvino(job: ExportJob, folder: Path) -> None:
    """The labels are where OpenVINO's Model API looks for them, words joined by `_` as it wants."""
    openvino = _openvino()
    whole = folder / "float.xml"
    job.network.export(str(whole), format="openvino", input_signature=job.signature, verbose=False)
    model = openvino.Core().read_model(whole)
    model.set_rt_info("Classification", ["model_info", "model_type"])
    model.set_rt_info(" ".join("_".join(name.split()) for name in job.labels), ["model_info", "labels"])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=job.quantize == "float16")
    del model  # it holds the files that go now
    for old in (whole, whole.with_suffix(".bin")):
        old.unlink()


def _open_openvino(folder: Path) -> Forward:
    # processors with bfloat16 units would use them unasked, and differ in the third digit
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino().Core().compile_model(folder / "model.xml", "CPU", exact)
    return lambda pixels: np.array(compiled(pixels)[0])


EXPORT_FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {
        "keras": ExportFormat("Keras", "model.keras", "keras", _write_keras, _open_keras),
        "saved_model": ExportFormat("SavedModel", "1", "tensorflow", _write_saved_model, _open_saved_model),
        "litert": ExportFormat(
            "LiteRT",
            "model.tflite",
            "ai-edge-litert",
            _write_litert,
            _open_litert,
            extra="litert",
            packages=("ai_edge_litert",),
            quantize=("float16", "int8"),
        ),
        "onnx": ExportFormat(
            "ONNX",
            "model.onnx",
            "onnxruntime",
            _write_onnx,
            _open_onnx,
            extra="onnx",
            packages=("onnx", "onnxruntime", "tf2onnx"),
        ),
        "openvino": ExportFormat(
            "OpenVINO",
            "model.xml",
            "openvino",
            _write_openvino,
            _open_openvino,
            extra="openvino",
            packages=("openvino",),
            quantize=("float16",),
        ),
    }
)

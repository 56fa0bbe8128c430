"""The formats of `finetune export`: how each is written, and how its own runtime runs what was written.

Every format holds the same network: pixels (N, S, S, 3) float 0..255 in, scaling inside, probabilities (N, classes)
out. A format is one section here, or one call of `register_export_format` in a program of yours.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from finetune.utils import UsageError, available_cores, keras, require_packages, tf

Forward = Callable[[np.ndarray], np.ndarray]  # pixels (n, S, S, 3) float32 -> probabilities (n, classes) float32
ForwardBytes = Callable[[bytes], np.ndarray | None]  # one file -> probabilities (classes,); None: cannot be decoded


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

    def signature(self, name: str = "image", batch: int | None = None) -> Any:
        """What `network` takes: `batch` images, None for any number, under that name."""
        size = self.classifier.spec.image_size
        return tf.TensorSpec((batch, size, size, 3), tf.float32, name=name)


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One way to deploy, and what the model card says about it.

    `write` fills a folder; `open` runs what it wrote, in the runtime that will run it. Every export is compared with
    the classifier through `open` before it is kept.
    """

    title: str
    file: str  # the main file in the export folder
    runtime: str  # the distribution that runs it, as pip calls it
    write: Callable[[ExportJob, Path], None]
    open: Callable[[Path], Forward]
    open_bytes: Callable[[Path], ForwardBytes] | None = None  # where the export also decodes image files
    extra: str = ""  # the extra of finetune that installs `packages`
    packages: tuple[str, ...] = ()  # needed beyond those of finetune
    quantize: tuple[str, ...] = ()  # "float16", "int8"
    output: str = "probabilities"  # or "logits": what comes out of the file, and what `program` calls it
    library: str  # as Hugging Face calls it
    requires: str  # what `program` needs: pip install ...
    program: str  # Python that runs the file on pixels("image.jpg"): an import, then lines that end with `output`


_formats: dict[str, ExportFormat] = {}
EXPORT_FORMATS: Mapping[str, ExportFormat] = MappingProxyType(_formats)


def register_export_format(name: str, format: ExportFormat) -> None:
    """Add a format, or replace one: `export_classifier(source, name)` writes it, proves it and describes it.

    def write_weights(job, folder):
        np.savez(folder / "weights.npz", *job.network.get_weights())

    def open_weights(folder):
        network = my_runtime.load(folder / "weights.npz")
        return lambda pixels: network(pixels)                    # (n, S, S, 3) -> (n, classes)

    register_export_format("my_runtime", ExportFormat(
        title="My runtime", file="weights.npz", runtime="my-runtime", write=write_weights, open=open_weights,
        library="my-runtime", requires="my-runtime",
        program="import my_runtime\n\nprobabilities = my_runtime.load('weights.npz')(pixels('image.jpg'))[0]",
    ))
    """
    _formats[name] = format


def find_format(name: str, quantize: str | None = None) -> ExportFormat:
    """The format called `name`. UsageError where it cannot be quantised so, or its packages are not installed."""
    if name not in EXPORT_FORMATS:
        raise UsageError(f"there is no export format {name!r}.", hint=f"One of {', '.join(EXPORT_FORMATS)}.")
    format = EXPORT_FORMATS[name]
    if quantize and quantize not in format.quantize:
        others = ((other, format.quantize) for other, format in EXPORT_FORMATS.items() if format.quantize)
        able = ", ".join(f"{other} ({', '.join(ways)})" for other, ways in others)
        raise UsageError(f"{format.title} is not exported as {quantize}.", hint=f"These are quantised: {able}.")
    require_packages(format.title, *format.packages, extra=format.extra)
    return format


# ---------------------------------------------------------------------------------------------------- Keras


def _open_keras(folder: Path) -> Forward:
    from finetune.models import load_classifier

    forward = load_classifier(folder / "model.keras").forward
    return lambda pixels: np.asarray(forward(tf.constant(pixels)))


register_export_format(
    "keras",
    ExportFormat(
        title="Keras",
        file="model.keras",
        runtime="keras",
        write=lambda job, folder: job.classifier.save(folder / "model.keras"),
        open=_open_keras,
        output="logits",
        library="keras",
        requires="keras tensorflow",
        program="""import keras

model = keras.saving.load_model("model.keras")
logits = model.predict(pixels("image.jpg"), verbose=0)[0]""",
    ),
)


# ----------------------------------------------------------------------------------------------- SavedModel


def _write_saved_model(job: ExportJob, folder: Path) -> None:
    """In the layout of TensorFlow Serving, `1/` being the first version. The first signature is the default one."""
    from finetune.export.serving import batch_pixels

    names, transform = tf.constant(job.classifier.classes), job.classifier.transform

    def predict(pixels: Any) -> dict[str, Any]:
        probabilities = job.network(pixels, training=False)
        return {
            "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    archive = keras.export.ExportArchive()  # without `track`, which would store every weight twice
    files = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("image_bytes", lambda image_bytes: predict(batch_pixels(image_bytes, transform)), [files])
    archive.add_endpoint("pixels", predict, [job.signature("pixels")])
    archive.write_out(str(folder / "1"), verbose=False)


def _open_saved_model(folder: Path) -> Forward:
    model = tf.saved_model.load(str(folder / "1"))  # a signature alone would not keep it alive
    return lambda pixels: np.asarray(model.signatures["pixels"](pixels=tf.constant(pixels))["probabilities"])


def _open_saved_model_bytes(folder: Path) -> ForwardBytes:
    """The other signature of a SavedModel: one file -> probabilities (classes,), None if it cannot be decoded."""
    model = tf.saved_model.load(str(folder / "1"))

    def forward(content: bytes) -> np.ndarray | None:
        try:
            outputs = model.signatures["image_bytes"](image_bytes=tf.constant([content]))
        except tf.errors.InvalidArgumentError:
            return None
        probabilities: np.ndarray = outputs["probabilities"].numpy()[0]
        return probabilities

    return forward


register_export_format(
    "saved_model",
    ExportFormat(
        title="SavedModel",
        file="1",
        runtime="tensorflow",
        write=_write_saved_model,
        open=_open_saved_model,
        open_bytes=_open_saved_model_bytes,
        library="tensorflow",
        requires="tensorflow",
        program="""import tensorflow as tf

model = tf.saved_model.load("1")
probabilities = model.signatures["pixels"](pixels=tf.constant(pixels("image.jpg")))["probabilities"].numpy()[0]""",
    ),
)


# --------------------------------------------------------------------------------------------------- LiteRT


def _write_litert(job: ExportJob, folder: Path) -> None:
    """One image at a time: phones want fixed shapes. Input and output stay float32 whatever is quantised."""
    from finetune.export.tflite_metadata import add_metadata

    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if job.quantize:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if job.quantize == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    if job.quantize == "int8":
        options["representative_dataset"] = lambda: ([pixels] for pixels in job.calibration())
    path, classes = folder / "model.tflite", job.classifier.classes
    job.network.export(str(path), format="litert", input_signature=[job.signature(batch=1)], verbose=False, **options)
    about = f"{job.classifier.row.title}, {len(classes)} classes"
    add_metadata(path, name=job.classifier.name, description=about, classes=classes)


def _open_litert(folder: Path) -> Forward:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=available_cores())
    interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]

    def forward(pixels: np.ndarray) -> np.ndarray:
        probabilities = []
        for image in pixels:
            interpreter.set_tensor(input_index, image[None])
            interpreter.invoke()
            probabilities.append(np.array(interpreter.get_tensor(output_index)[0]))
        return np.stack(probabilities)

    return forward


register_export_format(
    "litert",
    ExportFormat(
        title="LiteRT",
        file="model.tflite",
        runtime="ai-edge-litert",
        write=_write_litert,
        open=_open_litert,
        extra="litert",
        packages=("ai_edge_litert",),
        quantize=("float16", "int8"),
        library="litert",
        requires="ai-edge-litert",
        program="""from ai_edge_litert.interpreter import Interpreter

model = Interpreter("model.tflite")
model.allocate_tensors()
model.set_tensor(model.get_input_details()[0]["index"], pixels("image.jpg"))
model.invoke()
probabilities = model.get_tensor(model.get_output_details()[0]["index"])[0]""",
    ),
)


# ----------------------------------------------------------------------------------------------------- ONNX


def _write_onnx(job: ExportJob, folder: Path) -> None:
    """Class names and the size of the input are in the metadata of the file, as JSON."""
    import onnx

    path, size = folder / "model.onnx", job.classifier.spec.image_size
    job.network.export(str(path), format="onnx", input_signature=[job.signature()], verbose=False)
    model = onnx.load(path)
    facts = {"classes": json.dumps(job.classifier.classes), "input": f"RGB pixels 0..255, {size} x {size}"}
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


register_export_format(
    "onnx",
    ExportFormat(
        title="ONNX",
        file="model.onnx",
        runtime="onnxruntime",
        write=_write_onnx,
        open=_open_onnx,
        extra="onnx",
        packages=("onnx", "onnxruntime", "tf2onnx"),
        library="onnx",
        requires="onnxruntime",
        program="""import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
probabilities = model.run(None, {model.get_inputs()[0].name: pixels("image.jpg")})[0][0]""",
    ),
)


# ------------------------------------------------------------------------------------------------- OpenVINO


def _openvino() -> Any:
    """The package, which otherwise reports each import and conversion to its maker over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not installed", and it uses a stub
    import openvino

    return openvino


def _write_openvino(job: ExportJob, folder: Path) -> None:
    """The labels are where OpenVINO's Model API looks for them, words joined by `_` as it expects."""
    openvino = _openvino()
    whole = folder / "float.xml"
    job.network.export(str(whole), format="openvino", input_signature=[job.signature()], verbose=False)
    model = openvino.Core().read_model(whole)
    model.set_rt_info("Classification", ["model_info", "model_type"])
    model.set_rt_info(" ".join("_".join(name.split()) for name in job.classifier.classes), ["model_info", "labels"])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=job.quantize == "float16")
    del model  # it holds the files that are removed now
    for path in (whole, whole.with_suffix(".bin")):
        path.unlink()


def _open_openvino(folder: Path) -> Forward:
    # processors with bfloat16 units would use them by default, and differ in the third digit
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino().Core().compile_model(folder / "model.xml", "CPU", exact)
    return lambda pixels: np.array(compiled(pixels)[0])


register_export_format(
    "openvino",
    ExportFormat(
        title="OpenVINO",
        file="model.xml",
        runtime="openvino",
        write=_write_openvino,
        open=_open_openvino,
        extra="openvino",
        packages=("openvino",),
        quantize=("float16",),
        library="openvino",
        requires="openvino",
        program="""import openvino

model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
probabilities = model(pixels("image.jpg"))[0][0]""",
    ),
)

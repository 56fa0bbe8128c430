"""Export: a folder with the model, its class names and a model card, for programs that do not know finetune.

    result = export_classifier("runs/flowers-1", "litert", quantize="int8")
    result.folder                       # exports/flowers-1-litert-int8
    result.parity.agreement             # fraction of the test images with the same prediction as before

Nothing is exported unproven. What was written is opened by the runtime that will run it and predicts the user's own
images; where it predicts something else than the classifier, the export fails and leaves nothing (see `parity`).
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import finetune
from finetune.data import image_batches, image_reader
from finetune.evaluation import Proportion, require_accuracy, task_for, threshold_for_precision
from finetune.export.formats import ExportFormat, ExportJob, find_format
from finetune.export.model_card import write_model_card
from finetune.export.parity import (
    BYTES_LIMIT,
    LIMITS,
    Parity,
    ProofImages,
    choose_images,
    compare_file_bytes,
    compare_outputs,
    quiet_converters,
    run_both,
)
from finetune.models import Classifier, RiskCoveragePoint, load_classifier
from finetune.utils import (
    FinetuneError,
    Terminal,
    UsageError,
    WeightsError,
    atomic_write_folder,
    explain_os_errors,
    file_sha256,
    keras,
    library_versions,
    write_json,
)

PRECISIONS = (0.9, 0.95, 0.98, 0.99)  # for which export.json has a threshold


@dataclass(frozen=True)
class ExportResult:
    """A finished export. Accuracies are None without labels; `facts` is the content of export.json."""

    folder: Path
    format: ExportFormat
    parity: Parity
    bytes_parity: Parity | None  # of a format that decodes image files itself
    before: Proportion | None
    after: Proportion | None
    facts: dict[str, Any]


def export_classifier(
    source: str | Path,
    format_name: str,
    *,
    output: Path | None = None,
    quantize: str | None = None,
    images: Sequence[str] = (),
    assert_accuracy: float | None = None,
    terminal: Terminal | None = None,
) -> ExportResult:
    """Write the classifier `source` (a run, a .keras file, a backbone) into a new folder, and prove it equal.

    It is compared on `images` (files, folders, globs), else on the test images of a run, else on two photos that come
    with scikit-learn. CheckFailed, and nothing is left, when it differs by more than `LIMITS` or is less accurate than
    `assert_accuracy`; UsageError for what cannot be done; WeightsError for what cannot be converted.
    """
    terminal = terminal or Terminal(quiet=True)
    started = time.monotonic()
    format = find_format(format_name, quantize)
    output = output or default_folder(source, format_name, quantize)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} exists already.", hint="Give another folder with --output, or remove it.")
    classifier = load_classifier(source)
    results: list[ExportResult] = []
    with ExitStack() as stack:
        with terminal.stage("Checking the images") as update:
            chosen = choose_images(source, images, quantize=quantize, progress=update, stack=stack)
        if assert_accuracy is not None and chosen.labels is None:
            raise UsageError(
                f"--assert-accuracy needs labelled images, and {chosen.source} have no labels.",
                hint="Export a run that has a test split, without --images.",
            )

        def fill(folder: Path) -> None:
            result = _write_and_prove(classifier, format, quantize, chosen, folder, terminal)
            require_accuracy(result.after, assert_accuracy)
            facts = _facts(result, classifier, format_name, quantize, chosen)
            facts["seconds"] = round(time.monotonic() - started, 1)
            report = None  # a card is possible without
            with suppress(OSError, ValueError):
                report = json.loads((Path(source) / "report.json").read_text("utf-8"))
            (folder / "README.md").write_text(write_model_card(facts, format, classifier, report), "utf-8")
            write_json(folder / "export.json", facts)
            results.append(dataclasses.replace(result, folder=output, facts=facts))

        with explain_os_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_folder(output, fill, needed=8 * int(classifier.model.count_params()))
    return results[0]


def default_folder(source: str | Path, format_name: str, quantize: str | None = None) -> Path:
    """`exports/flowers-1-litert-int8`, in the working directory."""
    name = Path(source).absolute().name.removesuffix(".keras")
    return Path("exports", "-".join(filter(None, [name, format_name, quantize])))


def _write_and_prove(
    classifier: Classifier,
    format: ExportFormat,
    quantize: str | None,
    images: ProofImages,
    folder: Path,
    terminal: Terminal,
) -> ExportResult:
    """Write the model and classes.txt into `folder`, open them and compare; CheckFailed where they differ."""
    network = float32_network(classifier)

    def calibration() -> Iterator[np.ndarray]:
        paths = images.calibration
        for batch in image_batches(image_reader(paths, classifier.transform), np.arange(len(paths)), 1):
            if not batch.problems:
                yield batch.images.astype(np.float32)

    try:
        with terminal.stage(f"Converting to {format.title}") as update:
            update(0, None)
            with quiet_converters():
                format.write(ExportJob(classifier, network, quantize, calibration), folder)
    except FinetuneError:
        raise
    except Exception as error:  # a converter can raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise  # `explain_os_errors` explains what the disk says
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise WeightsError(
            f"{classifier.row.title} could not be converted to {format.title}: {reason}",
            hint="Try another --format; --debug shows the whole message.",
        ) from error
    with terminal.stage(f"Comparing in {format.runtime}") as update:
        outputs = run_both(classifier, network, format, folder, images, terminal, update)
    label_type, thresholds = classifier.label_type, classifier.thresholds
    parity = compare_outputs(outputs.reference, outputs.exported, label_type, thresholds)
    parity.require(LIMITS[quantize], format.title, images)
    bytes_parity = None
    if outputs.from_bytes is not None:
        bytes_parity = compare_file_bytes(outputs.reference, outputs.from_bytes, label_type, thresholds)
        if bytes_parity.n:
            bytes_parity.require(BYTES_LIMIT, f"{format.title} from image bytes", images)
    before = after = None
    if images.labels is not None:
        task = task_for(label_type)
        before = task.accuracy(outputs.reference, images.labels, thresholds)
        after = task.accuracy(outputs.exported, images.labels, thresholds)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classifier.classes), "utf-8")
    return ExportResult(folder, format, parity, bytes_parity, before, after, facts={})


def float32_network(classifier: Classifier) -> Any:
    """Pixels -> probabilities as one Keras model in float32, whatever the device computes in."""
    model = classifier.model
    if any(layer.dtype_policy.name != "float32" for layer in model.layers):

        def copy_layer(layer: Any) -> Any:
            return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})

        model = keras.models.clone_model(model, clone_function=copy_layer)
        model.set_weights(classifier.model.get_weights())
    activation = keras.layers.Activation(classifier.label_type.activation, name="probabilities", dtype="float32")
    return keras.Model(model.inputs[0], activation(model.output), name=model.name)


def _facts(
    result: ExportResult, classifier: Classifier, format_name: str, quantize: str | None, images: ProofImages
) -> dict[str, Any]:
    """export.json: everything a program needs to use the files and to know where they are from."""
    spec, format, size = classifier.spec, result.format, classifier.spec.image_size
    accuracy = bytes_parity = label_thresholds = None
    if result.before and result.after:
        before, after = dataclasses.asdict(result.before), dataclasses.asdict(result.after)
        accuracy = {"n": result.parity.n, "before": before, "after": after}
    if result.bytes_parity:
        bytes_parity = {**dataclasses.asdict(result.bytes_parity), "limit": dataclasses.asdict(BYTES_LIMIT)}
    if spec.multi_label:
        label_thresholds = dict(zip(classifier.classes, classifier.thresholds.tolist(), strict=True))
    files = {}
    for path in sorted(path for path in result.folder.rglob("*") if path.is_file()):
        name = path.relative_to(result.folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return {
        "name": classifier.name,
        "format": format_name,
        "file": format.file,
        "quantize": quantize,
        "backbone": spec.backbone,
        "weights": classifier.weights_hash,
        "input": {"shape": [size, size, 3], "dtype": "float32", "range": [0, 255], "channels": "RGB"},
        "transform": dataclasses.asdict(classifier.transform),
        "output": {"values": format.output, "classes": len(classifier.classes)},
        "thresholds": precision_thresholds(spec.confidences),
        "label_thresholds": label_thresholds,
        "runtime": f"{format.runtime} {version(format.runtime)}",
        "pictures": images.source,
        "calibration": images.calibration_source if quantize == "int8" else None,
        "parity": {**dataclasses.asdict(result.parity), "limit": dataclasses.asdict(LIMITS[quantize])},
        "bytes_parity": bytes_parity,
        "accuracy": accuracy,
        "files": files,
        "seconds": 0.0,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"finetune": finetune.__version__, **library_versions()},
    }


def precision_thresholds(table: Sequence[RiskCoveragePoint]) -> list[dict[str, float]]:
    """The point of `table` for each of `PRECISIONS` that it can promise: below its threshold, predict "unknown"."""
    points: list[RiskCoveragePoint] = []
    for precision in PRECISIONS:
        point = threshold_for_precision(table, precision)
        if point is not None and point not in points:
            points.append(point)
    return [point._asdict() for point in points]

"""Out of the run directory and into someone's product: a folder with the model, its class names and a model card.

    found = export.export("runs/flowers-1", "litert", quantize="int8")
    found.folder                        # exports/flowers-1-litert-int8
    found.agreement                     # share of the test images with the same answer as before

Nothing leaves unproven. What was written is opened by the runtime that will run it and answers the user's own
images; where it says something else than the classifier did, the export fails and leaves nothing.
"""

import dataclasses
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.config import load_config
from finetune.data import MULTICLASS, LabelType, image_batches, image_reader, pad_batch, reopen_dataset
from finetune.evaluation import Proportion, require_accuracy, task_for, threshold_for_precision
from finetune.export.formats import ExportFormat, ExportJob, find_format, open_bytes
from finetune.export.model_card import read_report, write_model_card
from finetune.models import Classifier, find_inputs, inference_function, load_classifier
from finetune.runs import open_run
from finetune.utils import (
    CheckFailed,
    DataError,
    FinetuneError,
    ProgressCallback,
    Terminal,
    UsageError,
    WeightsError,
    atomic_write_folder,
    explain_os_errors,
    file_sha256,
    keras,
    library_versions,
    silence_cpp_logs,
    tf,
    write_json,
)

CALIBRATION = 200  # images for int8; more change nothing
BATCH = 32
PRECISIONS = (0.9, 0.95, 0.98, 0.99)  # for which export.json has a threshold
TIE = 2e-4  # two classes, or a label and its threshold, this close in probability may change places in rounding
UNIT = 1e-4  # largest difference of a probability that float32 is allowed


@dataclass(frozen=True)
class Limit:
    """What an export must reach: top-1 agreement with the classifier, and the largest difference of a probability."""

    agreement: float
    difference: float | None = None


LIMITS = {None: Limit(1.0, UNIT), "float16": Limit(0.99), "int8": Limit(0.97)}
BYTES_LIMIT = Limit(0.97)  # TensorFlow's decoder and resize instead of ours: see `serving`


@dataclass(frozen=True)
class Images:
    """What an export is tried on. `labels` are class numbers, None where nobody knows them."""

    what: str
    paths: Sequence[str]
    labels: np.ndarray | None = None
    calibration: Sequence[str] = ()
    calibration_what: str = ""


@dataclass(frozen=True)
class Parity:
    """The same images before and after. `agreement` counts a tie within `TIE` as the same answer."""

    n: int
    agreement: float
    largest_difference: float
    undecodable: int = 0  # files that the runtime itself could not decode; not among the n

    def meets(self, limit: Limit) -> bool:
        allowed = math.inf if limit.difference is None else limit.difference
        return self.n > 0 and self.agreement >= limit.agreement and self.largest_difference <= allowed  # NaN is not


@dataclass(frozen=True)
class ExportResult:
    """A finished export. Accuracies are None without labels; `facts` is the content of export.json."""

    folder: Path
    format: ExportFormat
    parity: Parity
    bytes_parity: Parity | None
    before: Proportion | None
    after: Proportion | None
    facts: dict[str, Any]

    @property
    def agreement(self) -> float:
        return self.parity.agreement


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
    """Writes the classifier `source` (a run, a .keras file, a backbone) into a new folder, and proves it equal.

    It is tried on `images` (files, folders, globs), else on the test images of a run, else on two photos that come
    with scikit-learn. Raises CheckFailed, and leaves nothing, when it differs by more than `LIMITS` or is less
    accurate than `assert_accuracy`; UsageError for what cannot be done; WeightsError for what cannot be converted.
    """
    terminal = terminal or Terminal(quiet=True)
    began = time.monotonic()
    format = find_format(format_name, quantize)
    output = output or default_folder(source, format_name, quantize)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} exists already.", hint="Give another folder with --output, or remove it.")
    classifier = load_classifier(source)
    with ExitStack() as stack:
        with terminal.stage("Checking the images") as update:
            tried = _images(source, images, quantize, update, stack)
        if assert_accuracy is not None and tried.labels is None:
            raise UsageError(
                f"--assert-accuracy needs labelled images, and {tried.what} have no labels.",
                hint="Export a run that has a test split, without --images.",
            )
        work = _Work(source, classifier, format, format_name, quantize, tried, assert_accuracy, terminal, began)
        with explain_os_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        made: list[ExportResult] = []
        atomic_write_folder(output, lambda folder: made.append(work.fill(folder)), needed=_space(classifier))
    return dataclasses.replace(made[0], folder=output)


def default_folder(source: str | Path, format_name: str, quantize: str | None = None) -> Path:
    """`exports/flowers-1-litert-int8`, in the working directory."""
    name = Path(source).absolute().name.removesuffix(".keras")
    return Path("exports", "-".join(filter(None, [name, format_name, quantize])))


def _space(classifier: Classifier) -> int:
    return 8 * int(classifier.model.count_params())


@dataclass(frozen=True)
class _Work:
    source: str | Path
    classifier: Classifier
    format: ExportFormat
    name: str
    quantize: str | None
    images: Images
    assert_accuracy: float | None
    terminal: Terminal
    began: float

    def fill(self, folder: Path) -> ExportResult:
        """Writes, opens, compares and describes; raises before anything is left."""
        network = _network(self.classifier)
        job = ExportJob(self.classifier, network, self.quantize, self._calibration)
        with self.terminal.stage(f"Converting to {self.format.title}") as update, self._translated(), _quietly():
            update(0, None)
            self.format.write(job, folder)
        with self.terminal.stage(f"Comparing in {self.format.runtime}") as update:
            reference, exported, decoded = self._answers(folder, network, update)
        kind = self.classifier.label_type, self.classifier.thresholds
        parity = compare_outputs(reference, exported, *kind)
        _demand(parity, LIMITS[self.quantize], self.format.title, self.images)
        bytes_parity = None if decoded is None else compare_file_bytes(reference, decoded, *kind)
        if bytes_parity is not None and bytes_parity.n:
            _demand(bytes_parity, BYTES_LIMIT, "SavedModel from image bytes", self.images)
        before, after = (self._accuracy(answers) for answers in (reference, exported))
        require_accuracy(after, self.assert_accuracy)
        made = ExportResult(folder, self.format, parity, bytes_parity, before, after, facts={})
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.classifier.classes), "utf-8")
        facts = self._facts(made)
        (folder / "README.md").write_text(write_model_card(facts, self.classifier, self._report()), "utf-8")
        write_json(folder / "export.json", facts)
        return dataclasses.replace(made, facts=facts)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FinetuneError:
            raise
        except OSError as error:
            if error.errno is not None:
                raise  # the disk: `files` explains it
            raise self._cannot(error) from error
        except Exception as error:
            raise self._cannot(error) from error

    def _cannot(self, error: Exception) -> WeightsError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return WeightsError(
            f"{self.classifier.row.title} could not be converted to {self.format.title}: {reason}",
            hint="Try another --format; --debug shows the whole message.",
        )

    def _calibration(self) -> Iterator[np.ndarray]:
        paths = self.images.calibration
        read = image_reader(paths, self.classifier.transform)
        for batch in image_batches(read, np.arange(len(paths)), 1):
            if not batch.problems:
                yield batch.images.astype(np.float32)

    def _answers(
        self, folder: Path, network: Any, update: ProgressCallback
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Probabilities (n, classes) of the images: of the classifier, of the export, of its other signature."""
        with _quietly():
            run = self.format.open(folder)
            decode = open_bytes(folder) if self.name == "saved_model" else None
        trained = _on_cpu(inference_function(network))
        paths = list(self.images.paths)
        read = image_reader(paths, self.classifier.transform)
        reference, exported, decoded = [], [], []
        unread: dict[int, str] = {}
        for batch in image_batches(read, np.arange(len(paths)), BATCH):
            good = [at for at, index in enumerate(batch.indices) if int(index) not in batch.problems]
            pixels = pad_batch(batch.images, BATCH).astype(np.float32)
            reference.append(trained(pixels)[good])
            exported.append(run(pixels[: len(batch.indices)])[good])
            if decode is not None:
                decoded += [_decoded(decode, paths[int(batch.indices[at])], reference[-1].shape[1]) for at in good]
            unread |= batch.problems
            update(int(batch.indices[-1]) + 1, len(paths))
        _judge_unread(unread, self.images, self.terminal)
        return np.concatenate(reference), np.concatenate(exported), np.stack(decoded) if decoded else None

    def _accuracy(self, answers: np.ndarray) -> Proportion | None:
        labels = self.images.labels
        if labels is None:
            return None
        return task_for(self.classifier.label_type).accuracy(answers, labels, self.classifier.thresholds)

    def _report(self) -> dict[str, Any] | None:
        path = Path(self.source) / "report.json"
        return read_report(path) if path.is_file() else None

    def _facts(self, made: ExportResult) -> dict[str, Any]:
        """export.json: everything a program needs to use the files and to know where they are from."""
        classifier, size = self.classifier, self.classifier.spec.image_size
        content = sorted(path for path in made.folder.rglob("*") if path.is_file())
        accuracy = None
        if made.before and made.after:
            before, after = dataclasses.asdict(made.before), dataclasses.asdict(made.after)
            accuracy = {"n": made.parity.n, "before": before, "after": after}
        return {
            "name": classifier.name,
            "format": self.name,
            "file": self.format.file,
            "quantize": self.quantize,
            "backbone": classifier.spec.backbone,
            "weights": classifier.weights_hash,
            "input": {"shape": [size, size, 3], "dtype": "float32", "range": [0, 255], "channels": "RGB"},
            "transform": dataclasses.asdict(classifier.transform),
            "output": {
                "values": "logits" if self.name == "keras" else "probabilities",
                "classes": len(classifier.classes),
            },
            "thresholds": _thresholds(classifier),
            "label_thresholds": dict(zip(classifier.classes, classifier.thresholds.tolist(), strict=True))
            if classifier.spec.multi_label
            else None,
            "runtime": self.format.runtime_version,
            "pictures": self.images.what,
            "calibration": self.images.calibration_what if self.quantize == "int8" else None,
            "parity": {**dataclasses.asdict(made.parity), "limit": dataclasses.asdict(LIMITS[self.quantize])},
            "bytes_parity": made.bytes_parity
            and {**dataclasses.asdict(made.bytes_parity), "limit": dataclasses.asdict(BYTES_LIMIT)},
            "accuracy": accuracy,
            "files": {
                path.relative_to(made.folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in content
            },
            "seconds": round(time.monotonic() - self.began, 1),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"finetune": version("finetune"), **library_versions()},
        }


def _thresholds(classifier: Classifier) -> list[dict[str, float]]:
    """Below which probability to answer "unknown", for answers that are right so often; from validation images."""
    table = classifier.spec.confidences
    points = dict.fromkeys(filter(None, (threshold_for_precision(table, precision) for precision in PRECISIONS)))
    return [point._asdict() for point in points]


# ------------------------------------------------------------------------------------------------ the network


def _network(classifier: Classifier) -> Any:
    """Pixels -> probabilities as one Keras model in float32, whatever the device computes in."""
    model, activation = classifier.model, classifier.label_type.activation
    if any(layer.dtype_policy.name != "float32" for layer in model.layers):
        copy = keras.models.clone_model(model, clone_function=_in_float32)
        copy.set_weights(model.get_weights())
        model = copy
    layers = {"softmax": keras.layers.Softmax, "sigmoid": partial(keras.layers.Activation, "sigmoid")}
    probabilities = layers[activation](name="probabilities", dtype="float32")(model.output)
    return keras.Model(model.inputs[0], probabilities, name=model.name)


def _in_float32(layer: Any) -> Any:
    return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})


def _on_cpu(run: Callable[[Any], list[Any]]) -> Callable[[np.ndarray], np.ndarray]:
    """There float32 means float32; a GPU may round to TensorFloat-32."""

    def forward(pixels: np.ndarray) -> np.ndarray:
        with tf.device("/CPU:0"):
            return np.asarray(run(pixels)[0])

    return forward


@contextmanager
def _quietly() -> Iterator[None]:
    """Converters chat and warn about themselves."""
    with warnings.catch_warnings(), silence_cpp_logs():
        warnings.simplefilter("ignore")
        yield


# ------------------------------------------------------------------------------------------------ the proof


def compare_outputs(
    reference: np.ndarray, exported: np.ndarray, label_type: LabelType = MULTICLASS, thresholds: Any = None
) -> Parity:
    """Probabilities (n, classes) before and after; what is not a number agrees with nothing."""
    if not len(reference):
        return Parity(0, 0.0, 0.0)
    same = task_for(label_type).same_prediction(reference, exported, thresholds, TIE) * np.isfinite(exported).all(
        axis=1
    )
    return Parity(len(reference), float(same.mean()), float(np.abs(reference - exported).max()))


def compare_file_bytes(
    reference: np.ndarray, decoded: np.ndarray, label_type: LabelType = MULTICLASS, thresholds: Any = None
) -> Parity:
    """As `compare`; a row of NaN is a file that the runtime could not decode, which is counted apart."""
    known = np.isfinite(decoded).all(axis=1)
    return dataclasses.replace(
        compare_outputs(reference[known], decoded[known], label_type, thresholds), undecodable=int((~known).sum())
    )


def _demand(parity: Parity, limit: Limit, what: str, images: Images) -> None:
    if parity.meets(limit):
        return
    allowed = "" if limit.difference is None else f" (at most {limit.difference:g} is allowed)"
    raise CheckFailed(
        f"{what} does not say what the classifier says: on {parity.n:,} images of {images.what} the answer is "
        f"the same in {parity.agreement:.1%} ({limit.agreement:.0%} is needed), and a probability differs by "
        f"{parity.largest_difference:.2g}{allowed}. Nothing was written.",
        hint="Try another --format, or another or no --quantize.",
    )


def _judge_unread(unread: Mapping[int, str], images: Images, terminal: Terminal) -> None:
    """Images of a run were read before; of others, those that cannot be read are left out and named."""
    if not unread:
        return
    index, reason = next(iter(unread.items()))
    what = f"{len(unread):,} of {len(images.paths):,} images cannot be read, such as {images.paths[index]}: {reason}"
    if images.labels is not None or len(unread) == len(images.paths):
        raise DataError(what)
    terminal.warn(what)


def _decoded(decode: Callable[[bytes], np.ndarray | None], path: str, classes: int) -> np.ndarray:
    found = decode(Path(path).read_bytes())
    return np.full(classes, np.nan, np.float32) if found is None else found


# ---------------------------------------------------------------------------------------------- the images


def _images(
    source: str | Path, given: Sequence[str], quantize: str | None, update: ProgressCallback, stack: ExitStack
) -> Images:
    if given:
        return _given_images(given, quantize)
    if (Path(source) / "splits.csv").is_file():
        return _own_images(Path(source), update)
    if quantize == "int8":
        raise UsageError(
            f"int8 is calibrated on images like those to come, and {source} has none of its own.",
            hint="Give some with --images FOLDER.",
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="finetune-")))
    return Images("the two photos of scikit-learn, in crops", sample_images(folder))


def _own_images(source: Path, update: ProgressCallback) -> Images:
    run = open_run(source)
    config = load_config(run.config_yaml)
    dataset = reopen_dataset(config.data, run.splits_csv, run.classes_txt, progress=update)
    split = "test" if len(dataset.indices("test")) else "validation"
    chosen, train = dataset.indices(split), dataset.indices("train")
    spread = np.random.default_rng(config.seed).permutation(train)[:CALIBRATION]
    return Images(
        f"the {split} split of {dataset.name}",
        dataset.paths(chosen),
        dataset.labels[chosen],
        dataset.paths(spread),
        f"{len(spread)} training images",
    )


def _given_images(given: Sequence[str], quantize: str | None) -> Images:
    paths, what = find_inputs(given), ", ".join(given)
    if quantize != "int8":
        return Images(what, paths)
    if len(paths) < 2:
        raise DataError(
            f"{what}: int8 needs images to be calibrated on and others to be tried on.",
            hint="Give a folder of 20 or more.",
        )
    calibration = paths[::2][:CALIBRATION]
    return Images(what, paths[1::2], None, calibration, f"{len(calibration)} other images of {what}")


def sample_images(folder: Path) -> list[str]:
    """Writes 24 crops of the photos that scikit-learn brings (a temple, a flower) and returns their paths."""
    from sklearn.datasets import load_sample_images

    paths: list[str] = []
    for photo in load_sample_images().images:
        height, width = photo.shape[:2]
        for number in range(12):
            top, left = (number // 4) * (height - 256) // 2, (number % 4) * (width - 256) // 3
            path = folder / f"{len(paths):02}.png"
            Image.fromarray(photo[top : top + 256, left : left + 256]).save(path)
            paths.append(str(path))
    return paths

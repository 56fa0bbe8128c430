"""The proof of an export: the same images through the classifier and through what was exported, compared.

images = choose_images("runs/flowers-1")            its test images, with labels
outputs = run_both(classifier, network, format, folder, images, ...)
parity = compare_outputs(outputs.reference, outputs.exported)
parity.require(LIMITS["int8"], "LiteRT", images)    CheckFailed where they differ too much
"""

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.config import load_config
from finetune.data import MULTICLASS, LabelType, image_batches, image_reader, pad_batch, reopen_dataset
from finetune.evaluation import task_for
from finetune.export.formats import ExportFormat
from finetune.models import Classifier, find_inputs, inference_function
from finetune.runs import open_run
from finetune.utils import CheckFailed, DataError, ProgressCallback, Terminal, UsageError, silence_cpp_logs, tf

CALIBRATION_IMAGES = 200  # for int8; more change nothing
BATCH = 32
TIE = 2e-4  # two classes, or a label and its threshold, this close in probability may change places by rounding


@dataclass(frozen=True)
class Limit:
    """What an export must reach: top-1 agreement with the classifier, and the largest difference of a probability."""

    agreement: float
    difference: float | None = None


LIMITS = {None: Limit(1.0, 1e-4), "float16": Limit(0.99), "int8": Limit(0.97)}  # by quantisation
BYTES_LIMIT = Limit(0.97)  # TensorFlow's decoder and resize instead of Pillow's: see `serving`


@dataclass(frozen=True)
class ProofImages:
    """The images that an export is compared on, and those that int8 is calibrated on. `labels` are class numbers."""

    source: str  # what they are, for people
    paths: Sequence[str]
    labels: np.ndarray | None = None  # None where they are not known
    calibration: Sequence[str] = ()
    calibration_source: str = ""


@dataclass(frozen=True)
class Parity:
    """How equal predictions are before and after, on `n` images.

    `agreement` is the fraction with the same prediction; classes closer than `TIE` may change places.
    """

    n: int
    agreement: float
    largest_difference: float  # of a probability
    undecodable: int = 0  # files that the runtime itself could not decode; not among the n

    def meets(self, limit: Limit) -> bool:
        allowed = math.inf if limit.difference is None else limit.difference
        return self.n > 0 and self.agreement >= limit.agreement and self.largest_difference <= allowed  # NaN is not

    def require(self, limit: Limit, title: str, images: ProofImages) -> None:
        """CheckFailed unless it meets `limit`."""
        if self.meets(limit):
            return
        allowed = "" if limit.difference is None else f" (at most {limit.difference:g} is allowed)"
        raise CheckFailed(
            f"{title} does not predict what the classifier predicts: on {self.n:,} images of {images.source} the "
            f"prediction is the same in {self.agreement:.1%} ({limit.agreement:.0%} is required), and a probability "
            f"differs by {self.largest_difference:.2g}{allowed}. Nothing was written.",
            hint="Try another --format, or another or no --quantize.",
        )


def compare_outputs(
    reference: np.ndarray, exported: np.ndarray, label_type: LabelType = MULTICLASS, thresholds: Any = None
) -> Parity:
    """The parity of probabilities (n, classes) before and after; a row that is not finite agrees with nothing."""
    if not len(reference):
        return Parity(0, 0.0, 0.0)
    same = task_for(label_type).same_prediction(reference, exported, thresholds, TIE)
    finite = np.isfinite(exported).all(axis=1)
    return Parity(len(reference), float((same * finite).mean()), float(np.abs(reference - exported).max()))


def compare_file_bytes(
    reference: np.ndarray, decoded: np.ndarray, label_type: LabelType = MULTICLASS, thresholds: Any = None
) -> Parity:
    """The same; a row of NaN is a file that the runtime could not decode, which is counted separately."""
    known = np.isfinite(decoded).all(axis=1)
    parity = compare_outputs(reference[known], decoded[known], label_type, thresholds)
    return dataclasses.replace(parity, undecodable=int((~known).sum()))


# ------------------------------------------------------------------------------------------------- running both


@dataclass(frozen=True)
class Outputs:
    """Probabilities (n, classes) of the same images."""

    reference: np.ndarray  # of the classifier
    exported: np.ndarray
    from_bytes: np.ndarray | None  # of the export where it decodes the files itself; NaN where it cannot


def run_both(
    classifier: Classifier,
    network: Any,
    format: ExportFormat,
    folder: Path,
    images: ProofImages,
    terminal: Terminal,
    progress: ProgressCallback,
) -> Outputs:
    """Run `images` through `network` (pixels -> probabilities) and through the export in `folder`.

    Images that cannot be read are left out and named; DataError where they are those of a run, or all.
    """
    with quiet_converters():
        run = format.open(folder)
        run_bytes = format.open_bytes(folder) if format.open_bytes else None
    trained = inference_function(network)
    paths = list(images.paths)
    reference, exported, from_bytes = [], [], []
    unreadable: dict[int, str] = {}
    for batch in image_batches(image_reader(paths, classifier.transform), np.arange(len(paths)), BATCH):
        readable = [row for row, index in enumerate(batch.indices) if int(index) not in batch.problems]
        pixels = pad_batch(batch.images, BATCH).astype(np.float32)
        with tf.device("/CPU:0"):  # there float32 means float32; a GPU may round to TensorFloat-32
            reference.append(np.asarray(trained(pixels)[0])[readable])
        exported.append(run(pixels[: len(batch.indices)])[readable])
        if run_bytes is not None:
            for row in readable:
                probabilities = run_bytes(Path(paths[int(batch.indices[row])]).read_bytes())
                missing = np.full(reference[-1].shape[1], np.nan, np.float32)
                from_bytes.append(missing if probabilities is None else probabilities)
        unreadable |= batch.problems
        progress(int(batch.indices[-1]) + 1, len(paths))
    if unreadable:
        index, reason = next(iter(unreadable.items()))
        message = f"{len(unreadable):,} of {len(paths):,} images cannot be read, such as {paths[index]}: {reason}"
        if images.labels is not None or len(unreadable) == len(paths):
            raise DataError(message)
        terminal.warn(message)
    return Outputs(np.concatenate(reference), np.concatenate(exported), np.stack(from_bytes) if from_bytes else None)


@contextmanager
def quiet_converters() -> Iterator[None]:
    """Converters and runtimes print and warn about themselves."""
    with warnings.catch_warnings(), silence_cpp_logs():
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------------------------------------- which images


def choose_images(
    source: str | Path,
    inputs: Sequence[str] = (),
    *,
    quantize: str | None = None,
    progress: ProgressCallback,
    stack: ExitStack,
) -> ProofImages:
    """The user's `inputs` (files, folders, globs), else the test images of the run `source`, else two photos that come
    with scikit-learn, in crops in a temporary folder that `stack` removes.

    UsageError or DataError where there are too few for int8, which needs others for calibration.
    """
    if inputs:
        paths, names = find_inputs(inputs), ", ".join(inputs)
        if quantize != "int8":
            return ProofImages(names, paths)
        if len(paths) < 2:
            raise DataError(
                f"{names}: int8 needs images to be calibrated on and others to be compared on.",
                hint="Give a folder of 20 or more.",
            )
        calibration = paths[::2][:CALIBRATION_IMAGES]
        return ProofImages(names, paths[1::2], None, calibration, f"{len(calibration)} other images of {names}")
    if (Path(source) / "splits.csv").is_file():
        return _images_of_run(Path(source), progress)
    if quantize == "int8":
        raise UsageError(
            f"int8 is calibrated on images like those it will see, and {source} has none of its own.",
            hint="Give some with --images FOLDER.",
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="finetune-")))
    return ProofImages("the two photos of scikit-learn, in crops", write_sample_images(folder))


def _images_of_run(source: Path, progress: ProgressCallback) -> ProofImages:
    run = open_run(source)
    config = load_config(run.config_yaml)
    dataset = reopen_dataset(config.data, run.splits_csv, run.classes_txt, progress=progress)
    split = "test" if len(dataset.indices("test")) else "validation"
    compared, train = dataset.indices(split), dataset.indices("train")
    calibration = np.random.default_rng(config.seed).permutation(train)[:CALIBRATION_IMAGES]
    return ProofImages(
        f"the {split} split of {dataset.name}",
        dataset.paths(compared),
        dataset.labels[compared],
        dataset.paths(calibration),
        f"{len(calibration)} training images",
    )


def write_sample_images(folder: Path) -> list[str]:
    """Write 24 crops of the photos that scikit-learn brings (a temple, a flower) and return their paths."""
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

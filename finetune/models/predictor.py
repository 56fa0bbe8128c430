"""Answers for images: which classes, how sure, and what could not be read.

for answer in predict(classifier, ["dog.jpg"], top=5):
    answer.predictions[0].name, answer.predictions[0].probability
"""

import csv
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from finetune.backbones import Level, wordnet_levels
from finetune.data import IMAGE_SUFFIXES, SEPARATOR, LabelType, find_images, is_bucket_url, list_bucket
from finetune.utils import DataError, UsageError, atomic_write, csv_cell, did_you_mean, explain_os_errors, printable

UNKNOWN = "unknown"  # the answer where the likeliest class is not likely enough
PREDICT_BATCH = 32  # images that go through the network together


class Predictor(Protocol):
    """What is asked of a classifier here."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def label_type(self) -> LabelType: ...

    @property
    def thresholds(self) -> np.ndarray: ...

    def probabilities(
        self, paths: Sequence[str | Path], *, batch_size: int, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]: ...


@dataclass(frozen=True)
class ClassScore:
    """One class and its probability (0..1); `id` is the WordNet id of an ImageNet class, else empty."""

    name: str
    id: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the classifier says to one image: the likeliest classes, best first, or why there is no answer."""

    path: str
    predictions: tuple[ClassScore, ...] = ()
    error: str = ""
    levels: tuple[Level, ...] = ()  # from the likeliest ImageNet class up to "animal", where asked for
    labels: tuple[ClassScore, ...] | None = None  # those over their thresholds, where an image has any number of them

    def joined(self, others: Iterable["Prediction"]) -> "Prediction":
        """This answer, followed by what other classifiers said to the same image."""
        return replace(self, predictions=sum((other.predictions for other in others), self.predictions))

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"path": self.path, "error": self.error}
        levels = [{**one._asdict(), "probability": round(one.probability, 6)} for one in self.levels]
        return {
            "path": self.path,
            "predictions": [
                {"class": one.name, "id": one.id, "probability": round(one.probability, 6)} for one in self.predictions
            ],
            **({"labels": [one.name for one in self.labels]} if self.labels is not None else {}),
            **({"levels": levels} if levels else {}),
        }


def find_inputs(inputs: Sequence[str | Path]) -> list[str]:
    """Files as they are, folders and buckets with every image below them, globs expanded; in order, each once.

    Raises DataError, naming the input, when there is no such file, or no image in a folder or glob.
    """
    found: list[str] = []
    for given in map(str, inputs):
        if is_bucket_url(given):
            images = list_bucket(given)
        elif os.path.isdir(given):
            images = [str(path) for path in find_images(given)[0]]
        elif os.path.lexists(given):
            images = [given]
        else:
            images = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
        if not images:
            raise _nothing(given)
        found.extend(images)
    return list(dict.fromkeys(found))


def read_path_list(file: Path) -> list[str]:
    """The images that `file` names, one a line, as they stand there. DataError when it cannot be read or is empty.

    Whether they exist is seen when it is their turn: a list may have a hundred million lines.
    """
    try:
        lines = file.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{printable(str(file))}: cannot be read: {error.strerror}") from None
    found = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not found:
        raise DataError(f"{printable(str(file))}: names no image.", hint="One path or URL a line.")
    return found


def shard(paths: Sequence[str], number: int, count: int) -> list[str]:
    """Part `number` (1 to `count`) of `paths`: all parts, one after the other, are `paths`.

    They are of whole batches, so that each image is where it would be without parts: its place in a batch may change
    the last bit of an answer. None is larger than another by more than one batch.
    """
    batches = -(-len(paths) // PREDICT_BATCH)
    first, last = (batches * at // count * PREDICT_BATCH for at in (number - 1, number))
    return list(paths[first:last])


def _nothing(given: str) -> DataError:
    shown = printable(given)
    if os.path.isdir(given):
        return DataError(f"{shown}: no images in this folder.", hint=f"Known: {', '.join(sorted(IMAGE_SUFFIXES))}")
    if glob.has_magic(given):
        return DataError(f"{shown}: this pattern matches no file.")
    folder, name = os.path.split(given)
    near = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return DataError(f"{shown}: no such file or folder.{did_you_mean(name, near)}")


def predict_images(
    classifier: Predictor,
    paths: Sequence[str | Path],
    *,
    top: int = 5,
    level: bool = False,
    reject: float = 0.0,
    batch_size: int = PREDICT_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Prediction]:
    """One answer per path, in order, as they come; an image that cannot be read is an answer with an error.

    With `level`, also what WordNet says above the likeliest class (UsageError for classes not of ImageNet). An answer
    less sure than `reject` (0..1) begins with `unknown`, and its probability is that the likeliest class is wrong.
    """
    for start, rows, problems in classifier.probabilities(paths, batch_size=batch_size, progress=progress):
        for offset, row in enumerate(rows):
            index = start + offset
            answer = _answer(classifier, str(paths[index]), row, top, problems.get(index, ""))
            if answer.predictions and (best := answer.predictions[0].probability) < reject:
                unknown = ClassScore(UNKNOWN, "", 1 - best)
                answer = replace(answer, predictions=(unknown, *answer.predictions[: top - 1]))
            if level and not answer.error:
                answer = replace(answer, levels=wordnet_levels(row, classifier.ids, classifier.classes))
            yield answer


def _answer(classifier: Predictor, path: str, row: np.ndarray, top: int, problem: str) -> Prediction:
    if problem:
        return Prediction(path, error=problem)
    if not np.isfinite(row).all():
        return Prediction(path, error="the network's output is not a number; its weights are damaged")
    ranked = np.argsort(-row, kind="stable")
    predictions = [ClassScore(classifier.classes[at], classifier.ids[at], float(row[at])) for at in ranked]
    said = classifier.label_type.predicted_classes(row, classifier.thresholds)
    labels = None if said is None else tuple(predictions[at] for at in np.flatnonzero(said[ranked]))
    return Prediction(path, tuple(predictions[:top]), labels=labels)


# ---------------------------------------------------------------------------------------------------- writing


class JsonWriter:
    """One JSON array, a line per image, written as the answers come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._between = "[\n "

    def write(self, answer: Prediction) -> None:
        self._stream.write(self._between + json.dumps(answer.to_json()))
        self._between = ",\n "

    def close(self) -> None:
        self._stream.write("\n]\n" if self._between.startswith(",") else "[]\n")


class CsvWriter:
    """A row per image: path, then class, id and probability of each of the `top` answers, then error.

    With `labels`, for images that have any number of them, a column before the last with those over their thresholds.
    Every row is written out at once and is one line, so that an interrupted `predict` can be gone on with.
    """

    def __init__(self, stream: TextIO, top: int, *, headed: bool = False, labels: bool = False) -> None:
        self._stream = stream
        self._writer = csv.writer(stream)
        self._top, self._labels = top, labels
        if not headed:
            self._writer.writerow(csv_header(top, labels))

    def write(self, answer: Prediction) -> None:
        cells: list[str] = []
        for one in answer.predictions:
            cells += [one.name, one.id, f"{one.probability:.6f}"]
        cells += [""] * (3 * self._top - len(cells))
        if self._labels:
            cells.append(SEPARATOR.join(one.name for one in answer.labels or ()))
        self._writer.writerow(map(csv_cell, (printable(answer.path), *cells, answer.error)))
        self._stream.flush()


def csv_header(top: int, labels: bool = False) -> list[str]:
    """The first row of a table with `top` answers an image."""
    answers = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "id", "probability")]
    return ["path", *answers, *(["labels"] if labels else []), "error"]


def partial_path(table: Path) -> Path:
    """Where the rows of `table` are until it is complete."""
    return table.with_name(f"{table.name}.part")


@dataclass
class PartialTable:
    """What an interrupted `predict` left: the first `size` bytes of `file` are whole rows, a crash cut the rest.

    `paths` and `classes` (of the likeliest answers) are cells as they stand there; `problems` the rows with an error.
    """

    file: Path | None = None
    size: int = 0
    paths: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)
    problems: list[Prediction] = field(default_factory=list)

    def has(self, path: str) -> bool:
        """Whether the image has its row already."""
        return csv_cell(printable(path)) in self.paths


def read_partial(table: Path, top: int, labels: bool = False) -> PartialTable:
    """The rows so far of `table`; of nothing if it was never begun. UsageError when they have other columns."""
    found = PartialTable(next((file for file in (partial_path(table), table) if file.exists()), None))
    if found.file is None:
        return found
    head = csv_header(top, labels)
    header = (",".join(head) + "\r\n").encode()
    with explain_os_errors(found.file), found.file.open("rb") as stream:
        first = stream.readline()
        if not header.startswith(first):
            raise UsageError(
                f"{found.file} has other columns than this command would write.",
                hint="Give the same --model, --top and --imagenet as then, or start anew with --overwrite.",
            )
        if first != header:
            return found
        found.size = len(first)
        for line in stream:
            row = next(csv.reader([line.decode("utf-8", "surrogateescape")]))
            if not line.endswith(b"\r\n") or len(row) != len(head):
                break
            found.size += len(line)
            found.paths.add(row[0])
            if row[-1]:
                found.problems.append(Prediction(row[0], error=row[-1]))
            else:
                found.classes.add(row[1])
    return found


@contextmanager
def open_table(target: Path, top: int, so_far: PartialTable, labels: bool = False) -> Iterator[CsvWriter]:
    """Rows for `target`, behind those `so_far`. It appears when it is complete; until then, and if it never is, they
    are in `part_of(target)`. Raises ResourceError."""
    part = partial_path(target)
    with explain_os_errors(target):
        if so_far.file == target:
            shutil.copyfile(target, part)
        with part.open("ab") as binary:
            binary.truncate(so_far.size)
        with part.open("a", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield CsvWriter(stream, top, headed=so_far.size > 0, labels=labels)
        atomic_write(target, part.replace)

"""Answers for pictures: which classes, how sure, and what could not be read.

for answer in predict(classifier, ["dog.jpg"], top=5):
    answer.predictions[0].name, answer.predictions[0].probability
"""

import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from finetune import images, wordnet
from finetune.errors import DataError, did_you_mean

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins with one of these


class Answers(Protocol):
    """What is asked of a classifier here."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    def probabilities(
        self, paths: Sequence[str | Path], *, batch_size: int, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]: ...


@dataclass(frozen=True)
class Prediction:
    """One class and its probability (0..1); `id` is the WordNet id of an ImageNet class, else empty."""

    name: str
    id: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What the classifier says to one picture: the likeliest classes, best first, or why there is no answer."""

    path: str
    predictions: tuple[Prediction, ...] = ()
    error: str = ""
    levels: tuple[wordnet.Level, ...] = ()  # from the likeliest ImageNet class up to "animal", where asked for

    def joined(self, others: Iterable["Answer"]) -> "Answer":
        """This answer, followed by what other classifiers said to the same picture."""
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
            **({"levels": levels} if levels else {}),
        }


def find_inputs(inputs: Sequence[str | Path]) -> list[str]:
    """Files as they are, folders with every picture below them, globs expanded; in order, each once.

    Raises DataError, naming the input, when there is no such file, or no picture in a folder or glob.
    """
    found: list[str] = []
    for given in map(str, inputs):
        if os.path.isdir(given):
            pictures = [str(path) for path in images.find_images(given)[0]]
        elif os.path.lexists(given):
            pictures = [given]
        else:
            pictures = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
        if not pictures:
            raise _nothing(given)
        found.extend(pictures)
    return list(dict.fromkeys(found))


def _nothing(given: str) -> DataError:
    shown = images.escape(given)
    if os.path.isdir(given):
        return DataError(
            f"{shown}: no pictures in this folder.", remedy=f"Known: {', '.join(sorted(images.IMAGE_SUFFIXES))}"
        )
    if glob.has_magic(given):
        return DataError(f"{shown}: this pattern matches no file.")
    folder, name = os.path.split(given)
    near = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return DataError(f"{shown}: no such file or folder.{did_you_mean(name, near)}")


def predict(
    classifier: Answers,
    paths: Sequence[str | Path],
    *,
    top: int = 5,
    level: bool = False,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Answer]:
    """One answer per path, in order, as they come; a picture that cannot be read is an answer with an error.

    With `level`, also what WordNet says above the likeliest class (UsageError for classes not of ImageNet).
    """
    for start, rows, problems in classifier.probabilities(paths, batch_size=batch_size, progress=progress):
        for offset, row in enumerate(rows):
            index = start + offset
            answer = _answer(classifier, str(paths[index]), row, top, problems.get(index, ""))
            if level and not answer.error:
                answer = replace(answer, levels=wordnet.levels(row, classifier.ids, classifier.classes))
            yield answer


def _answer(classifier: Answers, path: str, row: np.ndarray, top: int, problem: str) -> Answer:
    if problem:
        return Answer(path, error=problem)
    if not np.isfinite(row).all():
        return Answer(path, error="the network's output is not a number; its weights are damaged")
    best = np.argsort(-row, kind="stable")[:top]
    return Answer(
        path,
        tuple(Prediction(classifier.classes[at], classifier.ids[at], float(row[at])) for at in best),
    )


# ---------------------------------------------------------------------------------------------------- writing


class JsonArray:
    """One JSON array, a line per picture, written as the answers come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._between = "[\n "

    def write(self, answer: Answer) -> None:
        self._stream.write(self._between + json.dumps(answer.to_json()))
        self._between = ",\n "

    def close(self) -> None:
        self._stream.write("\n]\n" if self._between.startswith(",") else "[]\n")


class CsvTable:
    """A row per picture: path, then class, id and probability of each of the `top` answers, then error.

    Cells that a spreadsheet would take for a formula get an apostrophe in front.
    """

    def __init__(self, stream: TextIO, top: int) -> None:
        self._writer = csv.writer(stream)
        self._top = top
        columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "id", "probability")]
        self._writer.writerow(["path", *columns, "error"])

    def write(self, answer: Answer) -> None:
        cells: list[str] = []
        for one in answer.predictions:
            cells += [_safe(one.name), one.id, f"{one.probability:.6f}"]
        cells += [""] * (3 * self._top - len(cells))
        self._writer.writerow([_safe(images.escape(answer.path)), *cells, _safe(answer.error)])


def _safe(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) else cell

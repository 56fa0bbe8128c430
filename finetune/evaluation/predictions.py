"""predictions.csv: what a run predicts for every image that it was not trained on.

    write_predictions(run.predictions_csv, dataset, {"validation": p, "test": q}, classifier.thresholds)
    table = read_predictions(run.predictions_csv)
    table.correct[table.splits == "test"].mean()

One row per validation and test image: path (relative to the folder of the images), sha256, split, label, predicted,
then the probability of every class in the order of classes.txt. Several labels of an image stand in one cell, as in
splits.csv: `a|b`. Text that a spreadsheet would run as a formula has an apostrophe in front.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data import SEPARATOR, Dataset
from finetune.utils import DataError, atomic_write, csv_cell, printable

COLUMNS = ("path", "sha256", "split", "label", "predicted")


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """What predictions.csv says, with its text as it stands there; arrays of one length, except `classes`."""

    classes: tuple[str, ...]
    paths: np.ndarray
    hashes: np.ndarray  # SHA-256 of the files
    splits: np.ndarray  # "validation" or "test"
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray  # (n, classes) float64, 0..1

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is the label (n,); of several labels, none may be missing or too many."""
        return np.asarray(self.labels == self.predicted)

    @property
    def overlap(self) -> np.ndarray:
        """How correct each prediction of several labels is (n,), 0 to 1, as in their accuracy: the labels that are
        both predicted and true, divided by those that are either; 1 without any."""
        values = []
        for cells in zip(self.labels.tolist(), self.predicted.tolist(), strict=True):
            true, predicted = ({name.removeprefix("'") for name in cell.split(SEPARATOR) if name} for cell in cells)
            values.append(len(true & predicted) / len(true | predicted) if true | predicted else 1.0)
        return np.array(values)


def write_predictions(
    path: Path, dataset: Dataset, probabilities: Mapping[str, np.ndarray], thresholds: Any = None
) -> None:
    """Write the probabilities (images of the split, classes) of each split in `probabilities`, in the order of
    `dataset.indices(split)`. `thresholds` (classes,) are needed where images have any number of labels."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*COLUMNS, *map(csv_cell, dataset.classes)])
            for split, rows in probabilities.items():
                predicted = dataset.label_type.decide(rows, thresholds)
                for index, label, row in zip(dataset.indices(split), predicted, rows, strict=True):
                    names = dataset.names[index], dataset.hashes[index], split, dataset.text(index)
                    text = dataset.label_type.text(label, dataset.classes)
                    table.writerow([*map(csv_cell, (*names, text)), *(f"{value:.6g}" for value in row)])

    atomic_write(path, write)


def read_predictions(path: Path) -> PredictionTable:
    """What `write_predictions` wrote. DataError for a file that cannot be read or is something else."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(header[: len(COLUMNS)]) != COLUMNS:
            raise ValueError(f"its first line does not begin with {','.join(COLUMNS)}")
        classes = tuple(header[len(COLUMNS) :])
        text = np.array([row[: len(COLUMNS)] for row in rows], dtype=str).reshape(len(rows), len(COLUMNS))
        numbers = np.array([row[len(COLUMNS) :] for row in rows], dtype=np.float64).reshape(len(rows), len(classes))
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"{printable(path)} cannot be read: {printable(str(error))}") from None
    paths, hashes, splits, labels, predicted = text.T
    return PredictionTable(classes, paths, hashes, splits, labels, predicted, numbers)

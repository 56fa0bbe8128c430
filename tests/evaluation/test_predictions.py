"""predictions.csv: what is written is read, whatever the names are."""

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune.data import Dataset
from finetune.evaluation import read_predictions, write_predictions
from finetune.utils import DataError


def dataset(labels, classes=("cat", "=dog"), names=("a.png", "b,1.png", "c\udcff.png", "=d.png")):
    splits = np.array([0, 1, 2, 2], np.int8)
    return Dataset("x", Path("/x"), classes, names, labels, splits, tuple("0123"))


def test_a_table_has_every_image_that_was_not_trained_on(tmp_path):
    probabilities = {"validation": np.array([[0.25, 0.75]]), "test": np.array([[0.9, 0.1], [1 / 3, 2 / 3]])}
    write_predictions(tmp_path / "p.csv", dataset(np.array([0, 1, 0, 0])), probabilities)
    table = read_predictions(tmp_path / "p.csv")
    assert table.classes == ("cat", "'=dog")
    assert table.paths.tolist() == ["b,1.png", "c\udcff.png", "'=d.png"]
    assert table.hashes.tolist() == ["1", "2", "3"]
    assert table.splits.tolist() == ["validation", "test", "test"]
    assert table.labels.tolist() == ["'=dog", "cat", "cat"]
    assert table.predicted.tolist() == ["'=dog", "cat", "'=dog"]
    assert table.correct.tolist() == [True, True, False]
    np.testing.assert_allclose(table.probabilities, np.vstack(list(probabilities.values())), rtol=1e-5)


def test_several_labels_share_a_cell(tmp_path):
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], np.uint8)
    rows = {"test": np.array([[0.2, 0.3], [0.6, 0.9]])}
    write_predictions(tmp_path / "p.csv", dataset(labels), rows, thresholds=(0.5, 0.5))
    table = read_predictions(tmp_path / "p.csv")
    assert table.labels.tolist() == ["", "'=dog"]
    assert table.predicted.tolist() == ["", "cat|=dog"]
    assert table.correct.tolist() == [True, False]
    assert table.overlap.tolist() == [1, 0.5]


def test_a_run_without_test_images_has_an_empty_table(tmp_path):
    write_predictions(tmp_path / "p.csv", dataset(np.array([0, 1, 0, 0])), {})
    table = read_predictions(tmp_path / "p.csv")
    assert len(table) == 0
    assert table.probabilities.shape == (0, 2)


@pytest.mark.parametrize("content", [None, "", "path,label\n", "path,sha256,split,label,predicted,cat\na,0,test,cat\n"])
def test_other_files_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "p.csv").write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "p.csv")


def test_odd_class_names_shift_no_column(tmp_path):
    odd = ("unknown", "label", "a,b", 'q"u', " space", "=1+1", "a|b", "'quoted")
    random = np.random.default_rng(0)
    labels = np.array([0, 3, 5, 7])
    data = dataset(labels, classes=odd)
    rows = random.dirichlet(np.ones(len(odd)), 3)
    write_predictions(tmp_path / "p.csv", data, {"validation": rows[:1], "test": rows[1:]})
    with (tmp_path / "p.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *lines = csv.reader(file)
    assert header[5:] == ["unknown", "label", "a,b", 'q"u', " space", "'=1+1", "a|b", "'quoted"]
    assert {len(line) for line in lines} == {len(header)}
    table = read_predictions(tmp_path / "p.csv")
    assert table.labels.tolist() == ['q"u', "'=1+1", "'quoted"]
    np.testing.assert_allclose(table.probabilities, rows, rtol=1e-5)
    assert [table.classes[at] for at in rows.argmax(axis=1)] == table.predicted.tolist()

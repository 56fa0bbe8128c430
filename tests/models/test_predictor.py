"""Which images are meant, and what is said about each: to people, programs and spreadsheets."""

import csv
import io
import json
import os
from contextlib import suppress

import numpy as np
import pytest

from finetune import models as prediction
from finetune.data import MULTICLASS
from finetune.models import ClassScore, CsvWriter, JsonWriter, Prediction, TableLayout
from finetune.utils import DataError, UsageError


class Fake:
    """Five classes; what it says to image `n` is `rows[n]`, or the problem of that image."""

    classes = ("a", "b", "c", "d", "e")
    ids = ("n1", "n2", "n3", "n4", "n5")
    label_type, thresholds = MULTICLASS, np.full(5, 0.5)

    def __init__(self, rows, problems=None):
        self.rows, self.problems = np.array(rows, np.float32), problems or {}

    def probabilities(self, paths, *, batch_size, progress):
        for start in range(0, len(paths), batch_size):
            rows = self.rows[start : start + batch_size]
            yield start, rows, {at: why for at, why in self.problems.items() if start <= at < start + len(rows)}
            if progress:
                progress(start + len(rows), len(paths))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.png", "deep/er/c.WEBP", "notes.txt", ".hidden.png", "empty/x.txt", "[odd].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --------------------------------------------------------------------------------------------------- the inputs


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["b.jpg", "a.png"], ["b.jpg", "a.png"]),  # as asked, not sorted
        (["notes.txt"], ["notes.txt"]),  # named outright, so it is tried
        (["deep"], ["deep/er/c.WEBP"]),
        (["."], ["[odd].jpg", "a.png", "b.jpg", "deep/er/c.WEBP"]),
        (["*.png", "b.jpg"], ["a.png", "b.jpg"]),
        (["**/*.WEBP"], ["deep/er/c.WEBP"]),
        (["a.png", "*.png", "a.png"], ["a.png"]),
        (["[odd].jpg"], ["[odd].jpg"]),  # a file of that name comes before a pattern
        (["[ab].*"], ["a.png", "b.jpg"]),
    ],
)
def test_files_folders_and_patterns_are_found(folder, given, found):
    assert [os.path.normpath(path) for path in prediction.find_inputs(given)] == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.pgn", r"a\.pgn: no such file or folder\. Did you mean 'a\.png'"),
        ("deap/c.jpg", r"deap/c\.jpg: no such file or folder"),
        ("*.gif", r"\*\.gif: this pattern matches no file"),
        ("empty", r"(?s)empty: no images in this folder.*\.jpg"),
        ("", r"no such file"),
    ],
)
def test_what_is_not_there_is_named(folder, given, message):
    with pytest.raises(DataError, match=message):
        prediction.find_inputs(["a.png", given])


def test_what_is_passed_over_in_a_folder_is_counted_and_named(folder):
    (folder / "logo.svg").touch()
    said = []
    prediction.find_inputs(["."], said.append)
    (line,) = said
    assert ".svg files (1: logo.svg; convert them to JPEG or PNG)" in line
    assert "other files (2, such as empty/x.txt)" in line
    (folder / "empty" / "page.eps").touch()
    with pytest.raises(DataError, match=r"(?s)no images in this folder; left out: \.eps files \(1: page\.eps"):
        prediction.find_inputs(["empty"])


def test_a_name_cannot_write_to_the_terminal(folder):
    with pytest.raises(DataError) as caught:
        prediction.find_inputs(["\x1b[31mred"])
    assert "\x1b" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- the answers


def test_the_likeliest_classes_come_first_and_ties_in_order():
    fake = Fake([[0.1, 0.4, 0.2, 0.2, 0.1], [0.5, 0, 0, 0, 0.5]])
    first, second = prediction.predict_images(fake, ["x", "y"], top=3)
    assert [(one.name, one.id) for one in first.predictions] == [("b", "n2"), ("c", "n3"), ("d", "n4")]
    assert [one.name for one in second.predictions] == ["a", "e", "b"]
    assert first.predictions[0].probability == pytest.approx(0.4)


def test_problems_belong_to_their_images_whatever_the_batch():
    rows = np.full((7, 5), 0.2)
    rows[[2, 6]] = np.nan
    rows[4] = np.nan  # unreadable is one thing, a network that answers NaN another
    for size in (1, 3, 7):
        answers = list(
            prediction.predict_images(Fake(rows, {2: "cut short", 6: "no"}), list("abcdefg"), batch_size=size)
        )
        assert [answer.path for answer in answers] == list("abcdefg")
        assert [answer.error for answer in answers if answer.error][::2] == ["cut short", "no"]
        assert "weights are damaged" in answers[4].error
        assert [len(answer.predictions) for answer in answers] == [5, 5, 0, 5, 0, 5, 0]


def test_answers_come_while_the_rest_is_still_waiting():
    done = []
    fake = Fake(np.full((4, 5), 0.2))
    stream = prediction.predict_images(fake, list("abcd"), batch_size=2, progress=lambda *at: done.append(at))
    next(stream)
    assert done == []
    assert len(list(stream)) == 3
    assert done == [(2, 4), (4, 4)]


def test_answers_of_several_classifiers_are_joined():
    one, other = Prediction("x", (ClassScore("a", "", 0.9),)), Prediction("x", (ClassScore("b", "n1", 0.8),))
    assert [guess.name for guess in one.joined([other]).predictions] == ["a", "b"]


# ------------------------------------------------------------------------------------------------------- writing

ODD = ["=cmd()|' /C calc'!A0", "+1", "-x.png", "@sum", "\tindented", 'quo"te,comma', "line\nbreak", "日本.png", "plain"]


def test_json_is_the_contract_and_nothing_else():
    stream = io.StringIO()
    array = JsonWriter(stream)
    array.write(Prediction("dog.jpg", (ClassScore("Pembroke", "n02113023", 0.123456789), ClassScore("ü", "", 0.1))))
    array.write(Prediction("bad\udcff.jpg", error="cut short"))
    array.close()
    assert json.loads(stream.getvalue()) == [
        {
            "path": "dog.jpg",
            "predictions": [
                {"class": "Pembroke", "id": "n02113023", "probability": 0.123457},
                {"class": "ü", "id": "", "probability": 0.1},
            ],
        },
        {"path": "bad\udcff.jpg", "error": "cut short"},
    ]
    assert stream.getvalue().isascii()  # any terminal and any pipe can take it


def test_json_of_nothing_is_an_empty_array():
    stream = io.StringIO()
    JsonWriter(stream).close()
    assert json.loads(stream.getvalue()) == []


def test_no_cell_of_the_table_is_a_formula_and_none_is_lost():
    stream = io.StringIO(newline="")
    table = CsvWriter(stream, TableLayout(2))
    for name in ODD:
        table.write(Prediction(name, (ClassScore(name, "n1", 0.75), ClassScore("b", "", 0.25))))
    table.write(Prediction("bad.jpg", error="-cut short"))
    header, *rows, bad = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    assert header == ["path", "class_1", "id_1", "probability_1", "class_2", "id_2", "probability_2", "error"]
    assert all(len(row) == len(header) for row in [*rows, bad])
    for name, row in zip(ODD, rows, strict=True):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
        assert row[1].removeprefix("'") == name
        assert row[2:] == ["n1", "0.750000", "b", "", "0.250000", ""]
    assert rows[-1][0] == "plain"
    assert bad == ["bad.jpg", *[""] * 6, "'-cut short"]


def test_a_row_with_fewer_classes_than_asked_keeps_its_columns():
    stream = io.StringIO(newline="")
    CsvWriter(stream, TableLayout(3)).write(Prediction("x", (ClassScore("a", "", 1.0),)))
    header, row = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    assert len(header) == 11
    assert row == ["x", "a", "", "1.000000", *[""] * 7]


# ---------------------------------------------------------------------------------------------- interrupted tables

HEADER = b"path,class_1,id_1,probability_1,error\r\n"
ROW, BAD = b"'=a.png,cat,n1,0.900000,\r\n", b'"b,c.png",,,,no such file\r\n'


@pytest.mark.parametrize(
    ("content", "paths", "size"),
    [
        (b"", 0, 0),
        (HEADER[:9], 0, 0),
        (HEADER, 0, len(HEADER)),
        (HEADER + ROW + BAD, 2, len(HEADER + ROW + BAD)),
        (HEADER + ROW + BAD[:-1], 1, len(HEADER + ROW)),
        (HEADER + ROW + BAD[:4], 1, len(HEADER + ROW)),  # within quotes
        (HEADER + ROW + bytes(100), 1, len(HEADER + ROW)),  # what a power loss may leave
    ],
)
def test_whole_rows_are_found_and_what_a_crash_has_cut_is_not(tmp_path, content, paths, size):
    table = tmp_path / "out.csv"
    prediction.partial_path(table).write_bytes(content)
    found = prediction.read_partial(table, TableLayout(1))
    assert (len(found.paths), found.size) == (paths, size)
    assert found.has("=a.png") == (paths > 0)
    assert found.has("b,c.png") == (paths > 1)
    assert [answer.error for answer in found.problems] == ["no such file"] * (paths > 1)
    with prediction.open_table(table, TableLayout(1), found) as rows:
        assert not table.exists()
        rows.write(Prediction("d.png", (ClassScore("dog", "n2", 0.5),)))
    assert table.read_bytes() == (content[:size] or HEADER) + b"d.png,dog,n2,0.500000,\r\n"
    assert not prediction.partial_path(table).exists()


def test_a_finished_table_may_be_gone_on_with_and_none_is_a_beginning(tmp_path):
    table = tmp_path / "out.csv"
    assert prediction.read_partial(table, TableLayout(1)).size == 0
    table.write_bytes(HEADER + ROW)
    with (
        suppress(KeyboardInterrupt),
        prediction.open_table(table, TableLayout(1), prediction.read_partial(table, TableLayout(1))) as rows,
    ):
        rows.write(Prediction("d.png", error="odd"))
        raise KeyboardInterrupt
    assert table.read_bytes() == HEADER + ROW
    assert prediction.partial_path(table).read_bytes() == HEADER + ROW + b"d.png,,,,odd\r\n"


def test_rows_of_another_command_are_refused(tmp_path):
    (tmp_path / "out.csv").write_bytes(HEADER + ROW)
    with pytest.raises(UsageError, match="other columns"):
        prediction.read_partial(tmp_path / "out.csv", TableLayout(2))


def test_unknown_moves_no_column(tmp_path):
    guess = ClassScore("cat", "n1", 0.6)
    unknown = Prediction("a.png", (guess, ClassScore("dog", "n2", 0.4)), unknown=ClassScore("unknown", "", 0.4))
    layout = TableLayout(2, decision="predicted")
    (row,) = layout.rows(unknown)
    assert dict(zip(layout.header, row, strict=True)) == {
        "path": "a.png", "class_1": "cat", "id_1": "n1", "probability_1": "0.600000",
        "class_2": "dog", "id_2": "n2", "probability_2": "0.400000", "predicted": "unknown", "error": "",
    }  # fmt: skip
    assert layout.rows(Prediction("a.png", unknown.predictions))[0][-2] == "cat"
    assert [score.name for score in unknown.shown] == ["unknown", "cat", "dog"]


LONG = TableLayout(2, long=True, decision="predicted")


def test_the_long_form_has_a_row_per_class_and_one_for_what_cannot_be_read():
    scores = (ClassScore("=cat", "n1", 0.6), ClassScore("dog", "", 0.4))
    assert LONG.header == ["path", "rank", "class", "id", "probability", "predicted", "error"]
    assert LONG.rows(Prediction("a.png", scores)) == [
        ["a.png", "1", "'=cat", "n1", "0.600000", "'=cat", ""],
        ["a.png", "2", "dog", "", "0.400000", "'=cat", ""],
    ]
    assert LONG.rows(Prediction("b.png", error="cut")) == [["b.png", "", "", "", "", "", "cut"]]


def test_an_image_of_which_rows_are_missing_is_predicted_again(tmp_path):
    table = tmp_path / "out.csv"
    images = [Prediction(name, (ClassScore("cat", "", 0.6), ClassScore("dog", "", 0.4))) for name in ("a", "c")]
    images.insert(1, Prediction("b", error="cut"))
    with prediction.open_table(table, LONG, prediction.read_partial(table, LONG)) as rows:
        for image in images:
            rows.write(image)
    whole = table.read_bytes()
    without_last_line = whole[: whole[:-1].rindex(b"\n") + 1]
    table.write_bytes(without_last_line)
    found = prediction.read_partial(table, LONG)
    assert (found.paths, found.classes) == ({"a", "b"}, {"cat"})
    with prediction.open_table(table, LONG, found) as rows:
        rows.write(images[2])
    assert table.read_bytes() == whole


# ----------------------------------------------------------------------------------------------- parts and lists


@pytest.mark.parametrize(("size", "count"), [(0, 3), (1, 3), (10, 3), (12, 4), (1000, 7)])
def test_parts_in_order_are_the_whole(size, count):
    paths = [f"{at}.jpg" for at in range(size)]
    parts = [prediction.shard(paths, number, count) for number in range(1, count + 1)]
    assert [path for one in parts for path in one] == paths
    assert max(map(len, parts)) - min(map(len, parts)) <= prediction.PREDICT_BATCH
    assert [len(one) % prediction.PREDICT_BATCH for one in parts[:-1]] == [0] * (count - 1)


def test_a_list_names_images_as_they_stand_there(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"a.jpg\r\n\n  sub/b c.png \ns3://bucket/d.jpg\na.jpg\n\xff.jpg\n")
    assert prediction.read_path_list(file) == ["a.jpg", "sub/b c.png", "s3://bucket/d.jpg", "\udcff.jpg"]
    file.write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        prediction.read_path_list(file)
    with pytest.raises(DataError, match="cannot be read"):
        prediction.read_path_list(tmp_path)

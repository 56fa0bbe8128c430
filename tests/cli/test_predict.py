"""`finetune predict` as it is typed: what goes where, which files are written, which exit code."""

import csv
import json

import pytest
from PIL import Image

from finetune.config import ModelConfig
from finetune.models import RiskCoveragePoint, build_classifier, load_classifier

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
CLASSES = ("=evil()", "[bold]", "plain")


@pytest.fixture
def place(images, tmp_path, monkeypatch):
    """Three good images with odd names and a bad one."""
    monkeypatch.chdir(tmp_path)
    for name in ("-x.png", "a\nb.png", "=c.png"):
        (tmp_path / "pix").mkdir(exist_ok=True)
        (tmp_path / "pix" / name).write_bytes((images / "red" / "00.png").read_bytes())
    (tmp_path / "bad.png").write_text("no image")
    return tmp_path


def test_json_on_standard_output_and_nothing_else_there(typed, model, place):
    code, out, err = typed("predict", "pix", "bad.png", "--model", model, "--json", "--top", 2)
    assert code == 6
    answers = json.loads(out)
    assert [list(answer) for answer in answers] == [["path", "predictions"]] * 3 + [["path", "error"]]
    assert [answer["path"] for answer in answers] == ["pix/-x.png", "pix/=c.png", "pix/a\nb.png", "bad.png"]
    for answer in answers[:3]:
        assert [list(one) for one in answer["predictions"]] == [["class", "id", "probability"]] * 2
        assert [one["class"] for one in answer["predictions"]] == ["=evil()", "[bold]"]
        assert [one["id"] for one in answer["predictions"]] == ["", ""]
        assert 1 > answer["predictions"][0]["probability"] > answer["predictions"][1]["probability"] > 0
    assert "3 of 4 images were predicted" in err
    assert "bad.png: " in err


def test_when_no_image_can_be_read_it_is_a_data_error_and_still_json(typed, model, place):
    code, out, err = typed("predict", "bad.png", "--model", model, "--json")
    assert code == 3
    assert [list(answer) for answer in json.loads(out)] == [["path", "error"]]
    assert "none of the 1 images could be read" in err

    code, out, err = typed("predict", "bad.png", "--model", model, "--json", "--figure", "x.png")
    assert code == 3
    assert len(json.loads(out)) == 1  # a figure of nothing must not spoil it
    assert not (place / "x.png").exists()


def test_one_image_is_a_table_and_many_are_lines(typed, model, place):
    code, out, _ = typed("predict", "pix/-x.png", "--model", model)
    assert code == 0
    assert "pix/-x.png" in out
    assert [word in out for word in CLASSES] == [True] * 3  # [bold] is a name here, no markup
    assert out.count("%") == 3

    code, out, _ = typed("predict", "pix", "bad.png", "--model", model)
    assert code == 6
    assert len(out.splitlines()) == 4  # a name with a line break is one line, too
    assert all("=evil()" in line for line in out.splitlines()[:3])
    assert out.splitlines()[3].startswith("bad.png")


def test_the_table_is_written_for_spreadsheets(typed, model, place):
    code, out, err = typed("predict", "pix", "bad.png", "--model", model, "--csv", "out.csv")
    assert (code, out) == (6, "")
    assert "Wrote out.csv" in err
    with (place / "out.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == 4
    assert len(header) == 2 + 3 * 5
    assert [row[1] for row in rows] == ["'=evil()"] * 3 + [""]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert rows[3][-1]
    assert {entry.name for entry in place.iterdir()} == {"pix", "bad.png", "out.csv"}


def test_the_figure_is_an_image_of_the_answers(typed, model, place):
    code, _, _ = typed("predict", "pix/-x.png", "--model", model, "--figure", "one.png")
    assert code == 0
    code, _, _ = typed("predict", "pix", "bad.png", "--model", model, "--figure", "all.png")
    assert code == 6
    with Image.open("one.png") as one, Image.open("all.png") as sheet:
        assert one.format == sheet.format == "PNG"
        assert 600 < one.width < 3000
        assert sheet.height > 2.5 * one.height


def test_the_long_table_has_all_probabilities_a_row_each(typed, model, place):
    assert typed("predict", "pix", "--model", model, "--csv", "out.csv", "--long")[0] == 0
    with (place / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "rank", "class", "id", "probability", "error"]
    assert len(rows) == 3 * len(CLASSES)
    for first in range(0, len(rows), 3):
        assert len({row["path"] for row in rows[first : first + 3]}) == 1
        assert sum(float(row["probability"]) for row in rows[first : first + 3]) == pytest.approx(1, abs=1e-5)
    assert typed("predict", "pix", "--model", model, "--csv", "2.csv", "--long", "--top", 2)[0] == 0
    assert len((place / "2.csv").read_bytes().splitlines()) == 1 + 3 * 2
    code, _, err = typed("predict", "pix", "--model", model, "--long")
    assert code == 2
    assert "give --csv FILE" in err


@pytest.mark.parametrize("option", ["--csv", "--figure"])
def test_a_file_is_only_replaced_on_request(typed, model, place, option):
    target = place / "out.png"
    target.write_text("mine")
    code, out, err = typed("predict", "pix", "--model", model, option, target)
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert "--overwrite" in err
    assert target.read_text() == "mine"
    code, _, _ = typed("predict", "pix", "--model", model, option, target, "--overwrite")
    assert code == 0
    assert target.read_bytes()[:4] != b"mine"
    code, _, err = typed("predict", "pix", "--model", model, option, place / "pix", "--overwrite")
    assert code == 2
    assert "is a folder" in err


def test_a_table_that_cannot_be_written_is_explained(typed, model, place):
    code, _, err = typed("predict", "pix", "--model", model, "--csv", "absent/out.csv")
    assert code == 5
    assert "absent" in err


def test_wrong_names_have_their_exit_codes(typed, model, place):
    assert typed("predict", "pixx", "--model", model)[0] == 3
    assert typed("predict", "pix", "--model", "resnet5000")[0] == 2
    assert typed("predict", "pix", "--model", place / "runs" / "x-1")[0] == 4


def test_beside_a_run_the_imagenet_answer_can_be_asked_for(typed, model, place, monkeypatch):
    monkeypatch.setattr("finetune.models.joint.load_imagenet_classifier", lambda _: load_classifier(model))
    code, out, _ = typed("predict", "pix", "--model", model, "--imagenet", "--json", "--top", 1)
    assert code == 0
    for answer in json.loads(out):
        assert [one["class"] for one in answer["predictions"]] == ["=evil()", "=evil()"]


# ------------------------------------------------------------------------------------------------- saying "unknown"


@pytest.fixture
def wary(tmp_path):
    """A classifier that was right in 90 % of 500 cases on validation, and in 99 % of 200 where it was 99.9 % sure."""
    made = build_classifier(ModelConfig(backbone="tiny", weights="none"), CLASSES)
    made.model.get_layer("logits").bias.assign([3.0, 1.0, 0.0])  # less sure than that of anything
    table = (RiskCoveragePoint(0.999, 0.995, 0.4, 200), RiskCoveragePoint(0.2, 0.9, 1.0, 500))
    tested = (RiskCoveragePoint(0.999, 0.8, 0.4, 200),)
    made.spec = made.spec.model_copy(update={"confidences": table, "tested": tested})
    made.save(tmp_path / "model.keras")
    return str(tmp_path)


def test_a_wished_precision_makes_less_sure_answers_unknown(typed, wary, place):
    code, out, err = typed("predict", "pix", "--model", wary, "--json", "--top", 2, "--precision", 0.98)
    assert code == 0
    for answer in json.loads(out):
        unknown, guess, _ = answer["predictions"]
        assert (unknown["class"], guess["class"]) == ("unknown", "=evil()")
        assert unknown["probability"] == pytest.approx(1 - guess["probability"], abs=1e-5)
    assert "Predictions below 0.999 are unknown: on validation, 40.0% of the images were above it, 99.5% of" in err
    assert "warning: on the test images 80.0% of 200 such predictions were correct: do not rely on 98.0%" in err


def test_in_a_table_unknown_is_a_column_of_its_own(typed, wary, place):
    assert typed("predict", "pix", "--model", wary, "--precision", 0.98, "--csv", "out.csv", "--top", 2)[0] == 0
    with (place / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["class_1"], row["class_2"], row["predicted"]) for row in rows} == {("'=evil()", "[bold]", "unknown")}


def test_a_precision_that_all_answers_have_withholds_none(typed, wary, place):
    code, out, _ = typed("predict", "pix", "--model", wary, "--json", "--top", 1, "--precision", 0.88)
    assert code == 0
    assert {answer["predictions"][0]["class"] for answer in json.loads(out)} == {"=evil()"}


def test_a_precision_that_cannot_be_had_is_one_message(typed, wary, model, place):
    code, _, err = typed("predict", "pix", "--model", wary, "--precision", 0.999)
    assert code == 2
    assert "cannot be promised with 500 validation images" in err
    assert "Up to 98.1% can be promised" in err
    code, _, err = typed("predict", "pix", "--model", model, "--precision", 0.9)
    assert code == 2
    assert "calibrate: true" in err

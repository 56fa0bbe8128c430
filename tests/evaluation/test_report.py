"""The report: right files, right numbers, one page that needs nothing and believes no name."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Tab
from PIL import Image

from finetune.evaluation import Check, Gap, metrics as evaluation, report as reporting, wilson_interval
from finetune.evaluation.report import ReportData, render_page
from finetune.utils import ImageError

CLASSES = ("daisy", "<script>alert(1)</script>", "roses")
LABELS = np.array([0, 0, 1, 1, 2, 2])
HEAD = np.array(
    [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.97, 0.02, 0.01], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]]
)
FINAL = np.array(
    [[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.97, 0.02, 0.01], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]
)
PATHS = [Path(f"/photos/{i}<i>.jpg") for i in range(6)]


def evidence() -> ReportData:
    epoch = {"loss": 0.4, "accuracy": 0.9, "validation_loss": 0.5, "validation_accuracy": 0.8}
    return ReportData(
        name="flowers-1",
        phases=[
            {"name": name, "epochs": 2, "best_epoch": 2, "validation": {"accuracy": 0.8, "loss": 0.5}, "seconds": 3.0}
            for name in ("head", "fine_tune")
        ],
        history=[{"phase": name, "epoch": i, **epoch} for name in ("head", "fine_tune") for i in (1, 2)],
        test=evaluation.multiclass_metrics(FINAL, LABELS, CLASSES),
        validation=evaluation.multiclass_metrics(FINAL, LABELS, CLASSES),
        head=evaluation.multiclass_metrics(HEAD, LABELS, CLASSES),
        paired=evaluation.paired_test(HEAD.argmax(1) == LABELS, FINAL.argmax(1) == LABELS),
        mistakes=evaluation.multiclass_mistakes(FINAL, LABELS, CLASSES, PATHS),
        examples={name: f"/photos/{name}.jpg" for name in CLASSES},
        counts={"train": 1200, "validation": 6, "test": 6},
        skipped=[("bad<b>.jpg", "the file is cut off")],
        warnings=["2 images occur twice"],
        facts={
            "backbone": "EfficientNet-Lite0",
            "image_size": 224,
            "classes": 3,
            "device": "CPU",
            "weights": "sha256:abc",
            "peak_memory_mb": 900,
            "versions": {"keras": "3.15.1"},
            "seconds": {"head": 3.0},
        },
        config_yaml="name: flowers\n",
        commands=["finetune predict IMAGES --model runs/flowers-1"],
        read_thumbnail=lambda path: np.full((64, 64, 3), 90, np.uint8),
    )


def page(changed: ReportData) -> str:
    return render_page(changed, reporting.draw_figures(changed))


def test_writes_exactly_these_files(tmp_path: Path) -> None:
    reporting.write_report(tmp_path, evidence())
    result = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    figures = {
        f"figures/{name}.png" for name in ("curves", "confusion", "confusion_normalized", "calibration", "mistakes")
    }
    assert result == {"report.json", "report.html", *figures}


def test_json_holds_the_contract_and_reads_as_a_table(tmp_path: Path) -> None:
    reporting.write_report(tmp_path, evidence())
    text = (tmp_path / "report.json").read_text()
    result = json.loads(text)
    assert result == json.loads(json.dumps(reporting.report_json(evidence())))  # the layout changes no value
    assert result["test"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert result["phases"][1]["name"] == "fine_tune"
    assert result["mistakes"][0]["probability"] == 0.97
    assert result["fine_tuning"]["only_second"] == 2
    assert "[2, 0, 0],\n" in text


def test_json_keeps_names_that_look_like_lists(tmp_path: Path) -> None:
    odd = ("[ 1,  2 ]", "[\t3 ]", "roses")
    reporting.write_report(tmp_path, replace(evidence(), test=evaluation.multiclass_metrics(FINAL, LABELS, odd)))
    assert json.loads((tmp_path / "report.json").read_text())["test"]["classes"] == list(odd)


def test_page_says_the_numbers() -> None:
    text = re.sub("<[^>]*>", "", page(evidence())).replace("\N{NO-BREAK SPACE}", " ")
    for piece in (
        "83.3 %",
        "50.0 %",
        "n = 6",
        "+33.3 points",
        "no more than chance",
        "1,200 training",
        "83.3 %on validation, n = 6",
    ):
        assert piece in text


def test_a_gap_and_what_does_not_hold_are_said_on_the_page_and_in_json() -> None:
    validation = evaluation.multiclass_metrics(FINAL, FINAL.argmax(1), CLASSES)
    gap = Gap(wilson_interval(96, 100), 100, wilson_interval(74, 100), 100, 0.001)
    failed = Check("temperature", False, "It does not hold.", {"value": 0.6})
    held = Check("precision", True, "It holds.", {"promises": []})
    full = replace(
        evidence(), validation=validation, gap=gap, checks=[failed, held], copies=["The test split has 394 files."]
    )
    text = page(full)
    for sentence in (gap.sentence(), "It does not hold.", "The test split has 394 files."):
        assert f">{sentence}<" in text
    result = reporting.report_json(full)
    assert result["validation"]["n"] == 6
    assert result["validation"]["accuracy"]["value"] == 1
    assert result["gap"] == {
        "difference": pytest.approx(-0.22), "p_value": 0.001, "differs": True, "sentence": gap.sentence()
    }  # fmt: skip
    assert result["fitted_on_validation"]["temperature"] == {
        "holds": False, "sentence": "It does not hold.", "value": 0.6
    }  # fmt: skip
    assert result["fitted_on_validation"]["precision"]["holds"] is True


def test_a_temperature_that_stayed_1_is_said() -> None:
    stayed = replace(evidence(), facts={**evidence().facts, "temperature": 1.0})
    assert "No temperature made the probabilities" in page(stayed)
    assert "No temperature made the probabilities" not in page(evidence())


def test_page_needs_nothing_from_outside() -> None:
    text = page(evidence())
    assert "<script" not in text
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', text))
    assert "default-src 'none'" in text


def test_names_are_escaped() -> None:
    hostile = replace(
        evidence(),
        name="a\x1b[31m<u>",
        warnings=["<u>w\x00"],
        config_yaml="<u>",
        commands=["<u>"],
        skipped=[("<u>\udc80", "<u>")],
    )
    text = page(hostile)
    assert "<u>" not in text.split("</style>")[1]
    assert "\x1b" not in text
    assert "\udc80" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_surely_wrong_labels_are_named() -> None:
    assert "Labels to check" in page(evidence())
    unsure = [replace(one, probability=0.6, true_probability=0.4) for one in evidence().mistakes]
    assert "Labels to check" not in page(replace(evidence(), mistakes=unsure))


def test_sections_without_evidence_are_left_out(tmp_path: Path) -> None:
    bare = replace(
        evidence(), phases=[], history=[], test=None, head=None, paired=None, mistakes=[], examples={},
        skipped=[], warnings=[],
    )  # fmt: skip
    reporting.write_report(tmp_path, bare)
    text = (tmp_path / "report.html").read_text()
    assert "no test split" in text
    for heading in ("Learning", "Class by class", "About the data", "confident mistakes", "<img"):
        assert heading not in text
    assert json.loads((tmp_path / "report.json").read_text())["test"] is None
    assert list((tmp_path / "figures").iterdir()) == []


def test_remarks_about_the_data_are_folded() -> None:
    assert "<details><summary>About the data: 1 remark, 1 left out</summary>" in page(evidence())
    assert "<summary>About the data: 1 remark</summary>" in page(replace(evidence(), skipped=[]))


def test_the_confusion_matrix_has_percentages_of_the_true_class_and_counts() -> None:
    cell = r'grid-area: (\d+) / (\d+);.*? of (\d+)"><span class="percent">(\d+)</span><span class="count">(\d+)<'
    cells = {(int(row) - 2, int(column) - 2): numbers for row, column, *numbers in re.findall(cell, page(evidence()))}
    metrics = evidence().test
    confusion = metrics.confusion
    assert set(cells) == {(row, column) for row, column in np.argwhere(confusion).tolist()}
    for (row, column), (of, percent, count) in cells.items():
        assert (int(of), int(count)) == (confusion[row].sum(), confusion[row, column])
        assert int(percent) == round(100 * confusion[row, column] / confusion[row].sum())


def many_classes(count: int) -> ReportData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, count, 10 * count)
    predicted = np.where(rng.random(len(labels)) < 0.8, labels, rng.integers(0, count, len(labels)))
    probabilities = np.full((len(labels), count), 0.1 / (count - 1))
    probabilities[np.arange(len(labels)), predicted] = 0.9
    classes = [f"class number {i}" for i in range(count)]
    paths = [Path(f"{i}.jpg") for i in range(len(labels))]
    return replace(
        evidence(),
        test=evaluation.multiclass_metrics(probabilities, labels, classes),
        mistakes=evaluation.multiclass_mistakes(probabilities, labels, classes, paths),
    )


@pytest.mark.slow
def test_on_a_phone_the_page_fits_and_the_matrix_of_81_classes_can_be_read(tmp_path: Path) -> None:
    reporting.write_report(tmp_path, many_classes(81))
    with Tab(tmp_path) as tab:
        tab.open((tmp_path / "report.html").as_uri(), width=390, dark=True)
        assert tab.run("document.documentElement.scrollWidth") == 390
        cell = "document.querySelector('.cell').getBoundingClientRect().width"
        assert 2 < tab.run(cell) < 5  # the whole matrix at once
        tab.run("document.querySelector('[for=zoom]').click()")
        assert tab.run(cell) >= 28
        assert tab.run("parseFloat(getComputedStyle(document.querySelector('.cell')).fontSize)") >= 11
        tab.run("document.querySelector('.matrix').parentElement.scrollTo(1500, 1500)")
        name = "document.querySelectorAll('.row')[60].getBoundingClientRect()"
        assert 0 < tab.run(f"{name}.left") < 30  # the names stay in sight
        assert tab.run("document.documentElement.scrollWidth") == 390
        assert tab.run("document.querySelector('.count').offsetWidth") == 0
        tab.run("document.querySelector('[for=counts]').click()")
        assert tab.run("document.querySelector('.count').offsetWidth") > 0


def test_charts_can_be_read_on_a_phone() -> None:
    """The smallest text, 9 points, has at least 10 pixels in a chart as wide as a phone's card, 340 pixels."""
    for name, png in reporting.draw_figures(evidence()).items():
        if name in ("curves", "calibration", "coverage"):
            with Image.open(io.BytesIO(png)) as image:
                inches = image.width / image.info["dpi"][0]
            assert 9 / 72 * 340 / inches >= 10


def test_a_phase_without_epochs() -> None:
    idle = [{"name": "head", "epochs": 0, "best_epoch": 0, "validation": {}, "seconds": 0.0}]
    assert "Learning" in page(replace(evidence(), phases=idle))


def test_figures_of_an_earlier_report_go(tmp_path: Path) -> None:
    reporting.write_report(tmp_path, evidence())
    reporting.write_report(tmp_path, replace(evidence(), mistakes=[]))
    assert not (tmp_path / "figures" / "mistakes.png").exists()
    assert (tmp_path / "figures" / "curves.png").exists()


def test_an_image_that_has_gone_does_not_cost_the_report(tmp_path: Path) -> None:
    def gone(path: str) -> np.ndarray:
        raise ImageError("the file does not exist")

    reporting.write_report(tmp_path, replace(evidence(), read_thumbnail=gone))
    assert "83.3" in (tmp_path / "report.html").read_text()


def test_what_the_model_looked_at_stands_beside_the_mistakes() -> None:
    asked = []

    def overlay(path: str, name: str) -> np.ndarray:
        asked.append((path, name))
        return np.zeros((64, 64, 3), np.uint8)

    assert "what the model looked at" in page(replace(evidence(), read_overlay=overlay))
    assert asked == [(str(PATHS[3]), "daisy")]


def test_many_classes_stay_small_and_come_worst_first(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 150
    noise = lambda path: rng.integers(0, 255, (160, 160, 3), np.uint8)  # noqa: E731 (the largest JPEG there is)
    many = replace(many_classes(count), read_thumbnail=noise)
    reporting.write_report(tmp_path, many)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    text = (tmp_path / "report.html").read_text()
    assert "The other 130 classes" in text
    worst = min((one for one in many.test.per_class if one.recall), key=lambda one: (one.recall.value, one.name))
    shown = re.findall(r'<td class="class">([^<]*)</td>', text)
    assert shown[0] == worst.name
    assert len(shown) == count

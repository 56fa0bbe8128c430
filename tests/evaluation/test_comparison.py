"""Runs side by side, from what their directories say."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from drawing import leave_out_drawing
from PIL import Image

from finetune import config
from finetune.cli import main as cli
from finetune.evaluation import RunSummary, comparison, metrics as evaluation
from finetune.evaluation.comparison import compare_summaries
from finetune.training import experiment
from finetune.utils import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


@pytest.fixture(scope="module")
def two_runs(images, common_cache, tmp_path_factory):
    """A run that has learnt something, and one that hardly could; the same images, split in the same way."""
    settings = {
        "name": "colours",
        "recipe": "none",
        "output": str(tmp_path_factory.mktemp("compared")),
        "data": {"folder": str(images), "split": {"train": 0.5, "validation": 0.2, "test": 0.3}},
        "model": {"backbone": "tiny", "weights": "none"},
        "head": {"epochs": 2, "batch_size": 8, "learning_rate": 0.03},
    }
    tuned = {"fine_tune": {"unfreeze": 2, "epochs": 2, "batch_size": 8, "learning_rate": 0.01}}
    weak = {"head": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-7}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(common_cache))
        leave_out_drawing(patch)
        return [experiment.train_config(config.load_config({**settings, **more})) for more in (tuned, weak)]


def summary(name, correct, **config):
    images = {(f"hash{at}", "cat"): bool(value) for at, value in enumerate(correct)}
    return RunSummary(name, "done", {"test": {"n": 1}} if images else {}, [], config, images)


def test_images_that_only_one_run_has_are_named():
    first = replace(summary("a", [1, 1]), images={"h0": "cat/0.png", "h1": "cat/1.png"})
    second = replace(summary("b", [1, 0]), images={"h1": "moved/1.png", "h2": "dog/2.png", "h3": "dog/3.png"})
    difference, _ = comparison.compare_summaries([first, second]).sentences()
    assert difference == "Images of b, against a: 2 added (dog/2.png, dog/3.png), 1 removed (cat/0.png)."
    (alone,) = comparison.compare_summaries([first, replace(first, name="c")]).sentences()
    assert alone.startswith("No evidence")


def test_several_labels_are_compared_by_their_mean_accuracy():
    """Many images a little worse and few much better: the mean is better, and so says the test."""
    report = {"test": {"n": 40, "multi_label": True}}
    runs = []
    for name, values in (("a", [0.6] * 30 + [0.0] * 10), ("b", [0.5] * 30 + [1.0] * 10)):
        correct = {(f"hash{at:02}", "x|y"): value for at, value in enumerate(values)}
        runs.append(RunSummary(name, "done", report, [], {}, correct))
    compared = compare_summaries(runs)
    assert compared.tests[1].better == "second"
    assert compared.tests[1].difference == pytest.approx(7 / 40)
    assert "b is better than a: +17.5 points" in compared.sentences()[0]
    assert "(10 better there, 30 better in a)" in compared.sentences()[0]


@pytest.mark.slow
def test_the_paired_test_is_that_of_the_answers_themselves(two_runs):
    compared = comparison.compare_runs([result.run.path for result in two_runs])
    rows = np.genfromtxt(two_runs[0].run.splits_csv, delimiter=",", dtype=str, skip_header=1)
    test = rows[rows[:, 2] == "test"]
    classifiers = [result.classifier for result in two_runs]
    folder = config.load_config(two_runs[0].run.config_yaml).data.folder
    answered = [
        np.concatenate([rows for _, rows, _ in one.probabilities([folder / name for name in test[:, 0]])]).argmax(1)
        for one in classifiers
    ]
    labels = np.array([classifiers[0].classes.index(label) for label in test[:, 1]])
    expected = evaluation.paired_test(*(one == labels for one in answered))
    assert compared.tests[1] == expected
    assert [run.accuracy.value for run in compared.runs] == [np.mean(one == labels) for one in answered]


@pytest.mark.slow
def test_what_differs_in_the_configs(two_runs):
    compared = comparison.compare_runs([result.run.path for result in two_runs]).differences
    assert compared["head.epochs"] == ["2", "1"]
    assert compared["head.learning_rate"] == ["0.03", "1e-07"]
    assert "head.batch_size" not in compared
    assert "name" not in compared
    assert any(key.startswith("fine_tune") for key in compared)


@pytest.mark.slow
def test_the_command_prints_tables_json_and_an_image(two_runs, tmp_path, capsys):
    paths = [str(result.run.path) for result in two_runs]
    figure = tmp_path / "compared.png"
    assert cli.main(["compare", *paths, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "colours-1" in out
    assert "head.epochs" in out
    assert "common test images, p =" in out
    with Image.open(io.BytesIO(figure.read_bytes())) as drawn:
        assert drawn.width > 800
    assert cli.main(["compare", *paths, "--figure", str(figure)]) == 2  # it exists
    capsys.readouterr()
    assert cli.main(["compare", *paths, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in compared["runs"]] == ["colours-1", "colours-2"]
    assert compared["tests"][0] is None
    assert compared["tests"][1]["n"] == compared["runs"][0]["test"]["n"]


@pytest.mark.slow
def test_images_without_their_folder_still_compare(two_runs, tmp_path):
    """Runs may be moved, and compared where the images are not."""
    moved = []
    for result in two_runs:
        target = tmp_path / result.run.path.name
        target.mkdir()
        for name in ("state.json", "config.yaml", "report.json", "predictions.csv", "history.csv"):
            (target / name).write_bytes((result.run.path / name).read_bytes())
        moved.append(target)
    here = comparison.compare_runs([result.run.path for result in two_runs])
    assert comparison.compare_runs(moved).tests == here.tests


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_shown_without_a_paired_test(two_runs, tmp_path):
    """It has no predictions.csv."""
    target = tmp_path / "old"
    target.mkdir()
    for name in ("state.json", "config.yaml", "report.json", "history.csv"):
        (target / name).write_bytes((two_runs[0].run.path / name).read_bytes())
    compared = comparison.compare_runs([two_runs[0].run.path, target])
    assert compared.tests == [None, None]
    assert compared.runs[1].accuracy == compared.runs[0].accuracy
    assert "old has no predictions.csv" in compared.sentences()[0]


@pytest.mark.slow
def test_damaged_predictions_are_refused(two_runs, tmp_path):
    target = tmp_path / "torn"
    target.mkdir()
    for name in ("state.json", "config.yaml", "report.json", "history.csv"):
        (target / name).write_bytes((two_runs[0].run.path / name).read_bytes())
    (target / "predictions.csv").write_text("nothing")
    with pytest.raises(DataError, match=r"predictions\.csv cannot be read"):
        comparison.compare_runs([two_runs[0].run.path, target])


@pytest.mark.slow
def test_an_unfinished_run_is_shown_as_such(two_runs, tmp_path):
    target = tmp_path / "unfinished"
    target.mkdir()
    (target / "state.json").write_text('{"format": 1, "status": "stopped", "phases": []}')
    compared = comparison.compare_runs([two_runs[0].run.path, target])
    assert compared.tests == [None, None]
    assert compared.sentences() == [
        "unfinished and colours-1 cannot be compared image by image: unfinished has no test results."
    ]
    figure = tmp_path / "figure.png"
    assert cli.main(["compare", str(two_runs[0].run.path), str(target), "--figure", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_better_worse_and_no_evidence():
    first = summary("A", [1, 0] * 20)
    better, same, other = summary("B", [1] * 40), summary("C", [0, 1] * 20), summary("D", [])
    sentences = compare_summaries([first, better, same, other]).sentences()
    assert sentences[0].startswith("B is better than A: +50.0 points on 40 common test images, p = ")
    assert sentences[1].startswith("No evidence that C differs from A: +0.0 points")
    assert sentences[2] == "D and A cannot be compared image by image: D has no test results."
    assert compare_summaries([better, first]).sentences()[0].startswith("A is worse than B")


def test_only_common_images_count():
    first, second = summary("A", [1, 1, 0, 0]), summary("B", [1, 1])
    assert compare_summaries([first, second]).tests[1].n == 2
    elsewhere = RunSummary("E", "done", {"test": {"n": 1}}, [], {}, {("other", "cat"): True})
    assert compare_summaries([first, elsewhere]).sentences()[0].endswith("they have no test image in common.")


def test_more_comparisons_make_none_more_significant():
    """Holm 1979: the smallest p-value of three is taken three times, and their order stays."""
    first = summary("A", [0] * 12)
    others = [summary(name, [1] * count + [0] * (12 - count)) for name, count in (("B", 6), ("C", 8), ("D", 2))]
    alone = [compare_summaries([first, other]).tests[1].p_value for other in others]
    corrected = [test.p_value for test in compare_summaries([first, *others]).tests[1:]]
    assert corrected == pytest.approx([alone[0] * 2, alone[1] * 3, alone[2]])


@pytest.mark.slow
def test_one_run_and_none_are_one_clear_message(two_runs, tmp_path):
    path = two_runs[0].run.path
    with pytest.raises(UsageError, match="at least two runs"):
        comparison.compare_runs([path, path])
    with pytest.raises(UsageError, match="is not a run"):
        comparison.compare_runs([path, tmp_path])

"""Several labels an image: from a table to splits, training, thresholds, report, answers and exports."""

import asyncio
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import api, config as configs, data
from finetune.cli import demo, main as cli, server
from finetune.config import DataConfig, auto as recipe
from finetune.data import MULTILABEL, splits as stratification
from finetune.export import exporter as export, find_format, parity
from finetune.models import load_classifier
from finetune.runs import run as runs
from finetune.training import check as checking, experiment
from finetune.utils import ConfigError, DataError, Stopped, UsageError, errors, signals

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="session")
def tags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 noisy images in which any number of three colours stand out, and a table that says which."""
    root = tmp_path_factory.mktemp("tags")
    random = np.random.default_rng(0)
    with (root / "tags.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", *COLOURS))
        for number in range(90):
            has = [(number >> bit) % 2 for bit in range(3)]
            tint = 40 * np.array(has[::-1]) + random.normal(0, 18, 3)  # blue is the last channel
            pixels = (random.integers(0, 120, (36, 40, 3)) + 40 + tint).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:02}.png")
            names = [name for name, there in zip(COLOURS, has, strict=True) if there]
            table.writerow((f"{number:02}.png", "|".join(names), *has))
    return root / "tags.csv"


def settings_for(table: Path, output: Path, **changes: object) -> dict[str, object]:
    return {
        "name": "tags",
        "recipe": "none",
        "output": str(output),
        "data": {"csv": str(table), "multi_label": True, "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "model": {"backbone": "tiny", "weights": "none", "dropout": 0.0},
        "head": {"epochs": 4, "batch_size": 8, "learning_rate": 0.03},
        "fine_tune": {"unfreeze": 2, "epochs": 2, "batch_size": 8, "learning_rate": 0.003},
        **changes,
    }


@pytest.fixture(scope="session")
def run(tags: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return experiment.train_config(configs.load_config(settings_for(tags, tmp_path_factory.mktemp("runs")))).run


def write(folder: Path, text: str) -> Path:
    for name in re.findall(r"^(\w+\.png)", text, flags=re.MULTILINE):
        pixels = np.random.default_rng(sum(map(ord, name))).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "table.csv").write_text(text)
    return folder / "table.csv"


def refused(**changes: object) -> str:
    with pytest.raises(ConfigError) as error:
        configs.load_config({"data": {"csv": "t.csv"}, **changes})
    return str(error.value)


# --------------------------------------------------------------------------------------------------- the table


def test_names_in_a_cell_and_columns_of_ticks_say_the_same(tags):
    cells = data.open_dataset(DataConfig(csv=tags, multi_label=True), seed=0)
    columns = data.open_dataset(DataConfig(csv=tags, label_columns=COLOURS), seed=0)
    assert cells.classes == columns.classes == COLOURS
    assert cells.label_type is MULTILABEL
    np.testing.assert_array_equal(cells.labels, columns.labels)
    np.testing.assert_array_equal(cells.labels[:8], [[n & 1, n >> 1 & 1, n >> 2] for n in range(8)])
    np.testing.assert_array_equal(cells.splits, columns.splits)


def test_columns_have_the_order_in_which_they_are_given_and_classes_choose_among_them(tags):
    turned = data.open_dataset(DataConfig(csv=tags, label_columns=("red", "blue")), seed=0)
    chosen = data.open_dataset(DataConfig(csv=tags, multi_label=True, classes=("red", "blue")), seed=0)
    assert turned.classes == chosen.classes == ("red", "blue")
    np.testing.assert_array_equal(turned.labels, chosen.labels)
    assert len(chosen) == 90  # green ones stay, as images of neither


def test_a_tick_that_is_none_is_named_with_its_line(tmp_path):
    table = write(tmp_path, "path,sun,rain\na.png,1,0\nb.png,maybe,1\n")
    with pytest.raises(DataError, match=r"line 3: 'maybe' in column sun, expected 0 or 1"):
        data.open_dataset(DataConfig(csv=table, label_columns=("sun", "rain")), seed=0)


def test_what_looks_like_several_labels_and_what_does_not_is_reported(tmp_path, tags):
    with pytest.raises(DataError, match=r"data\.multi_label=true"):  # some have none
        data.list_source(DataConfig(csv=tags))
    divided = write(tmp_path, "path,label\na.png,sun|rain\nb.png,rain\n")
    assert "'sun|rain'" in data.list_source(DataConfig(csv=divided)).warnings[0]
    assert not data.list_source(DataConfig(csv=divided, multi_label=False)).warnings
    single = write(tmp_path, "path,label\na.png,sun\nb.png,rain\n")
    assert "exactly one label" in data.list_source(DataConfig(csv=single, multi_label=True)).warnings[0]


def test_a_label_that_every_image_has_cannot_be_learned(tmp_path):
    rows = "".join(f"p{at}.png,flower{'|rose' * (at % 2)}\n" for at in range(20))
    with pytest.raises(DataError, match="every training image has flower"):
        data.open_dataset(DataConfig(csv=write(tmp_path, "path,label\n" + rows), multi_label=True), seed=0)


def test_the_splits_of_a_run_are_read_as_they_were_written(tags, tmp_path):
    dataset = data.open_dataset(DataConfig(csv=tags, multi_label=True), seed=0)
    dataset.write_splits(tmp_path / "splits.csv")
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in dataset.classes))
    again = data.reopen_dataset(
        DataConfig(csv=tags, multi_label=True), tmp_path / "splits.csv", tmp_path / "classes.txt"
    )
    np.testing.assert_array_equal(again.labels, dataset.labels)
    np.testing.assert_array_equal(again.splits, dataset.splits)
    assert ",blue|green," in (tmp_path / "splits.csv").read_text()


def split_of_labels(labels: np.ndarray) -> np.ndarray:
    hashes = [str(number) for number in range(len(labels))]
    given = np.full(len(labels), stratification.UNASSIGNED, np.int8)
    classes = labels.shape[1]
    return stratification.assign_splits(hashes, labels, given, configs.SplitConfig(), classes=classes, seed=0)


def test_every_split_has_every_label_and_about_its_fraction():
    random = np.random.default_rng(0)
    labels = (random.random((1000, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.004]).astype(np.uint8)
    splits = split_of_labels(labels)
    for split, fraction in ((0, 0.8), (1, 0.1), (2, 0.1)):
        assert abs((splits == split).mean() - fraction) < 0.03
        assert labels[splits == split].any(axis=0).all()
    more = np.concatenate([labels, labels[:200]])
    np.testing.assert_array_equal(split_of_labels(more)[:1000], splits)  # new images move none


def test_a_label_of_two_images_is_in_train_and_in_validation():
    labels = np.zeros((50, 2), np.uint8)
    labels[:30, 0] = labels[[3, 40], 1] = 1
    splits = split_of_labels(labels)
    assert sorted(splits[[3, 40]]) == [0, 1]


# -------------------------------------------------------------------------------------------------- the config


def test_what_makes_no_sense_is_refused_in_the_config():
    several = {"csv": "t.csv", "multi_label": True}
    assert "is for csv data only" in refused(data={"builtin": "digits", "multi_label": True})
    assert "needs exactly one class per image" in refused(data=several, imbalance="oversample")
    assert "needs exactly one class per image" in refused(data=several, imbalance="logit_adjust")
    assert "replaces label_column" in refused(data={"csv": "t.csv", "label_column": "x", "label_columns": ["a", "b"]})
    assert "drop multi_label: false" in refused(data={**several, "multi_label": False, "label_columns": ["a", "b"]})
    assert "rename the column" in refused(data={"csv": "t.csv", "label_columns": ["a|b", "c"]})
    assert configs.load_config({"data": several, "imbalance": "weights"}).imbalance == "weights"


def test_columns_mean_several_labels_and_come_back_from_a_dump(tmp_path):
    config = configs.load_config({"data": {"csv": "t.csv", "label_columns": ["a", "b"]}})
    assert config.data.multi_label
    (tmp_path / "again.yaml").write_text(configs.dump_config(config))
    assert configs.load_config(tmp_path / "again.yaml").data == config.data


# ----------------------------------------------------------------------------------------------------- the run


@pytest.mark.slow
def test_a_run_learns_reports_and_keeps_its_thresholds(run):
    report = json.loads(run.report_json.read_text())
    test = report["test"]
    assert test["multi_label"]
    assert test["mean_average_precision"]["value"] > 0.7
    assert [row["class"] for row in test["per_class"]] == list(COLOURS)
    assert {"average_precision", "threshold", "recall", "precision"} <= set(test["per_class"][0])
    assert report["baseline"]["accuracy"] > 0.3
    spec = load_classifier(run.path).spec
    assert spec.multi_label
    assert [row["threshold"] for row in test["per_class"]] == pytest.approx(spec.thresholds)
    assert {path.name for path in run.figures.iterdir()} >= {"labels.png", "calibration.png", "curves.png"}
    assert not (run.figures / "confusion.png").exists()
    page = run.report_html.read_text("utf-8")
    assert "test mean average precision" in page
    assert "Label by label" in page


@pytest.mark.slow
def test_evaluating_a_run_again_finds_the_figures_of_its_report(run):
    test = json.loads(run.report_json.read_text())["test"]
    assert api.evaluate(run.path).to_json() == test


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_that_was_not(run, tags, tmp_path, monkeypatch):
    config = configs.load_config(settings_for(tags, tmp_path))
    count = iter(range(1000))

    def stop(self, hint=""):
        if next(count) == 90:
            raise Stopped("enough")

    with monkeypatch.context() as patch:
        patch.setattr(signals.Stop, "check", stop)
        with pytest.raises(Stopped):
            experiment.train_config(config)
    begun = runs.open_run(tmp_path / "tags-1")
    assert begun.status == "stopped"
    experiment.resume_run(begun)
    weights = [load_classifier(one.path).model.get_weights() for one in (begun, run)]
    assert all(np.array_equal(*pair) for pair in zip(*weights, strict=True))


@pytest.mark.slow
def test_other_tables_are_measured_and_folders_are_refused(run, tags, images):
    result = api.evaluate(run.path, tags)
    assert result.n == 90
    with pytest.raises(DataError, match="no CSV"):
        api.evaluate(run.path, images)


def typed(capsys, *command):
    code = cli.main([str(word) for word in command])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_predict_says_every_label_over_its_threshold(capsys, run, tags, tmp_path):
    spec = load_classifier(run.path).spec
    folder = tags.parent
    code, out, _ = typed(capsys, "predict", folder, "--model", run.path, "--json", "--top", 3)
    assert code == 0
    for answer in json.loads(out):
        shares = {one["class"]: one["probability"] for one in answer["predictions"]}
        over = {name for name, least in zip(COLOURS, spec.thresholds, strict=True) if shares[name] >= least}
        assert set(answer["labels"]) == over
        assert answer["labels"] == sorted(over, key=lambda name: -shares[name])
    table = tmp_path / "out.csv"
    assert typed(capsys, "predict", folder, "--model", run.path, "--csv", table, "--top", 1)[0] == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["labels"].split("|") if row["labels"] else [] for row in rows] == [
        answer["labels"] for answer in json.loads(out)
    ]
    code, out, _ = typed(capsys, "predict", folder / "00.png", folder / "07.png", "--model", run.path)
    assert len(out.splitlines()) == 2
    code, out, _ = typed(capsys, "predict", folder / "07.png", "--model", run.path)
    assert "labels: " in out


@pytest.mark.slow
def test_precision_is_for_one_class_an_image(capsys, run, tags):
    code, _, err = typed(capsys, "predict", tags.parent, "--model", run.path, "--precision", 0.9)
    assert code == UsageError.exit_code
    assert "any number of labels" in err


@pytest.mark.slow
def test_explain_looks_at_any_label(capsys, run, tags, tmp_path):
    code, out, _ = typed(
        capsys, "explain", tags.parent / "07.png", "--model", run.path, "--class", "green", "--output", tmp_path / "x"
    )
    assert code == 0
    assert "green" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keras", "litert", "onnx"])
def test_exports_say_the_same(run, tmp_path, name):
    if missing := errors.missing_packages(find_format(name).packages):
        pytest.skip(f"needs {', '.join(missing)}")
    made = export.export_classifier(run.path, name, output=tmp_path / "out")
    assert made.parity.agreement == 1
    assert made.parity.largest_difference < 1e-4
    assert made.facts["label_thresholds"] == pytest.approx(
        dict(zip(COLOURS, load_classifier(run.path).spec.thresholds, strict=True))
    )
    text = (made.folder / "README.md").read_text()
    assert "multi-label" in text
    assert "any number of which" in text
    assert "average precision is" in text
    report = json.loads(run.report_json.read_text())
    assert report["test"]["accuracy"]["value"] == pytest.approx(made.before.value)


@pytest.mark.slow
def test_the_page_ticks_what_is_over_its_threshold(run, tags):
    classifier = load_classifier(run.path)
    assert len(demo.example_images(run.path)) == demo.EXAMPLES
    content = (tags.parent / "07.png").read_bytes()
    shown = asyncio.run(server.ImageService(classifier).predict(content, top=5, explain=True))
    (answer,) = classifier.predict(tags.parent / "07.png")
    assert shown["labels"] == [one.name for one in answer.labels]


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_weights_mixing_smoothing_and_histograms_work_and_runs_are_compared(run, tags, tmp_path, capsys):
    head = {"epochs": 2, "batch_size": 8, "learning_rate": 0.03, "label_smoothing": 0.1, "monitor": "loss"}
    more = {"imbalance": "weights", "augment": {"mixup": 0.2}, "calibrate": False, "tensorboard": {"histograms": True}}
    other = experiment.train_config(configs.load_config(settings_for(tags, tmp_path, head=head, fine_tune=[], **more)))
    assert other.classifier.spec.temperature == 1
    assert len(other.classifier.spec.thresholds) == 3  # needed for any answer, whatever calibrate says
    code, out, _ = typed(capsys, "compare", run.path, other.run.path)
    assert code == 0
    assert "common test images" in out


def test_check_counts_labels_and_tries_a_step(tags, tmp_path):
    result = checking.check_config(configs.load_config(settings_for(tags, tmp_path)))
    assert not result.problems
    assert (
        result.counts.sum(axis=1).tolist()
        == data.open_dataset(DataConfig(csv=tags, multi_label=True), seed=0).counts().tolist()
    )
    assert result.counts.sum() > 90
    json.dumps(result.to_json())


def test_preview_draws_a_sheet_for_each_label(capsys, tags, tmp_path):
    words = ("data.multi_label=true", f"data.csv={tags}", "model.backbone=tiny", "model.weights=none")
    code, *_ = typed(capsys, "preview", "csv", *words, "--pictures", 2, "--output", tmp_path / "sheets")
    assert code == 0
    assert {path.stem for path in (tmp_path / "sheets").iterdir()} == set(COLOURS)


def test_the_recipe_does_not_smooth_labels(tags):
    config = configs.load_config({"data": {"csv": str(tags), "multi_label": True}})
    dataset = data.open_dataset(config.data, seed=0)
    facts = recipe.DataFacts(500, 3, (300, 200), data.data_facts(dataset).multi_label)
    chosen, _ = recipe.fill_open_keys(config, facts)
    assert chosen.fine_tune[0].label_smoothing == 0


def test_an_export_may_differ_only_next_to_a_threshold():
    before = np.array([[0.9, 0.5001], [0.1, 0.2]])
    nearly, other = before - 0.0002, before.copy()
    other[1, 1] = 0.7
    assert parity.compare_outputs(before, nearly, MULTILABEL, 0.5).agreement == 1
    assert parity.compare_outputs(before, other, MULTILABEL, 0.5).agreement == 0.5

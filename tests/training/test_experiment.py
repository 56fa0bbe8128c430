"""A whole training: what it leaves behind, that it can be told again, and that every way to ask for it works."""

import csv
import io
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from drawing import leave_out_drawing
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from tensorflow.python.framework.config import is_op_determinism_enabled

from finetune import api
from finetune.config import load_config
from finetune.evaluation import evaluate_classifier
from finetune.models import load_classifier
from finetune.runs import open_run
from finetune.training import experiment
from finetune.training.run_journal import read_run_facts
from finetune.utils import ConfigError, DataError, Terminal, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras saving
    pytest.mark.usefixtures("warm_cache"),
]

FILES = {
    "config.yaml", "run.json", "classes.txt", "splits.csv", "state.json", "history.csv", "model.keras",
    "predictions.csv", "report.json", "report.html", "checkpoints/LAST", ".run.lock",
    "figures/curves.png", "figures/confusion.png", "figures/confusion_normalized.png", "figures/calibration.png",
    "figures/coverage.png", "figures/mistakes.png",
}  # fmt: skip
SEVERAL = (
    r"checkpoints/\d{4}-\S+/(arrays\.npz|state\.json|manifest\.json)",
    r"tensorboard/events\.out\.\S+",
    r"tensorboard/(sprite\.jpg|projector_config\.pbtxt|(head|fine_tune)(_metadata)?\.tsv)",
)
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
HEAD = {"start": "random", "epochs": 3, "batch_size": 8, "learning_rate": 0.01}
FINE_TUNE = {"unfreeze": 2, "epochs": 2, "batch_size": 8, "learning_rate": 0.003}


def settings_for(images, output):
    return {
        "name": "colours",
        "recipe": "none",
        "output": str(output),
        "data": {"folder": str(images), "split": SHARES},
        "model": {"backbone": "tiny", "weights": "none", "resize": "crop", "dropout": 0.2},
        "head": HEAD,
        "fine_tune": FINE_TUNE,
    }


class Story:
    """One training, and everything that it said."""

    def __init__(self, settings):
        self.config = load_config(settings)
        log = io.StringIO()
        self.result = experiment.train_config(
            self.config, command=["finetune", "train", "colours.yaml"], terminal=Terminal(file=log)
        )
        self.run = self.result.run
        self.said = log.getvalue()
        self.report = json.loads(self.run.report_json.read_text())


@pytest.fixture(scope="module")
def story(images, common_cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(common_cache))
        patch.chdir(tmp_path_factory.mktemp("experiment"))
        return Story(settings_for(images, "runs"))


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------- what it leaves


def test_the_run_directory_has_exactly_these_files(story):
    found = tree(story.run.path)
    several = {name for name in found for pattern in SEVERAL if re.fullmatch(pattern, name)}
    without_mistakes = story.report["test"]["accuracy"]["value"] == 1
    assert found - several == FILES - ({"figures/mistakes.png"} if without_mistakes else set())
    assert len([name for name in several if name.startswith("tensorboard/events.")]) == 2  # one has the HPARAMS
    assert {entry.name for entry in story.run.path.parent.iterdir()} >= {"colours-1"}


def test_nothing_written_is_a_pickle(story):
    for path in story.run.checkpoints.glob("*/arrays.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)


def test_report_json_keeps_its_contract(story):
    report = story.report
    test = report["test"]
    assert test["n"] == 15
    assert {"accuracy", "top5", "log_loss", "calibration_error", "per_class", "confusion"} <= test.keys()
    accuracy = test["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert np.trace(test["confusion"]) == round(accuracy["value"] * 15)
    assert [row["class"] for row in test["per_class"]] == ["blue", "green", "red"]
    assert accuracy["value"] == story.result.metrics.accuracy.value
    assert [(phase["name"], phase["epochs"]) for phase in report["phases"]] == [("head", 3), ("fine_tune", 2)]
    for phase in report["phases"]:
        assert phase.keys() >= {"name", "epochs", "best_epoch", "validation", "seconds"}
        assert phase["validation"].keys() == {"loss", "accuracy"}
        assert phase["seconds"] > 0
    assert report["pictures"] == {"train": 42, "validation": 15, "test": 15}
    assert report["head"]["n"] == report["fine_tuning"]["n"] == report["validation"]["n"] == 15
    assert report["different_images"] == {"validation": 15, "test": 15}
    assert report["gap"].keys() == {"difference", "p_value", "differs", "sentence"}
    assert report["fitted_on_validation"].keys() <= {"temperature", "precision"}


def test_the_history_has_a_row_per_epoch(story):
    rows = story.run.history()
    assert [row["phase"] for row in rows] == ["head"] * 3 + ["fine_tune"] * 2
    assert [row["epoch"] for row in rows] == [1, 2, 3, 1, 2]
    assert list(rows[0]) == [
        "phase", "epoch", "loss", "accuracy", "validation_loss", "validation_accuracy",
        "learning_rate", "step", "seconds",
    ]  # fmt: skip
    assert [row["step"] for row in rows] == [6, 12, 18, 24, 30]
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] > rates[1] > rates[2]  # cosine, from the start in each phase
    assert 0 < rates[3] < 0.003
    for phase, best in ((phase, phase["best_epoch"]) for phase in story.report["phases"] if phase["best_epoch"]):
        (row,) = [row for row in rows if (row["phase"], row["epoch"]) == (phase["name"], best)]
        assert row["validation_accuracy"] == phase["validation"]["accuracy"]
        assert row["validation_loss"] == pytest.approx(phase["validation"]["loss"])


def test_classes_and_splits_are_lists(story, images):
    assert story.run.classes_txt.read_text() == "blue\ngreen\nred\n"
    rows = rows_of(story.run.splits_csv)
    files = sorted(path.relative_to(images).as_posix() for path in images.glob("*/*.png"))
    assert sorted(row["path"] for row in rows) == files  # each once
    assert all(row["path"].startswith(row["label"] + "/") for row in rows)
    assert all(re.fullmatch("[0-9a-f]{64}", row["sha256"]) for row in rows)
    counts = {(row["label"], row["split"]) for row in rows}
    assert counts == {(label, split) for label in ("blue", "green", "red") for split in SHARES}


def test_the_config_that_is_left_loads_to_an_equal_one(story, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config(story.run.config_yaml) == story.config


def test_run_json_tells_where_the_run_comes_from(story):
    facts = read_run_facts(story.run)
    assert facts["command"] == ["finetune", "train", "colours.yaml"]
    assert facts["seed"] == 0
    assert set(facts["versions"]) >= {"finetune", "tensorflow", "keras"}
    assert facts["device"]
    assert facts["seconds"].keys() >= {"reading", "features", "head", "fine_tune", "evaluation", "report"}
    assert "weights" in facts  # none here, and that is said


def test_predictions_of_validation_and_test_images_are_kept(story):
    rows = rows_of(story.run.predictions_csv)
    assert [row["split"] for row in rows] == ["validation"] * 15 + ["test"] * 15
    for split, accuracy in (
        ("validation", story.run.phases[-1]["validation"]["accuracy"]),
        ("test", story.report["test"]["accuracy"]["value"]),
    ):
        chosen = [row for row in rows if row["split"] == split]
        assert np.mean([row["predicted"] == row["label"] for row in chosen]) == pytest.approx(accuracy)
        assert all(sum(float(row[name]) for name in ("blue", "green", "red")) == pytest.approx(1) for row in chosen)


def test_the_state_is_done_with_both_phases(story):
    assert story.run.status == "done"
    assert [phase["name"] for phase in story.run.phases] == ["head", "fine_tune"]
    assert not story.run.run_lock.exists()


def test_the_saved_model_is_the_one_that_was_measured(story, images):
    loaded = load_classifier(story.run.path)
    assert all(map(np.array_equal, loaded.model.get_weights(), story.result.classifier.model.get_weights()))
    test = [images / row["path"] for row in rows_of(story.run.splits_csv) if row["split"] == "test"]
    right = [answer.predictions[0].name == Path(answer.path).parent.name for answer in loaded.predict(test)]
    assert np.mean(right) == pytest.approx(story.report["test"]["accuracy"]["value"])


def test_the_end_says_the_numbers_where_things_are_and_what_to_type_next(story):
    value = story.report["test"]["accuracy"]["value"]
    assert f"Test accuracy {value:.1%} (95 % interval" in story.said
    assert "n = 15" in story.said
    assert story.report["gap"]["sentence"] in story.said
    assert "The head alone:" in story.said
    assert "report.html" in story.said
    assert "finetune predict IMAGES --model runs/colours-1" in story.said
    assert "\x1b" not in story.said  # a file is no terminal


# ----------------------------------------------------------------------------------------------- TensorBoard


@pytest.fixture(scope="module")
def board(story):
    events = EventAccumulator(str(story.run.tensorboard), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]
    }


def test_tensorboard_has_every_step_of_both_phases_on_one_axis(board):
    for tag in ("step/loss", "step/learning_rate"):
        assert [step for step, _ in board[tag]] == list(range(1, 31))
        assert all(np.isfinite(value) for _, value in board[tag])
    rates = [float(value) for _, value in board["step/learning_rate"]]
    assert rates[:18] == sorted(rates[:18], reverse=True)
    assert rates[18:] == sorted(rates[18:], reverse=True)
    assert rates[0] == pytest.approx(0.01, rel=0.05)
    assert rates[18] == pytest.approx(0.003, rel=0.05)


def test_tensorboard_has_the_history(board, story):
    rows = story.run.history()
    for part, prefix in (("training", ""), ("validation", "validation_")):
        for figure in ("loss", "accuracy"):
            points = board[f"{figure}/{part}"]
            assert [step for step, _ in points] == [6, 12, 18, 24, 30]
            assert [float(value) for _, value in points] == pytest.approx([row[f"{prefix}{figure}"] for row in rows])


def test_tensorboard_has_the_config_and_images(board, story):
    ((step, text),) = board["config"]
    assert step == 0
    shown = text.item().decode()
    assert all(line.strip() in shown for line in story.run.config_yaml.read_text().splitlines())
    expected = {
        "validation/samples": [6, 12, 18, 24, 30],
        "validation/confusion/head": [18],
        "validation/confusion/fine_tune": [30],
    }
    for tag, steps in expected.items():
        assert [at for at, _ in board[tag]] == steps
        for _, (width, height, png) in board[tag]:
            assert Image.open(io.BytesIO(png)).size == (int(width), int(height))
            assert min(int(width), int(height)) > 100


# ------------------------------------------------------------------------------------------------ once again


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_the_same_seed_gives_the_same_bits_in_a_directory_of_its_own(story):
    before = {name: (story.run.path / name).read_bytes() for name in tree(story.run.path)}
    again = experiment.train_config(story.config.model_copy(update={"output": story.run.path.parent}))
    assert again.run.path == story.run.path.with_name("colours-2")
    assert {name: (story.run.path / name).read_bytes() for name in tree(story.run.path)} == before
    first, second = story.result.classifier.model, again.classifier.model
    assert all(map(np.array_equal, first.get_weights(), second.get_weights()))
    assert again.run.splits_csv.read_bytes() == story.run.splits_csv.read_bytes()
    rows = [[{**row, "seconds": 0} for row in run.history()] for run in (story.run, again.run)]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_two_threads_train_as_one_after_the_other_and_leave_the_callers_random_numbers(story, images, tmp_path):
    """The second, with another seed, begins while the first is at work; they share the cache."""
    other = load_config({**settings_for(images, tmp_path), "seed": 1, "name": "other"})
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(experiment.train_config, story.config.model_copy(update={"output": tmp_path}))
        second = pool.submit(experiment.train_config, other)
    assert (random.random(), np.random.random()) == expected
    alone = experiment.train_config(other).classifier
    pairs = ((first.result().classifier, story.result.classifier), (second.result().classifier, alone))
    for one, same in pairs:
        assert all(map(np.array_equal, one.model.get_weights(), same.model.get_weights()))


def test_a_finished_run_is_not_begun_again_by_evaluate(story):
    before = tree(story.run.path)
    assert evaluate_classifier(story.run.path).to_json() == story.report["test"]
    assert tree(story.run.path) == before


@pytest.mark.slow
def test_evaluate_measures_what_is_asked_for(story, images, tmp_path):
    train, validation = (evaluate_classifier(story.run.path, split=split) for split in ("train", "validation"))
    assert (train.n, validation.n) == (42, 15)
    assert api.evaluate(story.result, split="val").to_json() == validation.to_json()
    with pytest.raises(UsageError, match=r"there is no split .tset.\. Did you mean .test."):
        api.evaluate(story.run, split="tset")
    assert validation.accuracy.value == pytest.approx(story.run.phases[-1]["validation"]["accuracy"])
    everything = api.evaluate(story.run.path, images)
    assert everything.n == 72
    assert everything.correct == train.correct + validation.correct + story.result.metrics.correct

    shutil.copytree(images / "red", tmp_path / "new" / "red")
    reds = evaluate_classifier(story.run.path, tmp_path / "new")
    assert [one.n for one in reds.per_class] == [0, 0, 24]
    assert reds.correct == everything.confusion[2, 2]

    (tmp_path / "table.csv").write_text(f"path,label\n{images}/red/00.png,red\n{images}/blue/00.png,blue\n")
    assert evaluate_classifier(story.run.path, tmp_path / "table.csv").n == 2


def test_evaluate_refuses_what_it_cannot_measure(story, images, tmp_path):
    shutil.copytree(images / "red", tmp_path / "new" / "purple")
    with pytest.raises(DataError, match="purple"):
        evaluate_classifier(story.run.path, tmp_path / "new")
    with pytest.raises(DataError, match="no such folder or table"):
        evaluate_classifier(story.run.path, tmp_path / "absent")
    with pytest.raises(UsageError, match="--data"):
        evaluate_classifier(story.run.model_keras)


@pytest.mark.slow
def test_evaluate_refuses_images_that_have_changed(story, images, tmp_path):
    shutil.copytree(images, tmp_path / "pictures")
    moved = tmp_path / "runs" / "colours-1"
    shutil.copytree(story.run.path, moved)
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(str(images), str(tmp_path / "pictures")))
    assert evaluate_classifier(moved).to_json() == story.report["test"]  # the run and its images may move
    Image.new("RGB", (40, 40), "red").save(tmp_path / "pictures" / "red" / "07.png")
    with pytest.raises(DataError, match=r"red/07\.png"):
        evaluate_classifier(moved)


def test_runs_do_not_go_among_the_images(images):
    before = tree(images)
    with pytest.raises(ConfigError, match="inside the data folder"):
        experiment.train_config(load_config(settings_for(images, images / "runs")))
    assert tree(images) == before


# ---------------------------------------------------------------------------------------------- other configs


@pytest.mark.slow
def test_a_head_alone_on_augmented_views_without_test_images(images, tmp_path):
    settings = settings_for(images, tmp_path) | {
        "augment": {"preset": "standard", "views": 2},
        "head": HEAD | {"epochs": 1},
        "fine_tune": None,
    }
    settings["data"]["split"] = {"train": 0.8, "validation": 0.2, "test": 0}
    story = Story(settings)
    assert story.result.metrics is story.result.head_metrics is story.result.paired is None
    assert story.report["test"] is story.report["head"] is story.report["fine_tuning"] is None
    assert [phase["name"] for phase in story.report["phases"]] == ["head"]
    assert {row["split"] for row in rows_of(story.run.splits_csv)} == {"train", "validation"}
    assert {path.name for path in story.run.figures.iterdir()} == {"curves.png", "coverage.png"}
    assert "There is no test split" in story.run.report_html.read_text()
    assert "Test accuracy" not in story.said
    assert "Next:" in story.said
    with pytest.raises(DataError, match="no test images"):
        evaluate_classifier(story.run.path)


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_gradual_unfreezing_from_python_without_training_the_head(images, tmp_path):
    settings = settings_for(images, tmp_path) | {
        "fine_tune": [FINE_TUNE | {"unfreeze": 1}, FINE_TUNE | {"unfreeze": "block3_conv"}]
    }
    result = api.train(settings, "head.epochs=0", "fine_tune.0.epochs=1", "fine_tune.1.epochs=1", quiet=True)
    report = json.loads(result.run.report_json.read_text())
    assert [phase["name"] for phase in report["phases"]] == ["head", "fine_tune_1", "fine_tune_2"]
    assert [phase["epochs"] for phase in report["phases"]] == [0, 1, 1]
    assert [row["step"] for row in result.run.history()] == [6, 12]
    assert report["head"]["n"] == result.metrics.n == 15


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_a_table_of_odd_names_with_its_own_split_and_live_views(images, tmp_path, monkeypatch):
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "kind", "part"])
        for number, path in enumerate(sorted(images.glob("[br]*/*.png"))):
            odd = tmp_path / "pix" / f"{path.parent.name}, ä\n{number:02}.png"
            odd.parent.mkdir(exist_ok=True)
            shutil.copy(path, odd)
            part = ("train", "train", "train", "validation", "test")[number % 5]
            writer.writerow([odd.relative_to(tmp_path), {"blue": "=blue", "red": "röt"}[path.parent.name], part])
    settings = settings_for(images, tmp_path / "runs") | {
        "data": {"csv": str(table), "path_column": "image", "label_column": "kind", "split_column": "part"},
        "augment": {"preset": "light", "views": "live"},
        "deterministic": True,
        "head": HEAD | {"epochs": 1},
        "fine_tune": None,
    }
    meanwhile, build = [], experiment.build_classifier
    monkeypatch.setattr(
        experiment,
        "build_classifier",
        lambda *args, **more: meanwhile.append(is_op_determinism_enabled()) or build(*args, **more),
    )
    story = Story(settings)
    assert meanwhile == [True]
    assert not is_op_determinism_enabled()  # the process is left as it was
    assert story.result.classifier.classes == ("=blue", "röt")
    assert [len(story.report["test"]["classes"]), story.report["test"]["n"]] == [2, 9]
    assert len(rows_of(story.run.splits_csv)) == 48
    assert tree(tmp_path / "pix") == {path.name for path in (tmp_path / "pix").iterdir()}
    assert evaluate_classifier(story.run.path).n == 9
    assert open_run(story.run.path).status == "done"


# ----------------------------------------------------------------------------------- what is found out on the way


def train_story(images, output, **changes):
    return Story({**settings_for(images, output), **changes})


@pytest.fixture(scope="module")
def found_out(images, common_cache, tmp_path_factory):
    """A run that starts from the regression, with a rate chosen by trial steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(common_cache))
        leave_out_drawing(patch)
        head = {"epochs": 2, "batch_size": 8, "learning_rate": "auto"}
        fine_tune = {**FINE_TUNE, "learning_rate": "auto"}
        return train_story(images, tmp_path_factory.mktemp("found"), head=head, fine_tune=fine_tune)


@pytest.mark.slow
def test_the_head_starts_as_a_regression(found_out):
    facts = read_run_facts(found_out.run)
    assert "Baseline, logistic regression on the features: validation accuracy" in found_out.said
    assert 0.5 < facts["baseline"]["accuracy"] <= 1
    head = found_out.run.phases[0]["validation"]
    assert head["accuracy"] >= facts["baseline"]["accuracy"]


@pytest.mark.slow
def test_a_rate_is_chosen_by_trial_steps_and_drawn(found_out):
    settled = read_run_facts(found_out.run)["settled"]
    assert 1e-7 < settled["head"]["learning_rate"] < 1
    assert f"head: learning rate {settled['head']['learning_rate']:g}, chosen by trial steps" in found_out.said
    assert (found_out.run.figures / "learning_rate_head.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_a_time_budget_that_nothing_fits_into_is_said_and_leaves_the_least(images, tmp_path):
    """The report, HPARAMS and the comparison with the head alone are about what ran, not about what was planned."""
    hurried = train_story(images, tmp_path, head={"epochs": 2, "batch_size": 8}, augment="light", time_budget="1 s")
    assert "to keep to time_budget: augment=none; head.epochs=0 instead of 2; fine_tune=none: the head" in hurried.said
    assert "time_budget cannot be kept" in hurried.said
    assert "more than time_budget" in hurried.said
    assert [(phase["name"], phase["epochs"]) for phase in hurried.run.phases] == [("head", 0)]
    assert hurried.report["fine_tuning"] is hurried.report["head"] is None
    assert hurried.report["config"]["fine_tune"] == []
    assert "Fine-tuning changed" not in hurried.said
    (hparams,) = hurried.run.tensorboard.glob("events*.hparams")
    shown = hparams.read_bytes()
    # Every setting is a column; those that the run has are there once more, with their values.
    assert (shown.count(b"head.epochs"), shown.count(b"fine_tune.epochs")) == (2, 1)
    assert load_config(hurried.run.config_yaml).fine_tune  # which says what was asked for


def test_probabilities_are_calibrated_and_the_classifier_knows_when_to_say_nothing(story):
    loaded = load_classifier(story.run.path)
    temperature = read_run_facts(story.run)["temperature"]
    assert loaded.spec.temperature == pytest.approx(temperature)
    assert (loaded.spec.confidences[-1].coverage, loaded.spec.confidences[-1].images) == (1, 15)
    thresholds = [point.threshold for point in loaded.spec.confidences]
    assert {point.threshold for point in loaded.spec.tested} <= {*thresholds}


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_without_calibration_the_scores_are_those_of_training(images, tmp_path):
    plain = train_story(images, tmp_path, calibrate=False, head=HEAD | {"epochs": 1}, fine_tune=[])
    assert load_classifier(plain.run.path).spec.temperature == 1
    assert load_classifier(plain.run.path).spec.confidences == ()


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_the_recipe_is_shown_with_its_reasons(images, tmp_path):
    head = HEAD | {"epochs": 1}
    tiny = {"backbone": "tiny", "weights": "none"}
    chosen = train_story(images, tmp_path, model=tiny, head=head, fine_tune=[], recipe="auto")
    assert "Chosen by recipe: auto" in chosen.said
    assert any("model.resize" in line for line in read_run_facts(chosen.run)["recipe"])

"""`finetune check`: finds what is wrong, all of it at once, without training; and remembers what it tried."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from finetune.cli import checklist, main as cli
from finetune.config import schema as config
from finetune.training import check as checking, dry_run as rehearsal, dry_run_result as trial, trainer as training
from finetune.utils.errors import ConfigError, DataError, ResourceError, WeightsError
from finetune.utils.terminal import Terminal


@pytest.fixture
def folder(settings, images, tmp_path):
    """A copy of the images, to be spoilt."""
    copy = tmp_path / "photos"
    shutil.copytree(images, copy)
    settings["data"]["folder"] = str(copy)
    return copy


def copy_across(folder):
    """A photo (soft shapes, not noise) of one class, and a smaller and poorer copy of it in another."""
    shapes = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    photo = Image.fromarray(shapes).resize((320, 240), Image.Resampling.BICUBIC)
    photo.save(folder / "red" / "photo.png")
    photo.resize((240, 180)).save(folder / "blue" / "copy.jpg", quality=60)


def never(*_, **__):
    raise AssertionError("was tried again")


def kinds(found):
    return [type(problem) for problem in found.problems]


def test_a_good_config_has_no_problems(settings, tmp_path):
    found = checking.check_config(config.load_config(settings))
    assert kinds(found) == []
    assert found.exit_code == 0
    assert found.counts.sum(axis=0).tolist() == [42, 15, 15]
    assert {tuple(size) for size in found.sizes} == {(40, 36)}
    head, fine_tune = found.trial.phases
    assert (head.name, head.batch_size, head.steps, head.blocks) == ("head", 8, 6, ())
    assert (fine_tune.name, fine_tune.epochs, len(fine_tune.blocks)) == ("fine_tune", 2, 2)
    assert fine_tune.parameters > head.parameters > 0
    assert min(found.trial.feature_rate, found.trial.reading_rate, head.step_seconds, found.trial.peak_memory) > 0
    assert found.trial.missing_features == 72
    assert list(found.seconds) == ["start", "features", "head", "fine_tune", "evaluation"]
    assert not (tmp_path / "runs").exists()  # nothing is written but the cache


def test_a_second_check_remembers_what_was_tried(settings, monkeypatch):
    first = checking.check_config(config.load_config(settings))
    monkeypatch.setattr(rehearsal, "run", never)
    again = checking.check_config(config.load_config({**settings, "name": "other", "output": "elsewhere"}))
    assert (first.remembered, again.remembered) == (False, True)
    assert again.trial == first.trial
    settings["head"]["batch_size"] = 9
    with pytest.raises(AssertionError, match="tried again"):
        checking.check_config(config.load_config(settings))


def test_other_images_are_tried_anew(settings, folder, monkeypatch):
    del settings["fine_tune"]
    checking.check_config(config.load_config(settings))
    monkeypatch.setattr(rehearsal, "run", never)
    Image.new("RGB", (40, 36), "red").save(folder / "red" / "00.png")
    with pytest.raises(AssertionError, match="tried again"):
        checking.check_config(config.load_config(settings))


def test_a_remembered_trial_needs_no_tensorflow(settings, tmp_path):
    del settings["fine_tune"]
    checking.check_config(config.load_config(settings))
    code = (
        "import json, sys; from finetune.training import check_config; from finetune.config import load_config;"
        "found = check_config(load_config(json.loads(sys.argv[1])));"
        "print(found.remembered, 'tensorflow' in sys.modules, len(found.problems))"
    )
    command = [sys.executable, "-W", "error", "-c", code, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False 0\n", done.stderr


def test_a_memory_that_is_damaged_is_forgotten(settings, private_cache):
    del settings["fine_tune"]
    checking.check_config(config.load_config(settings))
    (page,) = (private_cache / "checks").iterdir()
    for text in ("", "{}", '{"phases": 3}', "[]"):
        page.write_text(text)
        assert trial.recall_dry_run(page.stem) is None


def test_what_training_has_cached_need_not_be_computed(settings):
    """The outlook names the very files that a training makes and looks for."""
    import finetune

    settings["augment"] = {"preset": "light", "views": 2}
    before = checking.check_config(config.load_config(settings))
    assert before.trial.missing_features == 72 + 2 * 42
    assert (before.alike.by, before.seconds["features"] > 0) == (("fingerprint",), True)
    finetune.train(settings, quiet=True)
    after = checking.check_config(config.load_config(settings))
    assert (after.remembered, after.trial.missing_features, after.seconds["features"]) == (True, 0, 0)
    assert after.alike.by == ("fingerprint", "features")


def test_without_a_cache_every_epoch_goes_through_the_network(settings):
    settings["cache"] = "off"
    del settings["fine_tune"]
    found = checking.check_config(config.load_config(settings))
    assert (found.trial.feature_place, found.trial.missing_features) == ("off", 0)
    assert found.seconds["head"] > 3 * (42 + 15) / found.trial.feature_rate


def test_all_problems_are_told_at_once(settings, folder):
    (folder / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    shutil.copy(folder / "red" / "01.png", folder / "blue" / "same.png")
    settings["data"]["leaks"] = "error"
    settings["model"]["weights"] = str(folder / "absent.h5")
    settings["fine_tune"]["unfreeze"] = "no_such_layer"
    settings["output"] = str(folder / "runs")
    found = checking.check_config(config.load_config(settings))
    assert kinds(found) == [DataError, DataError, WeightsError, ConfigError, ConfigError]
    said = "\n".join(map(str, found.problems))
    for words in ("bad.png", "same.png (", "absent.h5", "inside the data folder", "no_such_layer"):
        assert words in said
    assert found.exit_code == 3
    assert found.dataset is not None  # of what is good
    assert not any("two splits" in warning for warning in found.warnings)  # a problem is no warning as well
    whole = checklist.combine_problems(found.problems)
    assert isinstance(whole, DataError)
    assert str(whole).startswith("5 problems stand against this training\n1. ")


def test_the_same_files_are_complained_about_once(settings, folder):
    for number in range(20):  # too many to skip
        (folder / "red" / f"{number:02}.png").write_bytes(b"no image")
    assert kinds(checking.check_config(config.load_config(settings))) == [DataError]


def test_without_data_the_rest_is_checked(settings, tmp_path):
    settings["data"] = {"folder": str(tmp_path / "nowhere")}
    settings["fine_tune"]["unfreeze"] = "no_such_layer"
    found = checking.check_config(config.load_config(settings))
    assert kinds(found) == [DataError, ConfigError]
    assert (found.dataset, found.trial, found.seconds, found.to_json()["data"]) == (None, None, {}, None)


@pytest.mark.parametrize("error", [MemoryError("2 TB"), None])
def test_a_step_that_does_not_fit_is_told(settings, monkeypatch, error):
    def step(self, *_):
        raise error or self._diverged()

    monkeypatch.setattr(training.Trainer, "train_batch", step)
    found = checking.check_config(config.load_config(settings))
    assert found.exit_code == (5 if error else 2)
    assert found.trial is None
    assert ("Halve head.batch_size" if error else "no longer a finite number") in str(found.problems[0])


def test_a_disk_that_is_too_small_is_told(settings, monkeypatch):
    del settings["fine_tune"]
    monkeypatch.setattr(rehearsal.experiment, "space", lambda *_: 10**18)
    found = checking.check_config(config.load_config(settings))
    assert kinds(found) == [ResourceError]
    assert "too little space" in str(found.problems[0])


def test_copies_across_classes_are_found_by_fingerprint_and_by_features(settings, folder, monkeypatch):
    copy_across(folder)
    del settings["fine_tune"]
    found = checking.check_config(config.load_config(settings))
    (pair,) = found.alike.pairs
    paths = {one["path"] for one in checking.describe_pair(pair, found.dataset)["pictures"]}
    assert paths == {str(folder / "red" / "photo.png"), str(folder / "blue" / "copy.jpg")}
    assert any("1 pair of images looks alike (by fingerprint)" in warning for warning in found.warnings)
    also = checking.check_config(config.load_config(settings), compute_features=True)
    assert also.alike.by == ("fingerprint", "features")
    assert (pair.first, pair.second) in [(one.first, one.second) for one in also.alike.pairs]
    monkeypatch.setattr(checking.duplicates, "LEAST_FINGERPRINT", 2.0)  # features alone find it too
    again = checking.check_config(config.load_config(settings))
    assert (pair.first, pair.second) in [(one.first, one.second) for one in again.alike.pairs]


def test_images_that_must_be_enlarged_are_told(settings):
    settings["model"]["image_size"] = 64
    del settings["fine_tune"]
    assert any(
        "100% of the images are enlarged 1.5 times or more, to the 64 px" in warning
        for warning in checking.check_config(config.load_config(settings)).warnings
    )


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("cosine", 0.5), ("constant", 0)])
def test_the_schedule_is_that_of_the_optimizer(settings, schedule, warmup):
    del settings["fine_tune"]
    settings["head"] |= {"schedule": schedule, "warmup": warmup}
    rates = checking.check_config(config.load_config(settings)).trial.phases[0].rates
    assert len(rates) == rehearsal.POINTS
    assert max(rates) == pytest.approx(0.01)
    if schedule == "constant":
        assert min(rates) == pytest.approx(0.01)
    else:
        assert rates[0] == pytest.approx(0 if warmup else 0.01)
        assert 0 <= rates[-1] < 0.001
        assert int(np.argmax(rates)) == pytest.approx(warmup * rehearsal.POINTS, abs=4)


def test_a_schedule_in_a_line_of_text():
    assert checklist.sparkline([1.0, 0.5, 0.0], 3) == "█▅▁"
    assert checklist.sparkline([0.0, 0.0], 2) == "▁▁"


@pytest.fixture
def written(settings, tmp_path):
    path = tmp_path / "colours.yaml"
    path.write_text(config.dump_config(config.load_config(settings)))
    return str(path)


def test_the_command_lists_and_draws(written, tmp_path, capsys):
    figures = tmp_path / "figures"
    assert cli.main(["check", written, "--figures", str(figures)]) == 0
    said = capsys.readouterr().out
    for words in ("72 images, 3 classes (42 train", "40 x 36 pixels", "fine_tune: 8 images in", "█", "of features"):
        assert words in said
    assert f"finetune train {written}" in said.replace("\n", "")
    assert (figures / "learning_rate.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["check", written, "--figures", str(figures)]) == 2
    assert cli.main(["check", written, "--figures", str(figures), "--overwrite"]) == 0


def test_the_command_for_programs(settings, folder, written, capsys):
    assert cli.main(["check", written, "fine_tune=null", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert facts["data"]["classes"][0] == {"name": "blue", "train": 14, "validation": 5, "test": 5}
    assert facts["trial"]["phases"][0]["name"] == "head"
    (folder / "red" / "bad.png").write_bytes(b"no image")
    assert cli.main(["check", written, "fine_tune=null", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"][0]["kind"] == "DataError"
    assert "bad.png" in captured.err


def test_a_broken_config_is_told_as_in_training(written, capsys):
    assert cli.main(["check", written, "head.epochs=-1", "model.bakbone=x"]) == 2
    said = capsys.readouterr().err
    assert "head.epochs" in said
    assert "bakbone" in said


def test_the_pairs_are_drawn(settings, folder, tmp_path):
    copy_across(folder)
    del settings["fine_tune"]
    checklist.show_check(
        config.load_config(settings), "x.yaml", figures=tmp_path / "figures", terminal=Terminal(quiet=True)
    )
    with Image.open(tmp_path / "figures" / "alike.png") as drawn:
        assert drawn.width > drawn.height

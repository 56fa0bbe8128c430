"""`finetune train` as it is typed."""

import json

import pytest

from finetune.config import dump_config, load_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


def test_it_needs_a_config(typed):
    code, _, err = typed("train")
    assert code == 2
    assert "finetune train digits" in err


def test_accept_data_change_is_for_resume(typed):
    code, _, err = typed("train", "digits", "--accept-data-change")
    assert code == 2
    assert "--resume" in err


@pytest.mark.slow
def test_a_folder_of_images_needs_no_config(typed, images, tmp_path):
    """The config that `init` would write is taken, and kept in the run."""
    words = ["model.backbone=tiny", "model.weights=none", "model.image_size=null", "head.epochs=1", "fine_tune=none"]
    code, *_ = typed("train", f"{images}/", f"output={tmp_path}", *words)
    assert code == 0
    kept = load_config(tmp_path / f"{images.name}-1" / "config.yaml")
    assert kept.data.folder == images
    assert (kept.model.backbone, kept.head.epochs) == ("tiny", 1)


@pytest.mark.slow
def test_it_trains_with_overrides_behind_options_and_asserts_an_accuracy(typed, settings, tmp_path):
    config_file = tmp_path / "colours.yaml"
    config_file.write_text(dump_config(load_config(settings | {"fine_tune": None})))
    runs = tmp_path / "elsewhere"
    words = ["train", config_file, "--output", runs, "--quiet", "head.epochs=1", "head.learning_rate=1e-9"]
    code, out, err = typed(*words, "--assert-accuracy", 1)
    assert code == 7
    run = runs / "colours-1"
    assert out == f"{run}\n"  # all that --quiet prints, for scripts
    assert "accuracy" in err
    assert load_config(run / "config.yaml").head.epochs == 1
    typed_words = [*map(str, words), "--assert-accuracy", "1"]
    assert json.loads((run / "run.json").read_text())["command"] == ["finetune", *typed_words]


@pytest.mark.slow
def test_a_script_names_the_run_and_reads_what_came_of_it(typed, settings, tmp_path):
    config_file, run = tmp_path / "colours.yaml", tmp_path / "nightly"
    config_file.write_text(dump_config(load_config(settings | {"fine_tune": None})))
    words = ["train", config_file, "--run-dir", run, "--resume", "--json", "head.epochs=1"]
    code, out, _ = typed(*words)  # nothing to resume yet: it begins
    assert code == 0
    told = json.loads(out)
    assert told["run"] == str(run)
    assert {"run": told["run"], **json.loads((run / "report.json").read_text())} == told
    code, out, err = typed(*words)
    assert (code, out) == (2, "")
    assert f"{run} is done" in err
    assert f"finetune train {run / 'config.yaml'} head.epochs=2" in err

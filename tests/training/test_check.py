"""`finetune check` finds what is wrong, all of it at once, without training."""

import shutil

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.config import load_config
from finetune.training import check, check_config, describe_pair, dry_run, loop
from finetune.utils import ConfigError, DataError, ResourceError, WeightsError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


@pytest.fixture
def head_only(settings):
    """The settings without fine-tuning, which takes half the time."""
    del settings["fine_tune"]
    return settings


def add_near_duplicate(own_images):
    """A photo (soft shapes, not noise) of one class, and a smaller copy of lower quality in another class."""
    shapes = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    photo = Image.fromarray(shapes).resize((320, 240), Image.Resampling.BICUBIC)
    photo.save(own_images / "red" / "photo.png")
    photo.resize((240, 180)).save(own_images / "blue" / "copy.jpg", quality=60)


def kinds(result):
    return [type(problem) for problem in result.problems]


@pytest.mark.slow
def test_a_correct_config_has_no_problems(settings, tmp_path):
    result = check_config(load_config(settings))
    assert kinds(result) == []
    assert result.exit_code == 0
    assert result.counts.sum(axis=0).tolist() == [42, 15, 15]
    assert {tuple(size) for size in result.sizes} == {(40, 36)}
    head, fine_tune = result.dry_run.phases
    assert (head.name, head.batch_size, head.steps, head.blocks) == ("head", 8, 6, ())
    assert (fine_tune.name, fine_tune.epochs, len(fine_tune.blocks)) == ("fine_tune", 2, 2)
    assert fine_tune.parameters > head.parameters > 0
    costs = (result.dry_run.feature_rate, result.dry_run.reading_rate, head.step_seconds, result.dry_run.peak_memory)
    assert min(costs) > 0
    assert result.dry_run.missing_features == 72
    assert list(result.seconds) == ["start", "features", "head", "fine_tune", "evaluation"]
    assert not (tmp_path / "runs").exists()  # nothing is written but the cache


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_features_that_a_training_has_cached_need_not_be_computed(head_only):
    """A dry run names the very files that a training writes and looks for."""
    head_only["augment"] = {"preset": "light", "views": 2}
    before = check_config(load_config(head_only))
    assert before.dry_run.missing_features == 72 + 2 * 42
    assert (before.similar.methods, before.seconds["features"] > 0) == (("fingerprint",), True)
    finetune.train(head_only, quiet=True)
    after = check_config(load_config(head_only))
    assert (after.dry_run.missing_features, after.seconds["features"]) == (0, 0)
    assert after.similar.methods == ("fingerprint", "features")


def test_without_a_cache_every_epoch_goes_through_the_network(head_only):
    head_only |= {"cache": "off", "time_budget": "1 s"}
    head_only["head"]["accumulate"] = 2
    result = check_config(load_config(head_only))
    assert any(warning.startswith("time_budget cannot be kept: 0") for warning in result.warnings)
    assert (result.dry_run.feature_place, result.dry_run.missing_features) == ("off", 0)
    assert result.seconds["head"] > 3 * (42 + 15) / result.dry_run.feature_rate


def test_all_problems_are_listed_at_once(settings, own_images):
    (own_images / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    shutil.copy(own_images / "red" / "01.png", own_images / "blue" / "same.png")
    settings["data"]["leaks"] = "error"
    settings["model"]["weights"] = str(own_images / "absent.h5")
    settings["output"] = str(own_images / "runs")
    result = check_config(load_config(settings))
    assert kinds(result) == [DataError, DataError, WeightsError, ConfigError]  # without weights no step is tried
    message = "\n".join(map(str, result.problems))
    for words in ("bad.png", "same.png (", "absent.h5", "inside the data folder"):
        assert words in message
    assert result.exit_code == 3
    assert result.dataset is not None  # of the readable images
    assert not any("two splits" in warning for warning in result.warnings)  # it is among the problems already


def test_the_same_files_are_reported_once(settings, own_images):
    for number in range(20):  # too many to skip
        (own_images / "red" / f"{number:02}.png").write_bytes(b"no image")
    assert kinds(check_config(load_config(settings))) == [DataError]


def test_without_data_the_rest_is_checked_as_far_as_no_network_is_needed(settings, tmp_path):
    settings["data"] = {"folder": str(tmp_path / "nowhere")}
    settings["model"]["weights"] = str(tmp_path / "absent.h5")
    result = check_config(load_config(settings))
    assert kinds(result) == [DataError, WeightsError]
    assert (result.dataset, result.dry_run, result.seconds, result.to_json()["data"]) == (None, None, {}, None)


@pytest.mark.parametrize("error", [MemoryError("2 TB"), None])
def test_a_step_that_fails_is_reported(head_only, monkeypatch, error):
    def failing_step(self, *_):
        raise error

    if error:
        monkeypatch.setattr(loop.Trainer, "train_batch", failing_step)
    else:
        head_only["head"]["learning_rate"] = 1e38
    result = check_config(load_config(head_only))
    assert result.exit_code == (5 if error else 2)
    assert result.dry_run is None
    assert ("Halve head.batch_size" if error else "no longer a finite number") in str(result.problems[0])


def test_a_disk_that_is_too_small_is_reported(head_only, monkeypatch):
    monkeypatch.setattr(dry_run, "run_folder_size", lambda *_: 10**18)
    result = check_config(load_config(head_only))
    assert kinds(result) == [ResourceError]
    assert "too little space" in str(result.problems[0])


@pytest.mark.slow
def test_near_duplicates_are_found_by_fingerprint_and_by_features(head_only, own_images, monkeypatch):
    add_near_duplicate(own_images)
    result = check_config(load_config(head_only))
    (pair,) = result.similar.pairs
    paths = {image["path"] for image in describe_pair(pair, result.dataset)["pictures"]}
    assert paths == {str(own_images / "red" / "photo.png"), str(own_images / "blue" / "copy.jpg")}
    assert any("1 pair of near-duplicate images: " in warning for warning in result.warnings)
    both = check_config(load_config(head_only), compute_features=True)
    assert both.similar.methods == ("fingerprint", "features")
    assert (pair.first, pair.second) in [(other.first, other.second) for other in both.similar.pairs]
    monkeypatch.setattr(check, "MIN_FINGERPRINT_SIMILARITY", 2.0)
    by_features = check_config(load_config(head_only))
    assert (pair.first, pair.second) in [(other.first, other.second) for other in by_features.similar.pairs]


def test_images_that_must_be_enlarged_are_reported(head_only):
    head_only["model"]["image_size"] = 64
    warnings = check_config(load_config(head_only)).warnings
    assert any("100% of the images are enlarged 1.5 times or more, to the 64 px" in warning for warning in warnings)


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("cosine", 0.5), ("constant", 0)])
def test_the_schedule_is_that_of_the_optimizer(head_only, schedule, warmup):
    head_only["head"] |= {"schedule": schedule, "warmup": warmup}
    rates = check_config(load_config(head_only)).dry_run.phases[0].rates
    assert len(rates) == dry_run.RATE_POINTS
    assert max(rates) == pytest.approx(0.01)
    if schedule == "constant":
        assert min(rates) == pytest.approx(0.01)
    else:
        assert rates[0] == pytest.approx(0 if warmup else 0.01)
        assert 0 <= rates[-1] < 0.001
        assert int(np.argmax(rates)) == pytest.approx(warmup * dry_run.RATE_POINTS, abs=4)

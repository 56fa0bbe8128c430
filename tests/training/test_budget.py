"""What of a training fits into the time: arithmetic, without a network."""

from dataclasses import replace

import pytest

from finetune.config import load_config
from finetune.training.budget import Costs, estimate_seconds, fit_to_budget

CONFIG = load_config(
    {
        "data": {"builtin": "digits"},
        "model": {"backbone": "efficientnet_lite0"},
        "augment": {"flip": "horizontal", "views": 3},
        "head": {"epochs": 0},
        "fine_tune": {"epochs": 20},
    }
)
# 1,000 images, 800 to train on: 34 s for view 0, 27 s for each other view, 3.3 s for the test; 10 s an epoch.
COSTS = Costs(image=1 / 30, missing=(1000, 800, 800, 800), live=0, epochs=(0.1, 10.0), test=100, size=224)


def fit(seconds, config=CONFIG, costs=COSTS):
    """The fitted config; whether it fits, too."""
    fitted = fit_to_budget(config, costs, seconds)
    assert fitted.seconds == pytest.approx(estimate_seconds(fitted.config, costs))
    assert fitted.end_seconds == pytest.approx(100 / 30 * ((fitted.config.model.image_size or 224) / 224) ** 2)
    return fitted


def test_what_fits_is_left_as_it_is():
    fitted = fit(400)
    assert fitted.config == CONFIG
    assert fitted.changes == ()
    assert fitted.seconds == pytest.approx((1000 + 3 * 800 + 100) / 30 + 200)


@pytest.mark.parametrize(
    ("seconds", "changes"),
    [
        (250, ["fine_tune.epochs=13 instead of 20"]),
        (200, ["augment.views=1 instead of 3", "fine_tune.epochs=13 instead of 20"]),
        (100, ["augment.views=1 instead of 3", "fine_tune.epochs=3 instead of 20"]),
        (60, ["augment=none", "fine_tune=none: the head alone"]),
        (20, ["augment=none", "fine_tune=none: the head alone", "model.image_size=160 instead of 224"]),
        (10, ["augment=none", "fine_tune=none: the head alone", "model.image_size=96 instead of 224"]),
    ],
)
def test_what_costs_least_accuracy_goes_first(seconds, changes):
    fitted = fit(seconds)
    assert list(fitted.changes) == changes
    assert fitted.seconds <= seconds


def test_if_nothing_fits_it_is_the_shortest_training():
    fitted = fit(1)
    assert fitted.seconds > 1
    assert not fitted.config.fine_tune
    assert fitted.config.model.image_size == 96


def test_an_input_size_of_the_users_own_stays():
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"image_size": 224})})
    assert fit(1, config).config.model.image_size == 224


def test_cached_features_cost_nothing():
    assert fit(205, costs=replace(COSTS, missing=(0, 0, 0, 0))).config == CONFIG


def test_without_a_cache_every_epoch_computes_them():
    costs = replace(COSTS, missing=(0,), live=900, test=100)
    assert fit(100, costs=costs).config.fine_tune[0].epochs == 2  # 40 s each, and 3 s at the end


def test_a_head_alone_is_shortened_too_but_not_left_random():
    head = CONFIG.head.model_copy(update={"epochs": 500, "start": "random"})
    config = CONFIG.model_copy(update={"fine_tune": (), "head": head})
    fitted = fit(100, config)
    assert 0 < fitted.config.head.epochs < 500
    assert fitted.seconds <= 100
    assert fit(1, config).config.head.epochs == 1

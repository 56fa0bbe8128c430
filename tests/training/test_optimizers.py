"""Optimizers and schedules do what their names say."""

import numpy as np
import pytest

from finetune.config import PhaseConfig
from finetune.training import optimizers
from finetune.training.keras_patches import scale_learning_rates
from finetune.utils import keras


def rates(total=100, **settings):
    rate = optimizers.learning_rate_schedule(PhaseConfig(epochs=1, learning_rate=1.0, **settings), total)
    return np.array([float(rate(step)) if callable(rate) else rate for step in range(total)])


def test_cosine_falls_from_the_peak_to_nothing():
    found = rates(schedule="cosine")
    assert found[0] == pytest.approx(1)
    assert found[50] == pytest.approx(0.5, abs=0.01)
    assert found[-1] < 0.001
    assert (np.diff(found) < 0).all()


def test_one_cycle_rises_over_three_tenths_and_ends_near_nothing():
    found = rates(schedule="one_cycle")
    assert found[0] == 0
    assert found.argmax() == 30
    assert found.max() == pytest.approx(1)
    assert found[-1] < 0.01


def test_steps_divide_by_ten():
    found = rates(schedule="step")
    assert found[[0, 49, 60, 74, 90]] == pytest.approx([1, 1, 0.1, 0.1, 0.01], rel=1e-3)


def test_constant_stays_and_warmup_rises_in_a_straight_line():
    found = rates(schedule="constant", warmup=0.2)
    assert found[:21] == pytest.approx(np.linspace(0, 1, 21), abs=1e-6)
    assert (found[20:] == 1).all()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "step", "plateau", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_very_short_phases_have_rates_too(schedule, total):
    found = rates(total, schedule=schedule, warmup=0.1)
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_plateau_starts_at_its_rate_and_is_lowered():
    settings = PhaseConfig(schedule="plateau", learning_rate=0.1)
    made = optimizers.build_optimizer(settings, 10)
    for waited in (0, 1, 2, 3, 4):
        optimizers.lower_learning_rate(made, settings, 10 + waited, waited)
    assert float(made.learning_rate) == pytest.approx(0.1 * 0.2 * 0.2)


def test_plateau_waits_for_the_end_of_the_warmup():
    """20 epochs of 5 steps, the rate rises in the first 2; no epoch brings progress."""
    settings = PhaseConfig(schedule="plateau", learning_rate=0.1, warmup=0.1, epochs=20)
    made = optimizers.build_optimizer(settings, 100)
    found = []
    for epoch in range(1, 7):
        made.iterations.assign(5 * epoch)
        optimizers.lower_learning_rate(made, settings, epoch, waited=epoch)
        found.append(float(made.learning_rate))
    assert found == pytest.approx([0.05, 0.1, 0.1, 0.02, 0.02, 0.004])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_spares_biases_and_batch_norm(name):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    made = optimizers.build_optimizer(
        PhaseConfig(optimizer=name, weight_decay=0.5, schedule="constant", learning_rate=0.1), 10
    )
    made.build(model.trainable_variables)
    made.apply([keras.ops.zeros(variable.shape) for variable in model.trainable_variables])
    shrunk = {v.path.split("/")[-1] for v in model.trainable_variables if not np.allclose(v, 1)}
    assert shrunk == {"kernel"}


def train_one_weight(gradients, **settings):
    """The weight, which begins at 1, and its moving average after a step (or a part of one) with each gradient."""
    weight = keras.Variable(np.ones(1, np.float32))
    made = optimizers.build_optimizer(PhaseConfig(schedule="constant", **settings), len(gradients))
    made.build([weight])
    for gradient in gradients:
        made.apply([keras.ops.full((1,), gradient)], [weight])
    plain = float(weight.numpy()[0])
    made.finalize_variable_values([weight])
    return plain, float(weight.numpy()[0])


def test_the_moving_average_is_over_steps_however_many_batches_make_one():
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "ema": 0.9}
    steps = [1.0, 2.0, -3.0, 0.5]
    parts = [part for step in steps for part in (step, step, step)]
    assert train_one_weight(parts, accumulate=3, **settings) == pytest.approx(train_one_weight(steps, **settings))
    assert train_one_weight([*parts, 9.0], accumulate=3, **settings) == pytest.approx(
        train_one_weight(steps, **settings)
    )


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_scaled_learning_rates_scale_weight_decay_too(name):
    """As if the variable had an optimizer of its own, with that rate."""

    def decayed(rate, scale):
        weight = keras.Variable(np.ones(1, np.float32), name="kernel")
        made = optimizers.build_optimizer(
            PhaseConfig(optimizer=name, weight_decay=0.5, schedule="constant", learning_rate=rate), 10
        )
        made.build([weight])
        scale_learning_rates(made, {weight.value.ref(): scale})
        for _ in range(2):
            made.apply([keras.ops.ones((1,))], [weight])
        return float(weight.numpy()[0])

    assert decayed(0.1, 0.25) == pytest.approx(decayed(0.025, 1.0))


@pytest.mark.parametrize(("total", "lag"), [(1, 0), (8, 0), (80, 7), (550, 54)])
def test_the_average_forgets_the_first_weights_however_short_the_phase(total, lag):
    """`ema: auto` on weights that are the number of the step: the average comes after by a tenth of all steps."""
    made = optimizers.build_optimizer(PhaseConfig(ema="auto"), total)
    step, is_first = keras.Variable(0.0), keras.Variable(1.0)
    made.build([step, is_first])
    for number in range(total):
        step.assign(float(number))
        is_first.assign(float(number == 0))
        made.apply([keras.ops.zeros(()), keras.ops.zeros(())])
    made.finalize_variable_values([step, is_first])
    assert float(step) == pytest.approx(total - 1 - lag, abs=0.1 + 0.001 * total)
    assert float(is_first) < 1e-4 or total == 1


def test_a_momentum_of_the_users_own_is_kept():
    assert optimizers.build_optimizer(PhaseConfig(ema=0.99), 80).ema_momentum == 0.99
    assert optimizers.build_optimizer(PhaseConfig(ema="auto"), 10**6).ema_momentum == 0.99

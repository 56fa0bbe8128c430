"""How a phase turns gradients into steps: optimizer, schedule of the learning rate, slower steps for earlier blocks.

    optimizer = build_optimizer(settings, total_steps)       Keras' own optimizer, set up as the config says
    scales = layer_scales(blocks, above, decay=0.8)          for `keras_patches.scale_learning_rates`

All state is in `optimizer.variables`, so that a checkpoint holds it.
"""

import math
from collections.abc import Sequence
from typing import Any

from finetune.backbones import Block
from finetune.config import PhaseConfig
from finetune.training.keras_patches import average_once_per_step
from finetune.utils import keras, tf

MOMENTUM = 0.9  # of SGD, with Nesterov's look ahead
PLATEAU_PATIENCE = 2  # epochs without progress until the rate falls
PLATEAU_FACTOR = 0.2
NO_DECAY = ["bias", "gamma", "beta"]  # weight decay on these only hurts (He et al. 2019, Bag of Tricks, section 3.1)


def build_optimizer(settings: PhaseConfig, total_steps: int) -> Any:
    """The optimizer of a phase that will take `total_steps` steps; its learning rate follows `settings.schedule`."""
    schedule = learning_rate_schedule(settings, total_steps)
    momentum = ema_momentum(total_steps // settings.accumulate) if settings.ema == "auto" else settings.ema or 0.99
    common = {
        "learning_rate": schedule,
        "weight_decay": settings.weight_decay or None,
        "global_clipnorm": settings.clip,
        "use_ema": settings.ema is not None,
        "ema_momentum": momentum,
        "gradient_accumulation_steps": settings.accumulate if settings.accumulate > 1 else None,
    }
    if settings.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=MOMENTUM, nesterov=True, **common)
    elif settings.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**{**common, "weight_decay": settings.weight_decay})
    else:
        optimizer = keras.optimizers.Adam(**common)
    if settings.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=NO_DECAY)
    average_once_per_step(optimizer)
    if settings.schedule == "plateau" and not isinstance(schedule, float):
        optimizer.rate_after_warmup = schedule.after  # the optimizer then counts it among its variables
    return optimizer


def ema_momentum(total_steps: int) -> float:
    """The momentum of the average of the weights over about the last tenth of `total_steps` steps, at most 0.99.

    An average with momentum m keeps m^t of what it was t steps ago. So the first weights have less than 1/10,000 of it
    in the end, where 0.99 keeps 45 % of them over 80 steps.
    """
    return min(0.99, max(0.0, 1 - 10 / max(total_steps, 1)))


def learning_rate_schedule(settings: PhaseConfig, total_steps: int) -> Any:
    """The learning rate: a number, or a Keras schedule over `total_steps` steps. `plateau` lowers it between epochs."""
    if settings.learning_rate == "auto":
        raise ValueError("learning_rate: auto must be chosen before training (see `lr_finder`)")
    peak, warm = float(settings.learning_rate), round(settings.warmup * total_steps)
    match settings.schedule:
        case "cosine":  # Loshchilov & Hutter 2017, one cycle without restarts
            falling = keras.optimizers.schedules.CosineDecay(peak, max(1, total_steps - warm))
        case "one_cycle":  # Smith & Topin 2018 in fastai's form: up over the first 30 % by default, down to almost 0
            warm = warm or round(0.3 * total_steps)
            falling = keras.optimizers.schedules.CosineDecay(peak, max(1, total_steps - warm), alpha=1e-5)
        case "step":  # to a tenth at half and at three quarters of the way (He et al. 2016)
            at = [total_steps // 2, total_steps * 3 // 4]
            falling = keras.optimizers.schedules.PiecewiseConstantDecay(
                [place - warm for place in at], [peak, peak / 10, peak / 100]
            )
        case "plateau" if warm:  # Keras lets nobody change the rate of an optimizer that has a schedule
            falling = keras.Variable(peak, trainable=False, name="rate_after_warmup")
        case _:
            falling = peak
    return warm_up(falling, peak, warm) if warm else falling


def warm_up(after: Any, peak: float, steps: int) -> Any:
    """A schedule that rises in a straight line from 0 to `peak` over `steps` steps, then follows `after`, a rate or a
    schedule (Goyal et al. 2017)."""

    class WarmUp(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # in here: Keras starts late
        def __init__(self) -> None:
            self.after = after

        def __call__(self, step: Any) -> Any:
            at = tf.cast(step, tf.float32)
            falling = after(at - steps) if callable(after) else after
            return tf.where(at < steps, peak * at / steps, falling)

        def get_config(self) -> dict[str, Any]:
            return {"after": after, "peak": peak, "steps": steps}

    return WarmUp()


def lower_learning_rate(optimizer: Any, settings: PhaseConfig, epoch: int, waited: int) -> None:
    """`schedule: plateau`: after every `PLATEAU_PATIENCE` epochs without progress the rate falls to a fifth.

    `waited` such epochs have passed since the last progress, `epoch` in all. Those of the warm-up do not count.
    """
    waited = min(waited, epoch - math.ceil(settings.warmup * settings.epochs))
    if waited > 0 and waited % PLATEAU_PATIENCE == 0:
        rate = getattr(optimizer, "rate_after_warmup", optimizer.learning_rate)
        rate.assign(rate * PLATEAU_FACTOR)


# ------------------------------------------------------------------------------------- discriminative learning rates


def layer_scales(blocks: Sequence[Block], above: Any, decay: float) -> dict[Any, float]:
    """What the steps of each trainable variable of the model `above` are multiplied by: the head 1, the last block
    `decay`, the one before `decay` squared, and so on (discriminative fine-tuning, Howard & Ruder 2018)."""
    scales: dict[Any, float] = {}
    if decay == 1:
        return scales
    trainable = {id(variable) for variable in above.trainable_variables}
    for depth, block in enumerate(reversed(blocks), start=1):
        for layer in block.layers:
            for variable in layer.trainable_variables:
                if id(variable) in trainable:
                    scales[variable.value.ref()] = math.pow(decay, depth)
    return scales

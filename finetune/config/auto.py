"""`recipe: auto`: what the user left open, chosen from the data, the backbone and the device, each with its reason.

    config, decisions = fill_open_keys(config, facts)

The rule of BiT (Kolesnikov et al. 2020, BiT-HyperRule) in our words: how long to train and how strongly to augment
follow from the number of images, the rest hardly matters. A section that the user writes is never changed: its open
keys have the defaults of `schema`. The measurements behind the numbers are in benchmarks/recipes.md.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.backbones import find_backbone
from finetune.config.schema import AugmentConfig, Config, FineTuneConfig, HeadConfig, ModelConfig

SMALL_IMAGE = 64  # pixels; such images are drawings and digits rather than photos
SMALL_INPUT = 96
FINE_TUNE_STEPS = 550  # as in BiT about the same for all small data sets, which gives few images more epochs
ENOUGH_FOR_ONE_VIEW, MANY_IMAGES = 20_000, 100_000
FEW_IMAGES, FEW_PER_CLASS = 100, 5  # for training; fewer are only memorised (Chen et al. 2019, few-shot)


@dataclass(frozen=True)
class DataFacts:
    """What the recipe looks at: the number of training images and classes, and the usual image size if known."""

    images: int
    classes: int
    size: tuple[int, int] | None = None  # (width, height)
    multi_label: bool = False  # an image has any number of the classes
    gpu: bool = False

    @property
    def has_small_images(self) -> bool:
        """Whether the images are drawings rather than photos."""
        return self.size is not None and max(self.size) <= SMALL_IMAGE


@dataclass(frozen=True)
class Decision:
    """A key of the config, the value that was chosen for it, and why."""

    key: str
    value: Any
    reason: str


def fill_open_keys(config: Config, facts: DataFacts) -> tuple[Config, tuple[Decision, ...]]:
    """`config` with every open value chosen, and the decisions. Nothing that the user has set is changed."""
    keys = open_keys(config)
    decisions = (
        *_choose_input(config.model, facts),
        *_choose_phases(config.model, facts),
        _choose_augmentation(facts),
    )
    decisions = tuple(decision for decision in decisions if decision.key in keys)
    return _replace(config, {decision.key: decision.value for decision in decisions}), decisions


def open_keys(config: Config) -> list[str]:
    """The keys that `config` leaves to the recipe. A head without fine_tune leaves nothing open: the head only."""
    if config.recipe == "none":
        return []
    keys = [f"model.{name}" for name in ("image_size", "resize") if name not in config.model.model_fields_set]
    if not {"head", "fine_tune"} & config.model_fields_set:
        keys += ["head", "fine_tune"]
        if "augment" not in config.model_fields_set:
            keys.append("augment")
    return keys


def as_in_run(config: Config, run_config: Config) -> Config:
    """`config` with its open keys set as in `run_config`, the resolved config of a run that is to be resumed."""
    return _replace(config, {key: operator.attrgetter(key)(run_config) for key in open_keys(config)})


def _choose_input(model: ModelConfig, facts: DataFacts) -> list[Decision]:
    """The size of the input and how an image is fitted to it."""
    if facts.size is None:
        return []
    width, height = facts.size
    usual_size = f"the images are {width} x {height}"
    if not facts.has_small_images:
        if max(width, height) <= 2 * min(width, height):
            return []
        return [Decision("model.resize", "pad", f"{usual_size}: a square cut would lose half of them")]
    decisions = [Decision("model.resize", "squash", f"{usual_size}: small ones are filled to the edge")]
    backbone = find_backbone(model.backbone)
    if backbone.size > SMALL_INPUT:
        size = max(SMALL_INPUT, backbone.min_size)
        reason = f"{usual_size}: a small input is faster and loses nothing"
        decisions.insert(0, Decision("model.image_size", size, reason))
    return decisions


def _choose_phases(model: ModelConfig, facts: DataFacts) -> list[Decision]:
    """Fine-tuning from the linear probe; with very few images the head alone."""
    count = f"{facts.images:,} training images"
    head = HeadConfig(epochs=10, batch_size=32, learning_rate=1e-3)
    if facts.images < max(FEW_IMAGES, FEW_PER_CLASS * facts.classes):
        too_few = f"{count} of {facts.classes} classes are too few to retrain the backbone: the head alone"
        return [Decision("head", head, too_few)]
    epochs = 3 if facts.images >= MANY_IMAGES else min(20, max(6, round(FINE_TUNE_STEPS * 32 / facts.images)))
    if facts.gpu:
        fraction, reasons = 1.0, ["100% of the blocks, there is a GPU"]
    else:
        fraction = 0.6 if facts.has_small_images else 0.4
        reasons = [f"{fraction:.0%} of the blocks"]
    learning_rate = 3e-4
    backbone = find_backbone(model.backbone)
    if not backbone.batch_norm:
        learning_rate = 5e-5  # with which ConvNeXt was fine-tuned (Liu et al. 2022)
        reasons.append(f"small steps, {backbone.title} has no BatchNorm to steady them")
    elif facts.has_small_images:
        learning_rate = 1e-3
        reasons.append("large steps, small images are not what the network has learned from")
    fine_tune = FineTuneConfig(
        unfreeze=fraction,
        epochs=epochs,
        batch_size=32 if facts.images < MANY_IMAGES else 128,
        learning_rate=learning_rate,
        warmup=0.1,
        label_smoothing=0 if facts.multi_label else 0.1,  # it would say of every absent label that it may be there
        ema=0.99,
    )
    return [
        Decision(
            "head", head.model_copy(update={"epochs": 0}), "the regression is the head; fine-tuning starts from it"
        ),
        Decision("fine_tune", (fine_tune,), "; ".join([f"{count}: {epochs} epochs", *reasons])),
    ]


def _choose_augmentation(facts: DataFacts) -> Decision:
    """How images are changed, and how many augmented copies of each are computed."""
    if facts.has_small_images:
        augment = AugmentConfig(rotate=8, zoom=0.1, shift=0.08)
        kind = "small drawings: turned and moved a little, not mirrored"
    else:
        augment, kind = AugmentConfig(preset="light"), "photos"
    views: int | str
    if facts.gpu:
        views, reason = "live", "new views in each epoch, the GPU has the time"
    elif facts.images >= ENOUGH_FOR_ONE_VIEW:
        views, reason = 1, "one changed view of each, there are many"
    elif facts.has_small_images:
        views, reason = 4, "four changed views of each, computed once"
    else:
        views, reason = 3, "three changed views of each, computed once"
    return Decision("augment", augment.model_copy(update={"views": views}), f"{kind}; {reason}")


def _replace(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the values at dotted keys replaced."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            value = changes.get(section, getattr(config, section)).model_copy(update={name: value})
        changes[section] = value
    return config.model_copy(update=changes)

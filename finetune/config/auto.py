"""`recipe: auto`: what the user left open, chosen from the data, the backbone and the device, each with its reason.

    config, decisions = complete(config, facts)

The rule of BiT (Kolesnikov et al. 2020, BiT-HyperRule) in our words: how long to train and how strongly to augment
follow from how many images there are, the rest hardly matters. A section that the user writes is his own: its open
keys have the defaults of `config`. The figures behind the numbers are in benchmarks/recipes.md.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finetune.backbones import find_backbone
from finetune.config.schema import AugmentConfig, Config, FineTuneConfig, HeadConfig, ModelConfig

SMALL = 64  # pixels; such images are drawings and digits rather than photos
SMALL_INPUT = 96
STEPS = 550
PLENTY, MANY = 20_000, 100_000
FEW, FEW_EACH = 100, 5  # training images, and of a class; fewer are only memorised (Chen et al. 2019, few-shot)


@dataclass(frozen=True)
class DataFacts:
    """What the recipe looks at: training images, classes, and the usual (width, height) of an image if known."""

    images: int
    classes: int
    size: tuple[int, int] | None = None
    multi_label: bool = False  # an image has any number of the classes
    gpu: bool = False


@dataclass(frozen=True)
class Decision:
    """A key of the config, the value that was chosen for it, and why."""

    key: str
    value: Any
    reason: str


def fill_open_keys(config: Config, facts: DataFacts) -> tuple[Config, tuple[Decision, ...]]:
    """`config` with every open value chosen, and what was chosen. Nothing that the user has set is changed."""
    left = open_keys(config)
    every = (*_model(config.model, facts), *_phases(config.model, facts), *_augment(facts))
    decisions = tuple(decision for decision in every if decision.key in left)
    return _with(config, {decision.key: decision.value for decision in decisions}), decisions


def open_keys(config: Config) -> list[str]:
    """What `config` leaves to the recipe. A head without fine_tune is no gap: it means the head only."""
    if config.recipe == "none":
        return []
    found = [f"model.{name}" for name in ("image_size", "resize") if name not in config.model.model_fields_set]
    if not {"head", "fine_tune"} & config.model_fields_set:
        found += ["head", "fine_tune"]
        found += ["augment"] if "augment" not in config.model_fields_set else []
    return found


def as_in_run(config: Config, begun: Config) -> Config:
    """`config`, what it leaves open being as a run has it that has `begun`."""
    return _with(config, {key: operator.attrgetter(key)(begun) for key in open_keys(config)})


def _model(model: ModelConfig, facts: DataFacts) -> list[Decision]:
    if facts.size is None:
        return []
    width, height = facts.size
    typical, found = f"the images are {width} x {height}", []
    row = find_backbone(model.backbone)
    if _small(facts):
        if row.size > SMALL_INPUT:
            least = max(SMALL_INPUT, row.min_size)
            found.append(Decision("model.image_size", least, f"{typical}: a small input is faster and loses nothing"))
        found.append(Decision("model.resize", "squash", f"{typical}: small ones are filled to the edge"))
    elif max(width, height) > 2 * min(width, height):
        found.append(Decision("model.resize", "pad", f"{typical}: a square cut would lose half of them"))
    return found


def _phases(model: ModelConfig, facts: DataFacts) -> list[Decision]:
    count = f"{facts.images:,} training images"
    head = HeadConfig(epochs=10, batch_size=32, learning_rate=1e-3)
    if facts.images < max(FEW, FEW_EACH * facts.classes):
        too_few = f"{count} of {facts.classes} classes are too few to retrain the backbone: the head alone"
        return [Decision("head", head, too_few)]
    fine, why = _fine_tune(model, facts)
    return [
        Decision("head", head.model_copy(update={"epochs": 0}), "the regression is the head; training goes on from it"),
        Decision("fine_tune", (fine,), "; ".join([f"{count}: {fine.epochs} epochs", *why])),
    ]


def _fine_tune(model: ModelConfig, facts: DataFacts) -> tuple[FineTuneConfig, list[str]]:
    """The phase, and what else than the number of images decided about it."""
    small, row = _small(facts), find_backbone(model.backbone)
    share = 1.0 if facts.gpu else 0.6 if small else 0.4
    rate, why = 3e-4, [f"{share:.0%} of the blocks" + (", there is a GPU" if facts.gpu else "")]
    if not row.batch_norm:
        rate = 5e-5  # with which ConvNeXt was fine-tuned (Liu et al. 2022)
        why.append(f"small steps, {row.title} has no BatchNorm to steady them")
    elif small:
        rate = 1e-3
        why.append("large steps, small images are not what the network has learned from")
    fine = FineTuneConfig(
        unfreeze=share,
        epochs=_epochs(facts.images),
        batch_size=32 if facts.images < MANY else 128,
        learning_rate=rate,
        warmup=0.1,
        label_smoothing=0 if facts.multi_label else 0.1,  # it would say of every absent label that it may be there
        ema=0.99,
    )
    return fine, why


def _epochs(images: int) -> int:
    """As in BiT the steps are about the same for all small data sets, which gives few images more epochs."""
    return 3 if images >= MANY else min(20, max(6, round(STEPS * 32 / images)))


def _augment(facts: DataFacts) -> list[Decision]:
    if _small(facts):
        chosen, why = (
            AugmentConfig(rotate=8, zoom=0.1, shift=0.08),
            "small drawings: turned and moved a little, not mirrored",
        )
    else:
        chosen, why = AugmentConfig(preset="light"), "photos"
    views, how = _views(facts)
    return [Decision("augment", chosen.model_copy(update={"views": views}), f"{why}; {how}")]


def _views(facts: DataFacts) -> tuple[int | Literal["live"], str]:
    if facts.gpu:
        return "live", "new views in each epoch, the GPU has the time"
    if facts.images >= PLENTY:
        return 1, "one changed view of each, there are many"
    if _small(facts):
        return 4, "four changed views of each, computed once"
    return 3, "three changed views of each, computed once"


def _small(facts: DataFacts) -> bool:
    return facts.size is not None and max(facts.size) <= SMALL


def _with(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the values at dotted keys replaced."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            value = changed.get(section, getattr(config, section)).model_copy(update={name: value})
        changed[section] = value
    return config.model_copy(update=changed)

"""`recipe: auto`: what the user left open, chosen from the data, the backbone and the device, each with its reason.

    config, decisions = fill_open_keys(config, facts)

The rule of BiT (Kolesnikov et al. 2020, BiT-HyperRule) in our words: how long to train and how strongly to augment
follow from the number of images, the rest hardly matters. The recipe fills key by key: a key that the user gives, in
the file or on the command line, is never changed, and switches nothing else on or off. A key that neither the user
nor the recipe gives has the default of `schema`. The measurements behind the numbers are in benchmarks/recipes.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.backbones import find_backbone
from finetune.config.schema import PRESETS, VERSION, Config, FineTuneConfig, Section

SMALL_IMAGE = 64  # pixels; such images are drawings and digits rather than photos
SMALL_INPUT = 96
FINE_TUNE_STEPS = 550  # as in BiT about the same for all small data sets, which gives few images more epochs
WARMUP_STEPS = 40  # at least: with fewer the first steps, of a rate for many, undo what the network has learned
ENOUGH_FOR_ONE_VIEW, MANY_IMAGES = 20_000, 100_000
REGRESSION_CLASSES = 350  # with more, some networks have too many features for a regression (`sample_for_probe`)
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
    """Values that were chosen for keys of the config, by dotted key, and why.

    `fine_tune.epochs` is that of every fine-tune phase which does not say it itself.
    """

    values: Mapping[str, Any]
    reason: str

    def __str__(self) -> str:
        """`fine_tune.epochs=6: why`, as an override would say it; of whole phases only whether there are any."""
        shown = []
        for key, value in self.values.items():
            is_phases = isinstance(value, tuple)
            shown.append(key if is_phases and value else f"{key}={'none' if is_phases else value}")
        return f"{', '.join(shown)}: {self.reason}"


def fill_open_keys(config: Config, facts: DataFacts) -> tuple[Config, tuple[Decision, ...]]:
    """`config` with every open key chosen, and the decisions. Nothing that the user has given is changed."""
    decisions = []
    for choose in RECIPE if _leaves_keys_open(config) else ():
        for decision in choose(config, facts):
            values = {key: value for key, value in decision.values.items() if _is_open(config, key)}
            if values:
                config = _fill(config, values)
                decisions.append(replace(decision, values=values))
    return config, tuple(decisions)


def as_in_run(config: Config, run_config: Config) -> Config:
    """`config` with its open keys set as in `run_config`, the resolved config of a run that is to be resumed."""
    if not _leaves_keys_open(config):
        return config
    sections = {"head": dict(run_config.head), "augment": dict(run_config.augment)}
    sections["model"] = {name: getattr(run_config.model, name) for name in ("image_size", "resize")}
    changes: dict[str, Any] = {name: _fill_section(getattr(config, name), values) for name, values in sections.items()}
    if "fine_tune" not in config.model_fields_set:
        changes["fine_tune"] = run_config.fine_tune
    elif len(config.fine_tune) == len(run_config.fine_tune):
        pairs = zip(config.fine_tune, run_config.fine_tune, strict=True)
        changes["fine_tune"] = tuple(_fill_section(phase, dict(begun)) for phase, begun in pairs)
    return config.model_copy(update=changes)


# ------------------------------------------------------------------------------------------------- the recipe
# Each step sees the config as the steps before it have filled it.


def _choose_input(config: Config, facts: DataFacts) -> Iterator[Decision]:
    """The size of the input and how an image is fitted to it."""
    if facts.size is None:
        return
    width, height = facts.size
    usual_size = f"the images are {width} x {height}"
    if facts.has_small_images:
        backbone = find_backbone(config.model.backbone)
        if backbone.size > SMALL_INPUT:
            size = max(SMALL_INPUT, backbone.min_size)
            yield Decision({"model.image_size": size}, f"{usual_size}: a small input is faster and loses nothing")
        yield Decision({"model.resize": "squash"}, f"{usual_size}: small ones are filled to the edge")
    elif max(width, height) > 2 * min(width, height):
        yield Decision({"model.resize": "pad"}, f"{usual_size}: a square cut would lose half of them")


def _choose_phases(config: Config, facts: DataFacts) -> Iterator[Decision]:
    """Whether the backbone is fine-tuned; with very few images the head alone is trained."""
    if facts.images < max(FEW_IMAGES, FEW_PER_CLASS * facts.classes):
        count = f"{facts.images:,} training images of {facts.classes} classes"
        yield Decision({"fine_tune": ()}, f"{count} are too few to retrain the backbone: the head alone")
    elif "head" in config.model_fields_set:
        reason = "follows the head. Before 0.2, a config with head and no fine_tune meant the head alone: now say "
        yield Decision({"fine_tune": (FineTuneConfig(),)}, reason + "fine_tune: none for that")
    else:
        yield Decision({"fine_tune": (FineTuneConfig(),)}, "the deepest blocks learn too (not with fine_tune: none)")


def _choose_head(config: Config, facts: DataFacts) -> Iterator[Decision]:
    """How long the head is trained before the rest; settings of the user's own for that must not be in vain."""
    if not config.fine_tune:
        yield Decision({"head.epochs": 10}, "the head alone is trained")
    elif config.head.model_fields_set:
        yield Decision({"head.epochs": 10}, "the config says how to train the head")
    elif not config.starts_from_regression or facts.classes > REGRESSION_CLASSES:
        yield Decision(
            {"head.epochs": 10}, "no regression can be this head, and fine-tuning needs one that has learned"
        )
    else:
        yield Decision({"head.epochs": 0}, "the regression is the head; fine-tuning starts from it")


def _choose_fine_tuning(config: Config, facts: DataFacts) -> Iterator[Decision]:
    """How deep, how long and how fast the backbone is retrained."""
    if facts.gpu:
        yield Decision({"fine_tune.unfreeze": 1.0}, "100% of the blocks, there is a GPU")
    else:
        fraction = 0.6 if facts.has_small_images else 0.4
        yield Decision({"fine_tune.unfreeze": fraction}, f"{fraction:.0%} of the blocks")
    count = f"{facts.images:,} training images"
    if facts.images >= MANY_IMAGES:
        yield Decision({"fine_tune.epochs": 3, "fine_tune.batch_size": 128}, count)
    else:
        yield Decision({"fine_tune.epochs": _epochs_for(facts.images)}, count)
    backbone = find_backbone(config.model.backbone)
    if not backbone.batch_norm:  # the rate with which ConvNeXt was fine-tuned (Liu et al. 2022)
        reason = f"small steps, {backbone.title} has no BatchNorm to steady them"
        yield Decision({"fine_tune.learning_rate": 5e-5}, reason)
    elif facts.has_small_images:
        reason = "large steps, small images are not what the network has learned from"
        yield Decision({"fine_tune.learning_rate": 1e-3}, reason)
    else:
        yield Decision({"fine_tune.learning_rate": 3e-4}, "the network has learned from photos, too")
    steps = _epochs_for(facts.images) * -(-facts.images // 32)
    warmup = round(min(0.5, max(0.1, WARMUP_STEPS / max(steps, 1))), 2)
    few = f", {WARMUP_STEPS} steps or more where there are so many" if warmup > 0.1 else ""
    yield Decision({"fine_tune.warmup": warmup}, f"steadier at the start{few}")
    yield Decision({"fine_tune.ema": "auto"}, "steadier at the end: the mean of about the last tenth")
    if not facts.multi_label:  # it would say of every absent label that it may be there
        yield Decision({"fine_tune.label_smoothing": 0.1}, "one class per image, and labels may be wrong")


def _epochs_for(images: int) -> int:
    """How long fewer than `MANY_IMAGES` are learned from."""
    return min(20, max(6, round(FINE_TUNE_STEPS * 32 / max(images, 1))))


def _choose_augmentation(config: Config, facts: DataFacts) -> Iterator[Decision]:
    """How images are changed, and how many augmented copies of each are computed."""
    if facts.has_small_images:
        changes: dict[str, Any] = {"rotate": 8, "zoom": 0.1, "shift": 0.08}
        kind = "small drawings: turned and moved a little, not mirrored"
    else:
        changes, kind = {"preset": "light", **PRESETS["light"]}, "photos"
    yield Decision({f"augment.{name}": value for name, value in changes.items()}, kind)


def _choose_views(config: Config, facts: DataFacts) -> Iterator[Decision]:
    """How many augmented copies of each image are computed, if there are any."""
    if not config.augment.active:
        return
    if facts.gpu:
        yield Decision({"augment.views": "live"}, "new views in each epoch, the GPU has the time")
    elif facts.images >= ENOUGH_FOR_ONE_VIEW:
        yield Decision({"augment.views": 1}, "one changed view of each, there are many")
    elif facts.has_small_images:
        yield Decision({"augment.views": 4}, "four changed views of each, computed once")
    else:
        yield Decision({"augment.views": 3}, "three changed views of each, computed once")


RECIPE = (_choose_input, _choose_phases, _choose_head, _choose_fine_tuning, _choose_augmentation, _choose_views)


# ------------------------------------------------------------------------------------------------- key by key


def _leaves_keys_open(config: Config) -> bool:
    """Whether the recipe is asked. What an older finetune has saved with a run is complete, but for its nulls."""
    return config.recipe == "auto" and config.version == VERSION


def _is_open(config: Config, key: str) -> bool:
    """Whether the user has not given `key`; of several fine-tune phases, whether one of them leaves it open."""
    section, _, name = key.partition(".")
    if not name:
        return section not in config.model_fields_set
    value = getattr(config, section)
    parts = value if isinstance(value, tuple) else (value,)
    return any(name not in part.model_fields_set for part in parts)


def _fill(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the values at dotted keys, where it has none of its own."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            old, value = getattr(config, section), {name: value}
            is_list = isinstance(old, tuple)
            value = tuple(_fill_section(part, value) for part in old) if is_list else _fill_section(old, value)
        config = config.model_copy(update={section: value})
    return config


def _fill_section(section: Section, values: Mapping[str, Any]) -> Section:
    """`section` with the values that it does not have of its own."""
    return section.model_copy(update={k: v for k, v in values.items() if k not in section.model_fields_set})

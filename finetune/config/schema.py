"""What a config file may say: every key, its default, its legal range, and what it does.

    config = Config(data={"folder": "photos"})
    config.head.learning_rate                       0.001

The models below are the whole truth: a key that is not here is refused, and so is a value outside its range.
`load` reads them from files, `messages` says in plain words what is wrong, `docs` makes a table of them.
A section may be a single word where that says enough: `model: resnet50`, `augment: light`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from finetune.config.values import (
    Fraction,
    Level,
    Momentum,
    Number,
    Rate,
    Seconds,
    Unfreeze,
    Views,
    WeightsChoice,
    Whole,
)
from finetune.utils import ConfigError

VERSION = 2  # of the config format; grows when an old file would mean something else
MAX_IMAGE_SIZE = 2048  # pixels; what a model file may claim too, so that whatever is trained can be loaded
MAX_HIDDEN, MAX_WIDTH = 8, 65536  # hidden layers of the head, and neurons in one
DATA_SOURCES = ("folder", "csv", "tfds", "builtin")
ONE_WORD = {"model": "backbone", "augment": "preset"}  # sections that may be a single word, which sets this key

_LIGHT = {"flip": "horizontal", "rotate": 5, "zoom": 0.1, "shift": 0.05}
_STANDARD = _LIGHT | {"rotate": 10, "zoom": 0.2, "shift": 0.1, "brightness": 0.1, "contrast": 0.1}
_STRONG = _STANDARD | {"rotate": 20, "zoom": 0.3, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "mixup": 0.2}
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": _LIGHT,
    "standard": _STANDARD,
    "strong": _STRONG | {"hue": 0.02, "erase": 0.25},
}


def option(default: Any, description: str, **limits: Any) -> Any:
    """A key of the file that may be left out."""
    return Field(default, description=description, **limits)


class Section(BaseModel):
    """One mapping of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitConfig(Section):
    """Fractions of the images; a data set that brings its own splits keeps them."""

    train: Number = option(0.8, "fraction to learn from", gt=0, le=1)
    validation: Number = option(0.1, "fraction to choose the best epoch by", gt=0, lt=1)
    test: Number = option(0.1, "fraction to measure on once, at the end", ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:.6g}, and must be 1")
        return self


class DataConfig(Section):
    """Where the images are: exactly one of folder, csv, tfds and builtin."""

    folder: Path | None = option(None, "one subfolder per class, or train/, val/, test/ of these")
    csv: Path | None = option(None, "table with an image and its class per row")
    tfds: str | None = option(None, "name of a TensorFlow dataset, such as tf_flowers", min_length=1)
    builtin: Literal["digits"] | None = option(None, "data that needs no download")
    class_level: Level = option(
        1, "folder: which level of folders names the classes, 1 the uppermost; last: the folder that holds the image"
    )
    split: SplitConfig = option(SplitConfig(), "fractions of train, validation and test")
    held_out: Literal["test", "validation"] = option(
        "test", "what the only split beside train is, whatever its name; the other one is cut from train"
    )
    path_column: str = option("path", "csv: column of the image, relative to the csv file")
    label_column: str = option("label", "csv: column of the class name")
    split_column: str = option("split", "csv: column of train, validation or test; may be absent")
    multi_label: bool = option(False, "csv: an image has any number of labels, as a|b in one cell", strict=True)
    label_columns: tuple[str, ...] | None = option(
        None, "csv: columns of 0 and 1, one for each label, instead of label_column; means multi_label"
    )
    classes: tuple[str, ...] | None = option(None, "only these classes, in this order")
    bad_images: Literal["error", "skip"] = option("error", "what to do about unreadable images")
    leaks: Literal["warn", "error", "drop", "drop_near_duplicates"] = option(
        "warn", "what to do about an image in two splits; drop takes it out of the earlier one"
    )

    @model_validator(mode="before")
    @classmethod
    def _imply_multi_label(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("label_columns") is not None:
            return {"multi_label": True, **values}
        return values

    @field_validator("classes", "label_columns")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is None:
            return None
        if len(classes) < 2:
            raise ValueError(f"a classifier needs 2 classes or more, not {len(classes)}")
        repeated = [name for name in dict.fromkeys(classes) if classes.count(name) > 1]
        if repeated:
            raise ValueError(f"given twice: {', '.join(repeated)}")
        return classes

    @field_validator("label_columns")
    @classmethod
    def _check_label_columns(cls, columns: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if columns is None:
            return None
        if info.data.get("label_column", "label") != "label":
            raise ValueError("replaces label_column; give only one of them")
        if not info.data.get("multi_label"):
            raise ValueError("means that an image has any number of labels; drop multi_label: false")
        for name in columns:
            if "|" in name:
                raise ValueError(f"{name!r} has a |, which stands between labels; rename the column")
        return columns

    @field_validator("path_column", "label_column", "split_column", "multi_label", "label_columns")
    @classmethod
    def _check_csv_only(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[info.field_name or ""].default and not info.data.get("csv"):
            raise ValueError("is for csv data only, and would do nothing here")
        return value

    @field_validator("class_level")
    @classmethod
    def _check_class_level(cls, level: int | str, info: ValidationInfo) -> int | str:
        if level != 1 and not info.data.get("folder"):
            raise ValueError("is for a folder only, and would do nothing here")
        return level

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        given = [name for name in DATA_SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"say where the images are: one of {', '.join(DATA_SOURCES)}")
        if len(given) > 1:
            drop = f"the override data.{given[0]}=null drops one"
            raise ValueError(f"{' and '.join(given)} are given, keep one of them ({drop})")
        return self


class ModelConfig(Section):
    """The pretrained network, how an image is fitted to it, and the new head."""

    backbone: str = option("efficientnet_lite0", "pretrained network; `finetune backbones` lists them")
    weights: WeightsChoice = option("imagenet", "imagenet, none (random start) or the path of a weight file")
    image_size: Whole | None = option(None, "side of the square input; absent: the network's own", le=MAX_IMAGE_SIZE)
    resize: Literal["crop", "squash", "pad"] = option("crop", "how an image becomes square: cut, distort, or add bars")
    pooling: Literal["avg", "max", "gem"] = option("avg", "how the feature map becomes one vector")
    hidden: tuple[Annotated[Whole, Field(ge=1, le=MAX_WIDTH)], ...] = option(
        (), "widths of hidden layers in the head", max_length=MAX_HIDDEN
    )
    cosine: bool = option(False, "classify by the angle between features and class, not their length", strict=True)
    dropout: Number = option(0.2, "fraction of the features dropped while training the head", ge=0, lt=1)
    batch_norm: Literal["frozen", "train", "recalibrate"] = option(
        "frozen", "BatchNorm of unfrozen blocks; train: for large data; recalibrate: new statistics after the phase"
    )

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, name: str) -> str:
        from finetune.backbones import find_backbone

        try:
            return find_backbone(name).name
        except ConfigError as error:
            raise ValueError(" ".join(str(error).split())) from error

    @field_validator("image_size")
    @classmethod
    def _check_image_size(cls, size: int | None, info: ValidationInfo) -> int | None:
        from finetune.backbones import find_backbone

        name = info.data.get("backbone")  # absent if it is wrong itself
        if size is not None and name:
            least = find_backbone(name).min_size
            if size < least:
                raise ValueError(f"{size} is too small for {name}, which needs {least} or more")
        return size


class AugmentConfig(Section):
    """Random changes to training images: a preset, which gives all numbers, and numbers that replace the preset's."""

    preset: Literal["none", "light", "standard", "strong"] = option("none", "where the other numbers start")
    flip: Literal["none", "horizontal", "both"] = option("none", "mirror left-right, or upside down too")
    rotate: Number = option(0, "turn by up to so many degrees", ge=0, le=180)
    zoom: Number = option(0, "enlarge or shrink by up to this fraction", ge=0, lt=1)
    shift: Fraction = option(0, "move by up to this fraction of the side")
    brightness: Fraction = option(0, "lighten or darken by up to this fraction of the way from black to white")
    contrast: Fraction = option(0, "change the contrast by up to this fraction")
    saturation: Fraction = option(0, "change the strength of colours by up to this fraction")
    hue: Fraction = option(0, "turn the colour circle by up to this fraction, either way; 0.5 is all of it")
    erase: Fraction = option(0, "probability that a rectangle is blanked, with grey")
    rand_augment: Fraction = option(0, "two random changes of up to this strength per image (RandAugment)")
    mixup: Number = option(0, "blend pairs at the cut: alpha of the Beta distribution, such as 0.2", ge=0, le=10)
    cutmix: Fraction = option(0, "paste a rectangle of another image at the cut: alpha, such as 1; not for the head")
    views: Views = option(4, "versions of each image, computed once; live: new ones each epoch")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("preset"), str):
            unchanged = {name: field.default for name, field in cls.model_fields.items() if name != "views"}
            return {**unchanged, **PRESETS.get(values["preset"], {}), **values}
        return values

    @property
    def active(self) -> bool:
        """Whether any image is changed at all (mixing happens later, at the cut)."""
        return self.model_copy(update={"preset": "none", "views": 4, "mixup": 0, "cutmix": 0}) != AugmentConfig()


class PhaseConfig(Section):
    """One stretch of training. `head` trains the new head on top of the frozen backbone."""

    epochs: Whole = option(20, "passes over the training images", ge=0)
    batch_size: Whole = option(32, "images per step", ge=1, le=65536)
    learning_rate: Rate = option(1e-3, "step length of the optimizer; auto: chosen by a test before the phase")
    optimizer: Literal["adam", "adamw", "sgd"] = option("adam", "rule that turns gradients into steps")
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"] = option(
        "cosine", "how the learning rate falls: to 0, up and down, by steps, when progress ends, or not"
    )
    warmup: Fraction = option(0, "fraction of the steps in which the rate rises from 0")
    weight_decay: Number = option(0, "pull of the weights towards 0; BatchNorm and biases are left alone", ge=0)
    label_smoothing: Number = option(0, "fraction of certainty taken from the true class", ge=0, lt=1)
    clip: Number | None = option(None, "longest gradient, as a norm over all weights", gt=0)
    accumulate: Whole = option(1, "batches whose gradients make one step", ge=1)
    ema: Momentum | None = option(
        None, "keep the moving average of the weights: its momentum, such as 0.99; auto: by the number of steps"
    )
    patience: Whole | None = option(None, "stop after so many epochs without progress", ge=1)
    monitor: Literal["accuracy", "loss"] = option("accuracy", "validation figure that picks the epoch")


class HeadConfig(PhaseConfig):
    """Training of the new head on top of the frozen backbone."""

    start: Literal["regression", "random"] = option(
        "regression", "first weights: a logistic regression on the features, in closed form, or random numbers"
    )


class FineTuneConfig(PhaseConfig):
    """Training of the last blocks of the backbone together with the head."""

    unfreeze: Unfreeze = option(3, "the last `3 blocks`, a fraction of the blocks (0.3), from a layer on, or all")
    epochs: Whole = option(10, "passes over the training images", ge=0)
    learning_rate: Rate = option(1e-4, "step length of the optimizer; auto: chosen by a test before the phase")
    layer_decay: Number = option(1, "the steps of a block are this times those of the block after it", gt=0, le=1)


class TensorBoardConfig(Section):
    """What TensorBoard shows beyond curves, images and the projector; both cost time."""

    histograms: bool = option(False, "weights and gradients of each epoch as histograms", strict=True)
    profile: bool = option(False, "time a few steps of each phase with TensorFlow's profiler", strict=True)


class Config(Section):
    """A whole training."""

    version: Whole = option(VERSION, "format of this file; finetune fills it in", ge=1)
    extends: Path | None = option(
        None, "config file that this one starts from, beside it; keys that are given here win", exclude=True
    )
    name: str = option("run", "name of the runs; absent: that of the file", max_length=100)
    seed: Whole = option(0, "start of all random numbers", ge=0, lt=2**32)
    deterministic: bool = option(False, "same bits each time, but slower", strict=True)
    recipe: Literal["auto", "none"] = option("auto", "choose each key left out from the data; none: the defaults below")
    time_budget: Seconds | None = option(None, "how long a run may take, such as 10 min: fewer epochs if need be")
    output: Path = option(Path("runs"), "folder of the runs, in the working directory")
    data: DataConfig = Field(description="where the images are")
    model: ModelConfig = option(ModelConfig(), "the network")
    augment: AugmentConfig = option(AugmentConfig(), "random changes to training images")
    head: HeadConfig = option(HeadConfig(), "training of the new head")
    fine_tune: tuple[FineTuneConfig, ...] = option(
        (), "then training deeper: a mapping, a list of them, or none for the head alone"
    )
    imbalance: Literal["none", "weights", "oversample", "logit_adjust"] = option(
        "none", "help for rare classes: heavier, shown more often, or logits adjusted by how common each class is"
    )
    device: Literal["auto", "cpu", "gpu", "all"] = option(
        "auto", "where to compute; auto: one GPU if there is any; all: every GPU, each on its part of a batch"
    )
    calibrate: bool = option(True, "calibrate probabilities: a temperature fitted on validation", strict=True)
    cache: Literal["auto", "memory", "disk", "off"] = option("auto", "where computed features are kept")
    tensorboard: TensorBoardConfig = option(TensorBoardConfig(), "what TensorBoard shows beyond the usual")

    def longer(self) -> str:
        """The override that doubles the epochs of the last phase which has any: `fine_tune.epochs=24`."""
        phases: dict[str, PhaseConfig] = {"head": self.head}
        for number, phase in enumerate(self.fine_tune):
            phases["fine_tune" if len(self.fine_tune) == 1 else f"fine_tune.{number}"] = phase
        key = next((key for key in reversed(phases) if phases[key].epochs), "head")
        return f"{key}.epochs={2 * phases[key].epochs or 10}"

    @model_validator(mode="before")
    @classmethod
    def _expand_short_forms(cls, values: Any) -> Any:
        """A single word for a section, a single mapping for a list, nothing for the default."""
        if not isinstance(values, Mapping):
            return values
        if "fine_tune" in values and values["fine_tune"] in (None, "none"):
            values = {**values, "fine_tune": ()}
        values = {key: value for key, value in values.items() if value is not None}
        for section, key in ONE_WORD.items():
            if isinstance(values.get(section), str):
                values[section] = {key: values[section]}
        if isinstance(values.get("fine_tune"), Mapping | FineTuneConfig):
            values["fine_tune"] = (values["fine_tune"],)
        return values

    @field_validator("extends", mode="before")
    @classmethod
    def _refuse_extends(cls, value: Any) -> Any:
        raise ValueError("can stand in a config file only")  # there `load_config` has replaced it by what it means

    @property
    def starts_from_regression(self) -> bool:
        """Whether the head is one that can have the weights of a logistic regression, and shall have them."""
        return self.head.start == "regression" and not self.model.hidden and not self.model.cosine

    @field_validator("imbalance")
    @classmethod
    def _check_imbalance(cls, value: str, info: ValidationInfo) -> str:
        data = info.data.get("data")  # absent if it is wrong itself
        if data and data.multi_label and value in ("oversample", "logit_adjust"):
            raise ValueError(f"{value} needs exactly one class per image; with data.multi_label there is weights")
        return value

    @field_validator("cache", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads `off` as False

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: int) -> int:
        if version > VERSION:
            raise ValueError(f"made by a newer finetune, this one reads {VERSION}: pip install --upgrade finetune")
        return version

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w][\w .+-]*(?<! )", name):
            raise ValueError(f"{name!r} cannot name a folder: use letters, digits and . _ - + inside")
        return name

"""What a config file may say: every key, its default, its legal range, and what it does.

    config = load("configs/flowers.yaml", ["head.epochs=5"])     a file, or just "flowers" for a shipped one
    config = load({"data": {"folder": "photos"}})                the same from Python
    config.head.learning_rate                                    0.001

The models below are the whole truth: a key that is not here is refused, and so is a value outside its
range. All mistakes of a file are reported at once, each with its line (`document` reads the YAML and knows
the lines, `complaints` finds the words). One word will do for a section where it says enough:
`model: resnet50`, `augment: light`. Overrides win over the file, later ones over earlier ones.

Paths in a file are relative to that file; paths in an override or from Python to the working directory. `~`
and `${NAME}` (an environment variable) are expanded.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from finetune.config.messages import EXPECTED, explain_error
from finetune.config.yaml_document import YamlDocument
from finetune.utils import ConfigError, did_you_mean

if TYPE_CHECKING:
    from finetune.backbones import Backbone

    pass

VERSION = 1  # of the config format; grows when an old file would mean something else

_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def _as_number(value: Any) -> Any:
    """Text such as `1e-3`, which YAML takes for no number, as one; anything else as it is."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if re.search("[.eE]", value) else int(value)
    return value


def _number(value: Any) -> Any:
    number = _as_number(value)
    if isinstance(number, bool | str):  # to Python, True is the number 1
        raise PydanticCustomError("number", "expected a number")
    return number


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Fraction = Annotated[Number, Field(ge=0, le=1)]


def option(default: Any, description: str, **limits: Any) -> Any:
    """A key of the file that may be left out."""
    return Field(default, description=description, **limits)


class Section(BaseModel):
    """One mapping of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitConfig(Section):
    """Shares of the images; a data set that brings splits of its own keeps them."""

    train: Number = option(0.8, "share to learn from", gt=0, le=1)
    validation: Number = option(0.1, "share to choose the best epoch by", gt=0, lt=1)
    test: Number = option(0.1, "share to measure on once, at the end", ge=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
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
    split: SplitConfig = option(SplitConfig(), "shares of train, validation and test")
    path_column: str = option("path", "csv: column of the image, relative to the csv file")
    label_column: str = option("label", "csv: column of the class name")
    split_column: str = option("split", "csv: column of train, validation or test; may be absent")
    multi_label: bool = option(False, "csv: an image has any number of labels, as a|b in one cell", strict=True)
    label_columns: tuple[str, ...] | None = option(
        None, "csv: columns of 0 and 1, one for each label, instead of label_column; means multi_label"
    )
    classes: tuple[str, ...] | None = option(None, "only these classes, in this order")
    bad_images: Literal["error", "skip"] = option("error", "what to do about unreadable images")
    leaks: Literal["warn", "error", "drop"] = option("warn", "what to do about an image in two splits")

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("label_columns") is not None:
            return {"multi_label": True, **given}
        return given

    @field_validator("classes", "label_columns")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and len(classes) < 2:
            raise ValueError(f"a classifier needs 2 classes or more, not {len(classes)}")
        if twice := [name for name in dict.fromkeys(classes or ()) if (classes or ()).count(name) > 1]:
            raise ValueError(f"given twice: {', '.join(twice)}")
        return classes

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in DATA_SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"say where the images are: one of {', '.join(DATA_SOURCES)}")
        if len(given) > 1:
            drop = f"the override data.{given[0]}=null drops one"
            raise ValueError(f"{' and '.join(given)} are given, keep one of them ({drop})")
        return self

    @field_validator("label_columns")
    @classmethod
    def _instead(cls, columns: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if columns is not None:
            if info.data.get("label_column", "label") != "label":
                raise ValueError("stands instead of label_column; give one of them")
            if not info.data.get("multi_label"):
                raise ValueError("means that an image has any number of labels; drop multi_label: false")
            if divided := [name for name in columns if "|" in name]:
                raise ValueError(f"{divided[0]!r} has a |, which stands between labels; rename the column")
        return columns

    @field_validator("path_column", "label_column", "split_column", "multi_label", "label_columns")
    @classmethod
    def _used(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[info.field_name or ""].default and not info.data.get("csv"):
            raise ValueError("is for csv data only, and would do nothing here")
        return value


DATA_SOURCES = ("folder", "csv", "tfds", "builtin")


def _weights(value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise PydanticCustomError(EXPECTED, "imagenet, none or the path of a weight file")
    return value


def _row(name: str) -> "Backbone":
    from finetune.backbones import find_backbone

    return find_backbone(name)


class ModelConfig(Section):
    """The pretrained network, how an image is fitted to it, and the new head."""

    backbone: str = option("efficientnet_lite0", "pretrained network; `finetune backbones` lists them")
    weights: Annotated[Literal["imagenet", "none"] | Path, BeforeValidator(_weights)] = option(
        "imagenet", "imagenet, none (random start) or the path of a weight file"
    )
    image_size: Whole | None = option(None, "side of the square input; absent: the network's own", le=4096)
    resize: Literal["crop", "squash", "pad"] = option("crop", "how an image becomes square: cut, distort, or add bars")
    pooling: Literal["avg", "max", "gem"] = option("avg", "how the feature map becomes one vector")
    hidden: tuple[Annotated[Whole, Field(ge=1, le=65536)], ...] = option((), "widths of hidden layers in the head")
    cosine: bool = option(False, "classify by the angle between features and class, not their length", strict=True)
    dropout: Number = option(0.2, "share of the features dropped while training the head", ge=0, lt=1)
    batch_norm: Literal["frozen", "train", "recalibrate"] = option(
        "frozen", "BatchNorm of unfrozen blocks; train: for large data; recalibrate: new statistics after the phase"
    )

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return _row(name).name
        except ConfigError as error:
            raise ValueError(" ".join(str(error).split())) from error

    @field_validator("image_size")
    @classmethod
    def _big_enough(cls, size: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("backbone")  # absent if it is wrong itself
        if size is not None and name and size < (least := _row(name).min_size):
            raise ValueError(f"{size} is too small for {name}, which needs {least} or more")
        return size


_LIGHT = {"flip": "horizontal", "rotate": 5, "zoom": 0.1, "shift": 0.05}
_STANDARD = _LIGHT | {"rotate": 10, "zoom": 0.2, "shift": 0.1, "brightness": 0.1, "contrast": 0.1}
_STRONG = _STANDARD | {"rotate": 20, "zoom": 0.3, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "mixup": 0.2}
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": _LIGHT,
    "standard": _STANDARD,
    "strong": _STRONG | {"hue": 0.02, "erase": 0.25},
}


def _views(value: Any) -> Any:
    number = _as_number(value)
    if number == "live" or (type(number) is int and number >= 1):
        return number
    raise PydanticCustomError(EXPECTED, "a whole number, at least 1, or live")


class AugmentConfig(Section):
    """Random changes to training images: a preset, and numbers that replace the preset's."""

    preset: Literal["none", "light", "standard", "strong"] = option("none", "where the other numbers start")
    flip: Literal["none", "horizontal", "both"] = option("none", "mirror left-right, or upside down too")
    rotate: Number = option(0, "turn by up to so many degrees", ge=0, le=180)
    zoom: Fraction = option(0, "enlarge or shrink by up to this share")
    shift: Fraction = option(0, "move by up to this share of the side")
    brightness: Fraction = option(0, "lighten or darken by up to this share")
    contrast: Fraction = option(0, "change the contrast by up to this share")
    saturation: Fraction = option(0, "change the strength of colours by up to this share")
    hue: Fraction = option(0, "turn the colour circle by up to this share")
    erase: Fraction = option(0, "probability that a rectangle is blanked")
    rand_augment: Fraction = option(0, "two random changes of this strength per image (RandAugment)")
    mixup: Number = option(0, "blend pairs at the cut: alpha of the Beta distribution, such as 0.2", ge=0, le=10)
    cutmix: Fraction = option(0, "paste a rectangle of another image at the cut: alpha, such as 1; not for the head")
    views: Annotated[int | Literal["live"], BeforeValidator(_views)] = option(
        4, "versions of each image, computed once; live: new ones each epoch"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(preset := given.get("preset"), str):
            return {**PRESETS.get(preset, {}), **given}
        return given

    @property
    def active(self) -> bool:
        """Whether any image is changed at all (mixing happens later, at the cut)."""
        return self.model_copy(update={"preset": "none", "views": 4, "mixup": 0, "cutmix": 0}) != AugmentConfig()


def _rate(value: Any) -> Any:
    number = _as_number(value)
    if number == "auto" or (isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < math.inf):
        return number
    raise PydanticCustomError(EXPECTED, "a number, above 0, or auto")


Rate = Annotated[float | Literal["auto"], BeforeValidator(_rate)]


class PhaseConfig(Section):
    """One stretch of training. `head` trains the new head on top of the frozen backbone."""

    epochs: Whole = option(20, "passes over the training images", ge=0)
    batch_size: Whole = option(32, "images per step", ge=1, le=65536)
    learning_rate: Rate = option(1e-3, "step length of the optimizer; auto: found by a test before the phase")
    optimizer: Literal["adam", "adamw", "sgd"] = option("adam", "rule that turns gradients into steps")
    schedule: Literal["cosine", "one_cycle", "step", "plateau", "constant"] = option(
        "cosine", "how the learning rate falls: to 0, up and down, by steps, when progress ends, or not"
    )
    warmup: Fraction = option(0, "share of the steps in which the rate rises from 0")
    weight_decay: Number = option(0, "pull of the weights towards 0; BatchNorm and biases are left alone", ge=0)
    label_smoothing: Number = option(0, "share of certainty taken from the true class", ge=0, lt=1)
    clip: Number | None = option(None, "longest gradient, as a norm over all weights", gt=0)
    accumulate: Whole = option(1, "batches whose gradients make one step", ge=1)
    ema: Number | None = option(None, "keep the moving average of the weights, such as 0.99", gt=0, lt=1)
    patience: Whole | None = option(None, "stop after so many epochs without progress", ge=1)
    monitor: Literal["accuracy", "loss"] = option("accuracy", "validation figure that picks the epoch")


def _unfreeze(value: Any) -> Any:
    """`3 blocks` -> 3; a whole number counts blocks, a fraction is a share, other text names a layer."""
    blocks = re.fullmatch(r"([0-9]+) +blocks?", value.strip()) if isinstance(value, str) else None
    wanted = int(blocks[1]) if blocks else _as_number(value)
    match wanted:
        case bool():
            pass
        case str() if wanted and not re.search(r"\s", wanted):  # no layer has a space in its name
            return wanted
        case int() if wanted >= 1:
            return wanted
        case float() if 0 < wanted <= 1:
            return wanted
    raise PydanticCustomError(EXPECTED, "3 blocks (at least 1), a share (0.3), a layer name or all")


class HeadConfig(PhaseConfig):
    """Training of the new head on top of the frozen backbone."""

    start: Literal["regression", "random"] = option(
        "regression", "first weights: a logistic regression on the features, in closed form, or random numbers"
    )


class FineTuneConfig(PhaseConfig):
    """Training of the last blocks of the backbone together with the head."""

    unfreeze: Annotated[int | float | str, BeforeValidator(_unfreeze)] = option(
        3, "the last `3 blocks`, a share of the blocks (0.3), from a layer on, or all"
    )
    epochs: Whole = option(10, "passes over the training images", ge=0)
    learning_rate: Rate = option(1e-4, "step length of the optimizer; auto: found by a test before the phase")
    layer_decay: Number = option(1, "each block's steps are this times those of the block after it", gt=0, le=1)


UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hours": 3600, "minutes": 60, "seconds": 1}


def _seconds(value: Any) -> Any:
    """`10 min` -> 600.0; a plain number counts seconds."""
    given = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", value.strip().lower()) if isinstance(value, str) else None
    number = _as_number(given[1] if given else value)
    unit = UNITS.get((given[2] if given else "") or "s")
    if isinstance(number, int | float) and not isinstance(number, bool) and number > 0 and unit:
        return float(number * unit)
    raise PydanticCustomError(EXPECTED, "a time such as 10 min, 90 s or 2 h")


class TensorBoardConfig(Section):
    """What TensorBoard shows beyond curves, images and the projector; both cost time."""

    histograms: bool = option(False, "weights and gradients of each epoch as histograms", strict=True)
    profile: bool = option(False, "time a few steps of each phase with TensorFlow's profiler", strict=True)


class Config(Section):
    """A whole training."""

    version: Whole = option(VERSION, "format of this file; finetune fills it in", ge=1)
    name: str = option("run", "name of the runs; absent: that of the file", max_length=100)
    seed: Whole = option(0, "start of all random numbers", ge=0, lt=2**32)
    deterministic: bool = option(False, "same bits each time, but slower", strict=True)
    recipe: Literal["auto", "none"] = option("auto", "choose what is left open from the data; none: the defaults below")
    time_budget: Annotated[float, BeforeValidator(_seconds)] | None = option(
        None, "how long a run may take, such as 10 min: fewer epochs if need be"
    )
    output: Path = option(Path("runs"), "folder of the runs, in the working directory")
    data: DataConfig = Field(description="where the images are")
    model: ModelConfig = option(ModelConfig(), "the network")
    augment: AugmentConfig = option(AugmentConfig(), "random changes to training images")
    head: HeadConfig = option(HeadConfig(), "training of the new head")
    fine_tune: tuple[FineTuneConfig, ...] = option((), "then training deeper: a mapping, or a list of them")
    imbalance: Literal["none", "weights", "oversample", "logit_adjust"] = option(
        "none", "help for rare classes: heavier, shown more often, or logits adjusted by how common each class is"
    )
    device: Literal["auto", "cpu", "gpu", "all"] = option(
        "auto", "where to compute; auto: one GPU if there is any; all: every GPU, each on its part of a batch"
    )
    calibrate: bool = option(True, "make probabilities honest: a temperature fitted on validation", strict=True)
    cache: Literal["auto", "memory", "disk", "off"] = option("auto", "where computed features are kept")
    tensorboard: TensorBoardConfig = option(TensorBoardConfig(), "what TensorBoard shows beyond the usual")

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: Any) -> Any:
        """The short forms: one word for a section, one mapping for a list, nothing for the default."""
        if not isinstance(given, Mapping):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        for section, key in ONE_WORD.items():
            if isinstance(given.get(section), str):
                given[section] = {key: given[section]}
        if isinstance(given.get("fine_tune"), Mapping | FineTuneConfig):
            given["fine_tune"] = (given["fine_tune"],)
        return given

    @field_validator("imbalance")
    @classmethod
    def _for_labels(cls, value: str, info: ValidationInfo) -> str:
        if (data := info.data.get("data")) and data.multi_label and value in ("oversample", "logit_adjust"):
            raise ValueError(f"{value} needs one class an image; with data.multi_label there is weights")
        return value

    @field_validator("cache", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads `off` as False

    @field_validator("version")
    @classmethod
    def _not_newer(cls, version: int) -> int:
        if version > VERSION:
            raise ValueError(f"made by a newer finetune, this one reads {VERSION}: pip install --upgrade finetune")
        return version

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w][\w .+-]*(?<! )", name):
            raise ValueError(f"{name!r} cannot name a folder: use letters, digits and . _ - + inside")
        return name


ONE_WORD = {"model": "backbone", "augment": "preset"}


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The config in a file, under a shipped name or in a mapping, with `key.path=value` overrides.

    Raises ConfigError that lists every problem as `file.yaml:LINE: key.path: message`.
    """
    if isinstance(source, Mapping):
        document = YamlDocument.from_mapping(source)
    else:
        document = YamlDocument.from_file(find_config(source))
    for text in overrides:
        for section, key in ONE_WORD.items():  # so that an override may enter the section
            if isinstance(word := document.data.get(section), str):
                document.data[section] = {key: word}
        document.override(text)
    document.expand(("data", "folder"))
    document.expand(("data", "csv"))
    document.expand(("model", "weights"), words=("imagenet", "none"))
    document.expand(("output",), absolute=False)
    if document.data.get("name") is None:
        document.data["name"] = re.sub(r"[^\w.+-]+", "-", document.name).strip("-.+")[:100] or "run"
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        for problem in error.errors():
            place = document.locate(problem["loc"])[1]
            document.report(problem["loc"], explain_error(problem, Config, place.text))
        document.check()
        raise  # not reached: there was a problem
    document.check()
    return config


def find_config(name: str | Path) -> Path:
    """The config file of that path, or the shipped one of that name. Raises ConfigError with near names."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    known = shipped_configs()
    if str(path.parent) in (".", "configs") and path.stem in known and path.suffix in ("", ".yaml"):
        return known[path.stem]
    beside = [file.name for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)]
    raise ConfigError(
        f"{path}: there is no such file.{did_you_mean(path.name, [*beside, *known])}",
        hint=f"Shipped: {', '.join(known)}. `finetune init FOLDER` writes one for your own images.",
    )


def shipped_configs() -> dict[str, Path]:
    """The configs that come with finetune, by name."""
    package = Path(__file__).parents[1]
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def dump_config(config: Config) -> str:
    """YAML with every value spelled out, that loads to an equal config from any folder."""
    values = config.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = Config.model_json_schema()
    properties = schema["properties"]
    for section in ONE_WORD:
        properties[section]["anyOf"] = [{"type": "string"}, {"$ref": properties[section].pop("$ref")}]
    phases = properties["fine_tune"]
    one = phases.pop("items")
    phases["anyOf"] = [one, {"type": phases.pop("type"), "items": one}, {"type": "null"}]
    return schema

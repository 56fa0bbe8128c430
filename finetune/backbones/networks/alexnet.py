"""AlexNet, which won ImageNet 2012, in the one-tower form of torchvision.

Papers: https://papers.nips.cc/paper/4824 (2012, two towers) and https://arxiv.org/abs/1404.5997 (this form,
2014). Input: images (N, H, W, 3), scaled outside with the mean and deviation of ImageNet ("torch").
Weights: torchvision's `alexnet-owt-7be5be79.pth`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.backbones.networks.building import build_model, image_input, pool_features
from finetune.backbones.networks.loading import set_torch_weights
from finetune.backbones.torch_file import Array
from finetune.utils import keras

TORCH_NAMES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "predictions": "classifier.6",
}


def AlexNet(
    include_top: bool = True,
    weights: None = None,
    input_tensor: Any = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "alexnet",
) -> "keras.Model":
    """AlexNet, native size 224; the top works at that size only. Arguments as in `keras.applications`."""
    start = image_input(input_tensor, input_shape, 224)
    x = keras.layers.ZeroPadding2D(2, name="pad1")(start)  # (N, 224, 224, 3) -> (N, 228, 228, 3)
    x = keras.layers.Conv2D(64, 11, strides=4, activation="relu", name="conv1")(x)  # -> (N, 55, 55, 64)
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool1")(x)  # -> (N, 27, 27, 64)
    x = keras.layers.Conv2D(192, 5, padding="same", activation="relu", name="conv2")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool2")(x)  # -> (N, 13, 13, 192)
    x = keras.layers.Conv2D(384, 3, padding="same", activation="relu", name="conv3")(x)
    x = keras.layers.Conv2D(256, 3, padding="same", activation="relu", name="conv4")(x)
    x = keras.layers.Conv2D(256, 3, padding="same", activation="relu", name="conv5")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool5")(x)  # -> (N, 6, 6, 256)
    if include_top:
        x = keras.layers.Flatten(name="flatten")(x)  # -> (N, 9216)
        x = keras.layers.Dropout(0.5, name="dropout6")(x)
        x = keras.layers.Dense(4096, activation="relu", name="fc6")(x)
        x = keras.layers.Dropout(0.5, name="dropout7")(x)
        x = keras.layers.Dense(4096, activation="relu", name="fc7")(x)
        x = keras.layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    else:
        x = pool_features(x, pooling)
    return build_model(x, input_tensor, start, name)


def assign(model: "keras.Model", tensors: Mapping[str, Array]) -> None:
    """Put the tensors of torchvision's AlexNet into `model` (with or without top).

    Every tensor must find its layer and every layer its tensors: WeightsError with a report by layer otherwise.
    """
    tensors = dict(tensors)
    fc6 = tensors.get(f"{TORCH_NAMES['fc6']}.weight")
    if fc6 is not None and fc6.shape[1:] == (9216,):  # torch flattens (c, h, w), Keras (h, w, c)
        pixels_first = np.transpose(fc6.reshape(-1, 256, 6, 6), (0, 2, 3, 1))
        tensors[f"{TORCH_NAMES['fc6']}.weight"] = pixels_first.reshape(-1, 9216)
    names = {torch: name for name, torch in TORCH_NAMES.items()}
    set_torch_weights(model, tensors, names, optional=["fc6", "fc7", "predictions"])

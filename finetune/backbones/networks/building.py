"""The parts that every network here begins and ends with, so that each has the signature of `keras.applications`.

x = start = image_input(input_tensor, input_shape, 224)
x = ...                                                             # the layers
x = classification_head(x, include_top, pooling, classes, activation, dropout=0.2)
return build_model(x, input_tensor, start, name)
"""

from collections.abc import Sequence
from typing import Any

from finetune.backbones.registry import Backbone
from finetune.utils import keras


def image_input(input_tensor: Any, input_shape: Sequence[int | None] | None, size: int) -> Any:
    """The tensor that a network starts from: the caller's, or a new input of `input_shape` (H, W, 3)."""
    if input_tensor is not None:
        return input_tensor
    return keras.Input(input_shape or (size, size, 3), name="image")


def classification_head(
    x: Any, include_top: bool, pooling: str | None, classes: int, activation: str | None, *, dropout: float
) -> Any:
    """The usual last layers on a feature map: pool, drop out, dense; or only `pooling`, or nothing."""
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)  # (N, h, w, c) -> (N, c)
        x = keras.layers.Dropout(dropout, name="top_dropout")(x)
        return keras.layers.Dense(classes, activation=activation, name="predictions")(x)
    return pool_features(x, pooling)


def pool_features(x: Any, pooling: str | None) -> Any:
    """(N, h, w, c) -> (N, c) for "avg" and "max", else as it is."""
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name="max_pool")(x)
    return x


def build_model(x: Any, input_tensor: Any, start: Any, name: str) -> "keras.Model":
    """A model from `start` (or from the inputs behind the caller's `input_tensor`) to `x`."""
    if input_tensor is None:
        return keras.Model(start, x, name=name)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x, name=name)


def feature_map_of(model: "keras.Model", row: Backbone) -> Any:
    """The symbolic last feature map (N, h, w, c) of a `model` that was built with include_top=True.

    Some networks of Keras leave the layer without a name of its own; there it is what the last global pooling
    takes in.
    """
    if row.features:
        return model.get_layer(row.features).output
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    return pools[-1].input

"""The one place where weight files are put into networks.

load_weights(model, weights, row)            the file that `resolve_weights` returned, into a model of that row
set_weights(model, arrays, what=...)         arrays by layer name, all or none
set_torch_weights(model, tensors, names)     the same of a torch file
"""

import importlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.backbones.h5_file import arrays_of, layers_of
from finetune.backbones.registry import Backbone
from finetune.backbones.torch_file import Array, read_torch_file
from finetune.backbones.weights import Weights
from finetune.utils import WeightsError, keras

REPORTED = 20  # layers that do not fit, in a message
# EfficientNet B0 to B7 were published with the standard deviation of ImageNet where Keras' Normalization
# has the variance, and with weights="imagenet" (only then) Keras adds a layer that divides by its root once
# more. We build with weights=None, without that layer; the square in its place gives equal outputs.
# https://github.com/tensorflow/tensorflow/issues/49930
DEVIATION = (0.229, 0.224, 0.225)


def load_weights(model: "keras.Model", weights: Weights, row: Backbone) -> None:
    """Put `weights` into `model`: the layers that `row.constructor` makes, up to the features or to the head.

    `weights` come from `resolve_weights`, which has checked the file. A file with a head can be loaded into a model
    without. WeightsError reports what does not fit, layer by layer, and then nothing in `model` has changed.
    """
    if weights.format == "torch":
        module = importlib.import_module(row.constructor.partition(":")[0])
        module.assign(model, read_torch_file(weights.path))
        return
    if weights.format == "h5":
        # As Keras does: the first layer with weights in the file is for the first in the model, and so on. Names do
        # not count (Keras numbers some layers differently in every process); what is left over in the file is its head.
        names = [layer.name for layer in model.layers if layer.weights]
        layers = layers_of(weights.path)
        arrays = {name: arrays for name, (_, arrays) in zip(names, layers, strict=False)}
    else:
        arrays = _by_layer_name(model.layers, arrays_of(weights.path))
    set_weights(model, arrays, what=str(weights.path))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, variance, *rest = layer.get_weights()
            if np.allclose(np.ravel(variance), DEVIATION, atol=1e-4):
                layer.set_weights([mean, variance**2, *rest])
                layer.finalize_state()


def _by_layer_name(layers: Sequence[Any], arrays: Mapping[str, Array], prefix: str = "") -> dict[str, list[Array]]:
    """The arrays of a Keras 3 file, which calls a layer by its class and a number (conv2d, conv2d_1), by layer name."""
    counts: Counter[str] = Counter()
    by_name = {}
    for layer in layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        place = f"{prefix}{kind}_{counts[kind]}" if counts[kind] else f"{prefix}{kind}"
        counts[kind] += 1
        keys = [f"{place}/vars/{number}" for number in range(len(layer.weights))]
        own = [arrays[key] for key in keys if key in arrays]
        for inner in _by_layer_name(getattr(layer, "layers", ()), arrays, f"{place}/layers/").values():
            own += inner
        if own:
            by_name[layer.name] = own
    return by_name


def set_torch_weights(
    model: "keras.Model", tensors: Mapping[str, Array], names: Mapping[str, str], *, optional: Collection[str]
) -> None:
    """As `set_weights`, of `tensors` by the names of torch ("features.0.weight"), in the layout of torch.

    `names` has the model's name of every layer of torch; unknown ones are kept, for the report.
    """
    layers: dict[str, dict[str, Array]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        if part != "num_batches_tracked":  # how often torch updated its statistics: no weight
            layers.setdefault(names.get(layer, layer), {})[part] = tensor
    arrays: dict[str, list[Array]] = {}
    for name, parts in layers.items():
        arrays[name] = [parts[part] for part in ("weight", "bias", "running_mean", "running_var") if part in parts]
        kernel = parts.get("weight", np.zeros(0))
        if kernel.ndim == 4:  # (out, in, h, w) -> (h, w, in, out); depthwise (c, 1, h, w) -> (h, w, c, 1)
            arrays[name][0] = np.transpose(kernel, (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
        elif kernel.ndim == 2:
            arrays[name][0] = kernel.T
    set_weights(model, arrays, what="the torch file", optional=optional)


def set_weights(
    model: "keras.Model", arrays: Mapping[str, Sequence[Array]], *, what: str, optional: Collection[str] = ()
) -> None:
    """Give every layer of `model` its arrays, by layer name, or change nothing and report every difference.

    Layers named in `optional` may be absent in the model (a file with a head, a model without). An array
    with NaN, infinity, or a kernel of nothing but zeros does not count as weights. `what` is the file, for the report.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    # in the order of weight files
    variables = {name: [*layer.trainable_weights, *layer.non_trainable_weights] for name, layer in layers.items()}
    left_over = [name for name in arrays if name not in layers and name not in optional]
    problems = []
    for name in [*layers, *left_over]:
        if problem := _mismatch(variables.get(name), arrays.get(name)):
            problems.append(f"{name}: {problem}")
    if problems:
        shown = problems[:REPORTED]
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown)} layers more")
        raise WeightsError("\n    ".join([f"{what}: its weights are not those of {model.name}:", *shown]))
    for name, layer in layers.items():
        for variable, array in zip(variables[name], arrays[name], strict=True):
            variable.assign(array)
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _mismatch(variables: Sequence[Any] | None, arrays: Sequence[Array] | None) -> str | None:
    """Why the arrays of a layer do not fit its variables, None if they do."""
    expected, given = _shapes(variables), _shapes(arrays)
    if expected != given:
        return f"expected {expected}, the file has {given}"
    for variable, array in zip(variables or (), arrays or (), strict=True):
        if array.dtype.kind not in "fiu":
            return f"{array.dtype} in place of numbers"
        if not np.isfinite(array).all():
            return "NaN or infinity among its weights"
        is_kernel = array.ndim > 1 and "bias" not in variable.name  # the biases of attention have two axes
        if is_kernel and not array.any():
            return "nothing but zeros in its kernel"
    return None


def _shapes(arrays: Sequence[Any] | None) -> str:
    """`3x3x3x32, 32`"""
    if arrays is None:
        return "no such layer"
    return ", ".join("x".join(map(str, array.shape)) or "a number" for array in arrays)

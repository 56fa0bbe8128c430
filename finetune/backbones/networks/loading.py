"""The one place where weight files are put into networks.

load_weights(model, weights, row)       what `resolve_weights` returned, into a model of that row
set_weights(model, arrays, what=...)    arrays by layer name, all or none
"""

import importlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.backbones.h5_file import arrays_of, check_h5, layers_of
from finetune.backbones.registry import Backbone
from finetune.backbones.torch_file import Array, read_torch_file
from finetune.backbones.weights import Weights
from finetune.utils import WeightsError, keras


def load_weights(model: "keras.Model", weights: Weights, row: Backbone) -> None:
    """Put `weights` into `model`: the layers that `row.constructor` makes, up to the features or to the head.

    A file with a head goes into a model without. WeightsError reports what does not fit, layer by layer,
    and then nothing in `model` has changed.
    """
    if weights.format == "torch":
        module = importlib.import_module(row.constructor.partition(":")[0])
        module.assign(model, read_torch_file(weights.path))
        return
    check_h5(weights.path)
    found = _in_order(model, weights) if weights.format == "h5" else _keras3(model.layers, arrays_of(weights.path))
    set_weights(model, found, what=str(weights.path))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            _complete_efficientnet(layer)


def _in_order(model: "keras.Model", weights: Weights) -> dict[str, list[Array]]:
    """As Keras does: the first layer with weights in the file for the first in the model, and so on.

    Names do not matter (Keras numbers some layers anew in every process); what the file has more is its head.
    """
    wanted = [layer.name for layer in model.layers if layer.weights]
    return {name: arrays for name, (_, arrays) in zip(wanted, layers_of(weights.path), strict=False)}


def _keras3(layers: Sequence[Any], arrays: Mapping[str, Array], prefix: str = "") -> dict[str, list[Array]]:
    """The newer files call a layer by its class and a number: conv2d, conv2d_1, ..."""
    counts: Counter[str] = Counter()
    found = {}
    for layer in layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        place = f"{prefix}{kind}_{counts[kind]}" if counts[kind] else f"{prefix}{kind}"
        counts[kind] += 1
        own = [arrays[f"{place}/vars/{i}"] for i in range(len(layer.weights)) if f"{place}/vars/{i}" in arrays]
        inner = _keras3(getattr(layer, "layers", ()), arrays, f"{place}/layers/")
        if own or inner:
            found[layer.name] = [*own, *(array for part in inner.values() for array in part)]
    return found


# EfficientNet B0 to B7 were published with the standard deviation of ImageNet where Keras' Normalization
# has the variance, and with weights="imagenet" (only then) Keras adds a layer that divides by its root once
# more. We build with weights=None, without that layer; the square in its place gives equal outputs.
# https://github.com/tensorflow/tensorflow/issues/49930
DEVIATION = (0.229, 0.224, 0.225)


def _complete_efficientnet(layer: Any) -> None:
    mean, variance, *rest = layer.get_weights()
    if np.allclose(np.ravel(variance), DEVIATION, atol=1e-4):
        layer.set_weights([mean, variance**2, *rest])
        layer.finalize_state()


def set_weights(
    model: "keras.Model", found: Mapping[str, Sequence[Array]], *, what: str, optional: Collection[str] = ()
) -> None:
    """Give every layer of `model` its arrays in `found`, or change nothing and report every difference.

    Layers named in `optional` may be left over in `found` (a file with a head, a model without). An array
    with NaN, infinity, or a kernel of nothing but zeros does not count as weights.
    """
    wanted = {layer.name: _variables(layer) for layer in model.layers if layer.weights}
    left_over = [name for name in found if name not in wanted and name not in optional]
    problems = [_problem(name, wanted.get(name), found.get(name)) for name in [*wanted, *left_over]]
    if any(problems):
        raise WeightsError(_report(what, model.name, [problem for problem in problems if problem]))
    for layer in model.layers:
        for variable, array in zip(wanted.get(layer.name, ()), found.get(layer.name, ()), strict=False):
            variable.assign(array)
        if hasattr(layer, "finalize_state") and layer.name in wanted:
            layer.finalize_state()


def _variables(layer: Any) -> list[Any]:
    """In the order of weight files."""
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _problem(name: str, wanted: Sequence[Any] | None, found: Sequence[Array] | None) -> str | None:
    """One line of the report, None if the arrays fit the variables."""
    shapes = None if wanted is None else [tuple(variable.shape) for variable in wanted]
    given = None if found is None else [tuple(array.shape) for array in found]
    if shapes != given:
        return f"{name}: wanted {_text(shapes)}, found {_text(given)}"
    for array in found or ():
        if array.dtype.kind not in "fiu":
            return f"{name}: {array.dtype} in place of numbers"
        if not np.isfinite(array).all():
            return f"{name}: NaN or infinity among its weights"
        if array.ndim > 1 and not array.any():
            return f"{name}: nothing but zeros in its kernel"
    return None


def _text(shapes: list[tuple[int, ...]] | None) -> str:
    if shapes is None:
        return "no such layer"
    return ", ".join("x".join(map(str, shape)) or "a number" for shape in shapes)


def _report(what: str, model: str, problems: list[str], limit: int = 20) -> str:
    rest = [f"... and {len(problems) - limit} layers more"] if len(problems) > limit else []
    return "\n    ".join([f"{what}: its weights are not those of {model}:", *problems[:limit], *rest])

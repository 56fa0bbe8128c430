"""Building the network of a classifier: preprocessing, backbone, pooling and head in one flat functional model.

build_classifier(config.model, classes)    a backbone with ImageNet weights, frozen, and a new head
load_pretrained("resnet50")                an ImageNet network with its own head
"""

import itertools
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydantic import ValidationError

from finetune.backbones import (
    SCALINGS,
    Weights,
    feature_map_of,
    find_backbone,
    imagenet_classes,
    load_weights,
    resolve_weights,
)
from finetune.config import ModelConfig
from finetune.models.classifier import Classifier
from finetune.models.spec import ClassifierSpec
from finetune.utils import ConfigError, WeightsError, dtype_policy, keras

_SEEDING = threading.Lock()
SHARPNESS = 16.0  # of a cosine head: logits lie in -16..16


def build_classifier(
    config: ModelConfig, classes: Sequence[str], *, seed: int = 0, multi_label: bool = False
) -> Classifier:
    """A backbone with its ImageNet weights, frozen, and a new head for `classes`, of which an image has one or, with
    `multi_label`, any number.

    Raises WeightsError when the weights cannot be had, ConfigError when the size does not fit the backbone, or for what
    could be trained and not be loaded again (see `ClassifierSpec`).
    """
    row, spec = find_backbone(config.backbone), new_spec(config, classes, multi_label=multi_label)
    source = resolve_weights(row, config.weights, top=False)
    with _seeded(seed):  # the head's first values, and a backbone without weights
        classifier = build_network(spec, name=row.name, seed=seed)
    if source is not None:
        _fill(classifier, classifier.feature_map, source)
    classifier.model.trainable = False
    return classifier


def new_spec(config: ModelConfig, classes: Sequence[str], *, multi_label: bool = False) -> ClassifierSpec:
    """What `build_classifier` builds. Raises ConfigError, without TensorFlow, for what could not be loaded again."""
    row = find_backbone(config.backbone)
    try:
        return ClassifierSpec(
            backbone=row.name,
            image_size=config.image_size or row.size,
            resize=config.resize,
            pooling=config.pooling,
            dropout=config.dropout,
            hidden=config.hidden,
            cosine=config.cosine,
            multi_label=multi_label,
            classes=tuple(classes),
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"a classifier cannot be saved with this {where}: {problem['msg']}.") from None


def load_pretrained(name: str) -> Classifier:
    """The ImageNet network `name` with its own head. Raises WeightsError when its weights cannot be had."""
    spec = pretrained_spec(name)
    source = resolve_weights(find_backbone(name), "imagenet", top=True)
    assert source is not None  # see `pretrained_spec`
    classifier = build_network(spec, name=spec.backbone)
    _fill(classifier, classifier.model.output, source)
    return classifier


def pretrained_spec(name: str) -> ClassifierSpec:
    """What `load_pretrained` builds. Raises WeightsError, without TensorFlow, when its weights cannot be had."""
    row = find_backbone(name)
    if row.top is None:
        raise WeightsError(
            f"{row.name} has no ImageNet weights, so it cannot predict the 1000 classes.",
            hint="`finetune backbones` lists the networks that can.",
        )
    resolve_weights(row, "imagenet", top=True, download=False)
    classes = tuple(entry.name for entry in imagenet_classes())
    return ClassifierSpec(backbone=row.name, image_size=row.size, pooling="imagenet", classes=classes)


def build_network(spec: ClassifierSpec, *, name: str, seed: int = 0, available: float = math.inf) -> Classifier:
    """The flat functional model that `spec` describes, with random weights.

    `available` is how many numbers there are to fill it: WeightsError before memory is taken for more.
    """
    row = find_backbone(spec.backbone)
    _require(available, row.parameters if spec.pretrained else row.backbone_parameters, row.name)
    with _dtype_policy(dtype_policy()):
        image = keras.Input((spec.image_size, spec.image_size, 3), name="image")
        x = preprocess(image, row.scaling)
        if spec.pretrained:
            whole = row.build(include_top=True, input_tensor=x, classifier_activation=None)
            features = feature_map_of(whole, row)
            logits = whole.output
        else:
            features = row.build(include_top=False, input_tensor=x).output
            widths = [features.shape[-1], *spec.hidden, len(spec.classes)]
            head_parameters = sum((before + 1) * after for before, after in itertools.pairwise(widths))
            if spec.cosine:  # no bias
                head_parameters -= len(spec.classes)
            _require(available, row.backbone_parameters + head_parameters, row.name)
            logits = _head(spec, _pool(spec.pooling, features), seed)
        model = keras.Model(image, logits, name=row.name)
    return Classifier(name, spec, model, features)


def _pool(kind: str, features: Any) -> Any:
    """(N, h, w, channels) -> (N, channels)"""
    if kind == "max":
        return keras.layers.GlobalMaxPooling2D(name="pooling")(features)
    if kind == "gem":  # generalised mean (Radenovic et al. 2018) with its usual exponent 3
        cubes = keras.ops.power(keras.ops.maximum(features, 1e-6), 3.0)
        mean = keras.layers.GlobalAveragePooling2D(name="mean_of_cubes", dtype=keras.config.floatx())(cubes)
        root = keras.ops.power(mean, 1 / 3)
        return keras.layers.Activation("linear", name="pooling")(root)
    return keras.layers.GlobalAveragePooling2D(name="pooling")(features)


def _head(spec: ClassifierSpec, x: Any, seed: int) -> Any:
    """Pooled features (N, channels) -> logits (N, classes)."""
    for number, width in enumerate(spec.hidden, start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"hidden{number}")(x)
    x = keras.layers.Dropout(spec.dropout, seed=seed, name="dropout")(x)
    if not spec.cosine:
        return keras.layers.Dense(len(spec.classes), dtype=keras.config.floatx(), name="logits")(x)
    # Gidaris & Komodakis 2018: the angle alone decides, which helps where some classes have very few images.
    x = keras.layers.UnitNormalization(dtype=keras.config.floatx(), name="direction")(x)
    x = keras.layers.Rescaling(SHARPNESS, dtype=keras.config.floatx(), name="sharpness")(x)
    unit = keras.constraints.UnitNorm(axis=0)
    return keras.layers.Dense(
        len(spec.classes), use_bias=False, kernel_constraint=unit, dtype=keras.config.floatx(), name="logits"
    )(x)


def _require(available: float, needed: int, name: str) -> None:
    if available < needed:
        raise WeightsError(f"its weights are not those of {name}: {available:,} numbers at most, not {needed:,}")


def preprocess(image: Any, scaling: str) -> Any:
    """Channel order, scale and offset as one frozen 1x1 convolution, so that the saved model needs nothing of ours."""
    if scaling == "none":  # the network brings its own
        return image
    matrix, bias = SCALINGS[scaling]
    layer = keras.layers.Conv2D(3, 1, trainable=False, name="preprocessing", dtype="float32")
    scaled = layer(image)
    layer.set_weights([np.asarray(matrix, "float32").reshape(1, 1, 3, 3), np.asarray(bias, "float32")])
    return scaled


def _fill(classifier: Classifier, output: Any, source: Weights) -> None:
    """Puts the weights of `source` into the layers up to `output`: those of the original network, our scaling aside."""
    model, row = classifier.model, classifier.row
    begin = model.inputs[0] if row.scaling == "none" else model.get_layer("preprocessing").output
    load_weights(keras.Model(begin, output), source, row)
    classifier.weights_hash = source.sha256
    classifier.warning = source.warning or ""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """In the block all random numbers come from `seed`, in one thread at a time.

    Those of Python and NumPy belong to the program that called us: afterwards they go on as if nothing had been drawn.
    """
    with _SEEDING:
        python, numpy = random.getstate(), np.random.get_state()
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _dtype_policy(policy: str) -> Iterator[None]:
    """Layers that are created inside compute in `policy`, such as `mixed_bfloat16`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

"""The classifier: preprocessing + backbone + head + class names + how an image file becomes a tensor.

    build(config.model, classes)   a backbone with ImageNet weights and a new head, ready to be trained
    load("resnet50")               the same network with its own 1000-class head, no training needed
    load("runs/flowers-1")         what a run has trained

All three are one flat Keras functional model, `image (N,S,S,3) float 0..255 -> logits (N, classes)`, and everything
that predicts, measures, explains or exports asks for nothing but a `Classifier`.
"""

import importlib
import itertools
import json
import math
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.backbones import (
    SCALINGS,
    Backbone,
    Block,
    Weights,
    check_h5,
    feature_map_of,
    find_backbone,
    find_blocks,
    imagenet_classes,
    load_weights,
    resolve_weights,
    shape_counts,
)
from finetune.config import ModelConfig
from finetune.data import LabelType, Transform, image_batches, image_reader, label_type, pad_batch
from finetune.models.predictor import Prediction, find_inputs, predict_images
from finetune.utils import ConfigError, WeightsError, atomic_write, did_you_mean, dtype_policy, keras, printable, tf

FORMAT = 1
MEMBER = "finetune.json"  # our page inside the .keras archive; plain Keras ignores it
MEMBERS = {"metadata.json", "config.json", "model.weights.h5", MEMBER}  # what `save` writes, and no more
MAX_CLASSES = 100_000
MAX_NAME = 1000  # letters in a class name
MAX_SIZE = 2048
MAX_PAGE = 4_000_000  # bytes of our page: a hundred thousand names
MAX_ROWS = 1000  # of the table of confidences
MAX_HIDDEN = 8  # layers
SHARPNESS = 16.0  # of a cosine head: logits lie in -16..16
MAX_EXPANSION = 20  # bytes per byte of archive; weights hardly compress, so an honest one has about 1


@dataclass(frozen=True)
class ClassifierSpec:
    """All that is needed to build the network again, in plain JSON: names from our catalogue and a few numbers."""

    backbone: str
    image_size: int
    resize: Literal["crop", "squash", "pad"] = "crop"
    pooling: str = "avg"  # "imagenet": the network's own 1000-class head
    dropout: float = 0.0
    hidden: tuple[int, ...] = ()  # widths of the head's hidden layers
    cosine: bool = False  # logits are SHARPNESS times the cosine between features and class
    temperature: float = 1.0  # the logits have been divided by it already, in the last layer's weights
    confidences: tuple[tuple[float, float, float], ...] = ()  # threshold, precision, coverage (see `calibration`)
    multi_label: bool = False  # an image has any number of the classes, and the logits go through a sigmoid each
    thresholds: tuple[float, ...] = ()  # of multi_label: the probability from which on each class is said
    classes: tuple[str, ...] = field(default=())
    format: int = FORMAT

    @property
    def pretrained(self) -> bool:
        return self.pooling == "imagenet"

    @property
    def label_type(self) -> LabelType:
        """What an answer is: one of the classes, or any of them."""
        return label_type(self.multi_label)

    @property
    def linear_head(self) -> bool:
        """Whether the head is one dense layer on pooled features."""
        return not (self.pretrained or self.hidden or self.cosine)


class Classifier:
    """A network that names what is in an image. Made by `build` and `load`, not by hand."""

    def __init__(
        self, name: str, spec: ClassifierSpec, model: Any, backbone_output: Any, weights_hash: str | None = None
    ) -> None:
        self.name = name
        self.spec = spec
        self.model = model
        self.weights_hash = weights_hash
        self._backbone_output = backbone_output
        self.warning = ""  # what the user should know about the weights
        self.changed: set[int] = set()  # ids of the variables that training has touched

    @property
    def row(self) -> Backbone:
        return find_backbone(self.spec.backbone)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """WordNet ids of the 1000 ImageNet classes; empty strings for classes of the user's own."""
        if self.spec.pretrained:
            return tuple(entry.id for entry in imagenet_classes())
        return ("",) * len(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def label_type(self) -> LabelType:
        return self.spec.label_type

    @property
    def thresholds(self) -> np.ndarray:
        """(classes,) the probability from which on each is said, where an image has any number; else unused."""
        return np.array(self.spec.thresholds or [0.5] * len(self.classes), np.float32)

    @property
    def transform(self) -> Transform:
        return transform_of(self.spec)

    @property
    def backbone(self) -> Any:
        """The part below the head: `image -> feature map`, sharing its layers with `model`."""
        return keras.Model(self.model.inputs[0], self._backbone_output)

    def blocks(self) -> list[Block]:
        return find_blocks(self.backbone)

    @property
    def feature_map(self) -> Any:
        """The tensor between backbone and head, (N, h, w, channels)."""
        return self._backbone_output

    @property
    def head_input(self) -> Any:
        """The tensor under the first trainable layer of the head: pooled features, (N, channels)."""
        return self.model.get_layer("pooling").output

    @cached_property
    def forward(self) -> Callable[[Any], Any]:
        """`images (N,S,S,3) uint8 or float 0..255 -> probabilities (N, classes) float32`, as fast as we can."""
        run = inference_function(self.model)
        return lambda images: activate(self.label_type, tf.cast(run(images)[0], tf.float32))

    def probabilities(
        self, paths: Sequence[str | Path], *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
        """Yields `(start, probabilities (n, classes) float32, problems)` batch by batch, in the order of `paths`.

        Reading runs ahead of the network; memory does not grow with the number of files. The row of an image that
        cannot be read is NaN, and `problems` maps its index to the reason.
        """
        read = image_reader([str(path) for path in paths], self.transform)
        batch_size = min(batch_size, max(1, len(paths)))
        for batch in image_batches(read, np.arange(len(paths)), batch_size):
            rows = self.forward(pad_batch(batch.images, batch_size)).numpy()[: len(batch.indices)]
            for index in batch.problems:
                rows[index - batch.indices[0]] = np.nan
            yield int(batch.indices[0]), rows, batch.problems
            if progress:
                progress(int(batch.indices[-1]) + 1, len(paths))

    def predict(self, paths: str | Path | Sequence[str | Path], *, top: int = 5) -> list[Prediction]:
        """The `top` likeliest classes of each image; `paths` may be files, folders and globs.

        Raises DataError when there is no image; one that cannot be read is an answer with an `error`.
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        return list(predict_images(self, find_inputs(given), top=top))

    def cool(self, temperature: float) -> None:
        """Divides the logits by `temperature`, in the weights of the last layer: nothing else must know of it."""
        layer = self.model.get_layer("logits")
        layer.set_weights([weight / temperature for weight in layer.get_weights()])
        self.spec = replace(self.spec, temperature=self.spec.temperature * temperature)

    def save(self, path: Path) -> None:
        """Writes `path` (.keras), which plain Keras opens too. Raises ResourceError when it cannot be written."""

        def write(target: Path) -> None:
            self.model.save(target)
            with zipfile.ZipFile(target, "a") as archive:
                archive.writestr(MEMBER, json.dumps(asdict(self.spec), ensure_ascii=False, indent=1))

        atomic_write(path, write)


def transform_of(spec: ClassifierSpec) -> Transform:
    row = find_backbone(spec.backbone)
    return Transform(size=spec.image_size, resize=spec.resize, crop=row.crop, interpolation=row.interpolation)


def activate(label_type: LabelType, logits: Any) -> Any:
    """Probabilities (N, classes) of a tensor of logits: softmax, or a sigmoid each."""
    return getattr(tf.nn, label_type.activation)(logits)


def inference_function(model: Any) -> Callable[[Any], list[Any]]:
    """`model` as one TensorFlow function with its weights as constants, layers in inference mode.

    With constants, TensorFlow's graph optimiser folds every BatchNorm into the convolution before it: 1.3 to 1.45
    times the images per second of a compiled Keras forward pass on 2 cores, equal outputs (float tolerance).
    The function is a snapshot: train the model, and `inference` must be called again.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = tf.TensorSpec(model.inputs[0].shape, tf.float32)

    @tf.function(input_signature=[signature], autograph=False)
    def forward(batch: Any) -> Any:
        outputs = model(batch, training=False)
        return [tf.cast(output, tf.float32) for output in keras.tree.flatten(outputs)]

    frozen = convert_variables_to_constants_v2(forward.get_concrete_function())
    return lambda batch: frozen(tf.cast(batch, tf.float32))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------- building


def build_classifier(
    config: ModelConfig, classes: Sequence[str], *, seed: int = 0, multi_label: bool = False
) -> Classifier:
    """A backbone with its ImageNet weights, frozen, and a new head for `classes`, of which an image has one or, with
    `multi_label`, any number.

    Raises WeightsError when the weights cannot be had, ConfigError when the size does not fit the backbone.
    """
    row = find_backbone(config.backbone)
    spec = ClassifierSpec(
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
    source = resolve_weights(row, config.weights, top=False)
    keras.utils.set_random_seed(seed)  # the head's first values, and a backbone without weights
    classifier = _network(spec, name=row.name, seed=seed)
    if source is not None:
        _fill(classifier, classifier._backbone_output, source)
    classifier.model.trainable = False
    return classifier


def load_pretrained(name: str) -> Classifier:
    """The ImageNet network `name` with its own head. Raises WeightsError when its weights cannot be had."""
    row = find_backbone(name)
    classes = tuple(entry.name for entry in imagenet_classes())
    spec = ClassifierSpec(backbone=row.name, image_size=row.size, pooling="imagenet", classes=classes)
    source = resolve_weights(row, "imagenet", top=True)
    if source is None:
        raise WeightsError(
            f"{row.name} has no ImageNet weights, so it cannot answer with 1000 classes.",
            hint="`finetune backbones` lists the networks that can.",
        )
    classifier = _network(spec, name=row.name)
    _fill(classifier, classifier.model.output, source)
    return classifier


def _network(spec: ClassifierSpec, *, name: str, seed: int = 0, held: float = math.inf) -> Classifier:
    """The flat functional model that `spec` describes, with weights as they come.

    `held` is how many numbers there are to fill it: WeightsError before memory is taken for more.
    """
    row = find_backbone(spec.backbone)
    _require(held, row.parameters if spec.pretrained else row.backbone_parameters, row.name)
    with _dtype_policy(dtype_policy()):
        image = keras.Input((spec.image_size, spec.image_size, 3), name="image")
        x = _preprocess(image, row.scaling)
        constructor = _import(row.constructor)
        if spec.pretrained:
            whole = constructor(
                include_top=True, weights=None, input_tensor=x, classifier_activation=None, **row.arguments
            )
            features = feature_map_of(whole, row)
            logits = whole.output
        else:
            features = constructor(include_top=False, weights=None, input_tensor=x, **row.arguments).output
            _require(held, row.backbone_parameters + _head_parameters(spec, features.shape[-1]), row.name)
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


def _head_parameters(spec: ClassifierSpec, channels: int) -> int:
    widths = [channels, *spec.hidden, len(spec.classes)]
    return sum((before + 1) * after for before, after in itertools.pairwise(widths)) - spec.cosine * len(spec.classes)


def _require(held: float, needed: int, name: str) -> None:
    if held < needed:
        raise WeightsError(f"its weights are not those of {name}: {held:,} numbers at most, not {needed:,}")


def _preprocess(image: Any, scaling: str) -> Any:
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


def _import(dotted: str) -> Any:
    module, _, attribute = dotted.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _dtype_policy:
    """`with _dtype_policy("mixed_bfloat16"):` — layers made inside compute in it."""

    def __init__(self, policy: str) -> None:
        self.policy = policy

    def __enter__(self) -> None:
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.policy)

    def __exit__(self, *_: object) -> None:
        keras.config.set_dtype_policy(self.before)


# ---------------------------------------------------------------------------------------------------- loading


def load_classifier(source: str | Path) -> Classifier:
    """A run directory, a `.keras` file of ours, or the name of a backbone (its 1000-class answer).

    Nothing in the file is executed: the network is built from our own catalogue and only numbers are read.
    Raises WeightsError for files that are damaged or not ours, ConfigError for unknown names.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / "model.keras").exists():
            raise _no_model(path)
        return _open(path / "model.keras", name=path.name)
    if path.suffix == ".keras" or path.is_file():
        return _open(path, name=path.stem)
    if path.parent != Path("."):
        near = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise WeightsError(
            f"{path}: no such run or model.{did_you_mean(str(path), near)}",
            hint="Give a run directory, a .keras file, or the name of a backbone (finetune backbones).",
        )
    return load_pretrained(str(source))


def _no_model(folder: Path) -> WeightsError:
    if (folder / "export.json").exists():
        return WeightsError(
            f"{folder}: an export for other programs; finetune opens only those in the format keras.",
            hint="Give the run that it was made from. README.md in it shows how it is used.",
        )
    return WeightsError(
        f"{folder}: this directory holds no model.keras.",
        hint=f"An unfinished run is continued with: finetune train --resume {folder}",
    )


def _open(path: Path, *, name: str) -> Classifier:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file.", hint="Give a run directory or a .keras file.")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            spec = _read_spec(path, archive.read(MEMBER))
            content = archive.read("model.weights.h5")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(_damaged(path, error)) from None
    try:
        classifier = _network(spec, name=name, held=len(content) // 4)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error.message}") from None
    _load_weights(classifier, content, path)
    return classifier


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuses, by the archive's list of contents alone, what `save` never writes."""
    names = [member.filename for member in members]
    if MEMBER not in names or "model.weights.h5" not in names:
        raise WeightsError(
            f"{path}: not a model of finetune (a .keras file without {MEMBER}).",
            hint="Files that other programs saved may hold code and are not opened.",
        )
    strange = [printable(name)[:80] for name in names if name not in MEMBERS or names.count(name) > 1]
    if len(names) > len(MEMBERS) or strange:
        raise WeightsError(f"{path}: not a model of finetune (it also holds {', '.join(strange[:5])}).")
    size = path.stat().st_size
    page = next(member.file_size for member in members if member.filename == MEMBER)
    if page > MAX_PAGE or sum(member.file_size for member in members) > MAX_EXPANSION * size + MAX_PAGE:
        raise WeightsError(f"{path}: promises more than a file of {size:,} bytes can hold.")


def _damaged(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    return f"{path}: damaged, or not a model of finetune ({path.stat().st_size} bytes, starts with {start!r}; {error})."


def _read_spec(path: Path, text: bytes) -> ClassifierSpec:
    """Checks every value before anything is built from it: a small file must not be able to claim a giant network."""
    try:
        values = json.loads(text)
        lists = {name: tuple(values.get(name, ())) for name in ("classes", "hidden", "thresholds")}
        rows = tuple(tuple(row) for row in values.get("confidences", ()))
        spec = ClassifierSpec(**{**values, **lists, "confidences": rows})
        if spec.format > FORMAT:
            raise WeightsError(f"{path}: made by a newer finetune (format {spec.format}).", hint="Upgrade finetune.")
        sound = isinstance(values["classes"], list) and _is_sound(spec, find_backbone(spec.backbone))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: its {MEMBER} cannot be read ({printable(str(error))[:200]}).") from None
    except ConfigError as error:
        raise WeightsError(f"{path}: {printable(error.message)[:200]}") from None
    if not sound:
        raise WeightsError(f"{path}: its {MEMBER} holds values outside their range.")
    return spec


def _is_sound(spec: ClassifierSpec, row: Backbone) -> bool:
    fits = len(spec.classes) == 1000 and (spec.image_size == row.size or not row.fixed_head_size)
    return (
        type(spec.format) is int
        and spec.format >= 1
        and type(spec.image_size) is int  # True is an int as well
        and row.min_size <= spec.image_size <= MAX_SIZE
        and spec.resize in ("crop", "squash", "pad")
        and spec.pooling in ("avg", "max", "gem", "imagenet")
        and type(spec.dropout) in (int, float)
        and 0 <= spec.dropout < 1
        and type(spec.cosine) is bool
        and len(spec.hidden) <= MAX_HIDDEN
        and all(type(width) is int and 1 <= width <= 65536 for width in spec.hidden)
        and type(spec.temperature) in (int, float)
        and 0 < spec.temperature < 1000
        and len(spec.confidences) <= MAX_ROWS
        and all(len(row) == 3 and all(_is_share(number) for number in row) for row in spec.confidences)
        and type(spec.multi_label) is bool
        and not (spec.multi_label and spec.pretrained)
        and len(spec.thresholds) in ((0, len(spec.classes)) if spec.multi_label else (0,))
        and all(_is_share(number) for number in spec.thresholds)
        and 2 <= len(spec.classes) <= MAX_CLASSES
        and len(set(spec.classes)) == len(spec.classes)
        and all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME for name in spec.classes)
        and (fits or not spec.pretrained)
    )


def _is_share(number: Any) -> bool:
    return type(number) in (int, float) and 0 <= number <= 1.0001  # a probability may round to a little above 1


def _load_weights(classifier: Classifier, content: bytes, path: Path) -> None:
    shapes = shape_counts(tuple(w.shape) for w in classifier.model.weights)
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        plain = Path(folder) / "model.weights.h5"
        plain.write_bytes(content)
        try:
            check_h5(plain, shapes)
        except WeightsError as error:
            raise WeightsError(error.message.replace(str(plain), f"{path}: model.weights.h5")) from None
        _fill_with_nan(classifier.model.weights)
        try:
            classifier.model.load_weights(plain)
        except Exception as error:  # whatever Keras makes of a file that it did not write
            reason = printable(str(error))[:200]
            raise WeightsError(f"{path}: its weights do not fit {classifier.spec.backbone}: {reason}") from None
    if missed := [weight.path for weight in classifier.model.weights if not np.isfinite(weight.numpy()).all()]:
        raise WeightsError(f"{path}: its weights do not fit {classifier.spec.backbone}: nothing for {missed[0]}")


def _fill_with_nan(weights: Sequence[Any]) -> None:
    """So that a weight which Keras passes over in silence cannot keep the value it was built with."""
    for weight in weights:
        weight.assign(np.full(weight.shape, np.nan, weight.dtype))

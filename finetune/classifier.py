"""The classifier: preprocessing + backbone + head + class names + how an image file becomes a tensor.

    build(config.model, classes)   a backbone with ImageNet weights and a new head, ready to be trained
    load("resnet50")               the same network with its own 1000-class head, no training needed
    load("runs/flowers-1")         what a run has trained

All three are one flat Keras functional model, `image (N,S,S,3) float 0..255 -> logits (N, classes)`, and everything
that predicts, measures, explains or exports asks for nothing but a `Classifier`.
"""

import importlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune import blocks, catalog, files, h5file, networks, pipeline, prediction, weights
from finetune.catalog import Backbone
from finetune.config import Model as ModelConfig
from finetune.device import keras, precision, tf
from finetune.errors import FinetuneError, WeightsError, did_you_mean
from finetune.images import Transform

FORMAT = 1
MEMBER = "finetune.json"  # our page inside the .keras archive; plain Keras ignores it
MAX_CLASSES = 100_000
MAX_SIZE = 2048


@dataclass(frozen=True)
class Spec:
    """All that is needed to build the network again, in plain JSON: names from our catalogue and a few numbers."""

    backbone: str
    image_size: int
    resize: str = "crop"
    pooling: str = "avg"  # "imagenet": the network's own 1000-class head
    dropout: float = 0.0
    classes: tuple[str, ...] = field(default=())
    format: int = FORMAT

    @property
    def pretrained(self) -> bool:
        return self.pooling == "imagenet"


class Classifier:
    """A network that names what is in a picture. Made by `build` and `load`, not by hand."""

    def __init__(self, name: str, spec: Spec, model: Any, backbone_output: Any, weights_hash: str | None = None) -> None:
        self.name = name
        self.spec = spec
        self.model = model
        self.weights_hash = weights_hash
        self._backbone_output = backbone_output
        self.warning = ""  # what the user should know about the weights
        self.changed: set[int] = set()  # ids of the variables that training has touched

    @property
    def row(self) -> Backbone:
        return catalog.find(self.spec.backbone)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """WordNet ids of the 1000 ImageNet classes; empty strings for classes of the user's own."""
        if self.spec.pretrained:
            return tuple(entry.id for entry in catalog.imagenet_classes())
        return ("",) * len(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def transform(self) -> Transform:
        return transform(self.spec)

    @property
    def backbone(self) -> Any:
        """The part below the head: `image -> feature map`, sharing its layers with `model`."""
        return keras.Model(self.model.inputs[0], self._backbone_output)

    def blocks(self) -> list[blocks.Block]:
        return blocks.find(self.backbone)

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
        run = inference(self.model)
        return lambda images: tf.nn.softmax(tf.cast(run(images)[0], tf.float32))

    def probabilities(
        self, paths: Sequence[str | Path], *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
        """Yields `(start, probabilities (n, classes) float32, problems)` batch by batch, in the order of `paths`.

        Reading runs ahead of the network; memory does not grow with the number of files. The row of a picture that
        cannot be read is NaN, and `problems` maps its index to the reason.
        """
        read = pipeline.reader([str(path) for path in paths], self.transform)
        batch_size = min(batch_size, max(1, len(paths)))
        for batch in pipeline.batches(read, np.arange(len(paths)), batch_size):
            rows = self.forward(pipeline.padded(batch.images, batch_size)).numpy()[: len(batch.indices)]
            for index in batch.problems:
                rows[index - batch.indices[0]] = np.nan
            yield int(batch.indices[0]), rows, batch.problems
            if progress:
                progress(int(batch.indices[-1]) + 1, len(paths))

    def predict(self, paths: str | Path | Sequence[str | Path], *, top: int = 5) -> list[prediction.Answer]:
        """The `top` likeliest classes of each picture; `paths` may be files, folders and globs.

        Raises DataError when there is no picture; one that cannot be read is an answer with an `error`.
        """
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        return list(prediction.predict(self, prediction.find_inputs(given), top=top))

    def save(self, path: Path) -> None:
        """Writes `path` (.keras), which plain Keras opens too. Raises ResourceError when it cannot be written."""

        def write(target: Path) -> None:
            self.model.save(target)
            with zipfile.ZipFile(target, "a") as archive:
                archive.writestr(MEMBER, json.dumps(asdict(self.spec), ensure_ascii=False, indent=1))

        files.commit(path, write)


def transform(spec: Spec) -> Transform:
    row = catalog.find(spec.backbone)
    return Transform(size=spec.image_size, resize=spec.resize, crop=row.crop, interpolation=row.interpolation)


def inference(model: Any) -> Callable[[Any], list[Any]]:
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


def build(config: ModelConfig, classes: Sequence[str], *, seed: int = 0) -> Classifier:
    """A backbone with its ImageNet weights, frozen, and a new head for `classes`.

    Raises WeightsError when the weights cannot be had, ConfigError when the size does not fit the backbone.
    """
    row = catalog.find(config.backbone)
    spec = Spec(
        backbone=row.name,
        image_size=config.image_size or row.size,
        resize=config.resize,
        pooling=config.pooling,
        dropout=config.dropout,
        classes=tuple(classes),
    )
    source = weights.resolve(row, config.weights, top=False)
    keras.utils.set_random_seed(seed)  # the head's first values, and a backbone without weights
    classifier = _network(spec, name=row.name, seed=seed)
    if source is not None:
        _fill(classifier, classifier._backbone_output, source)
    classifier.model.trainable = False
    return classifier


def pretrained(name: str) -> Classifier:
    """The ImageNet network `name` with its own head. Raises WeightsError when its weights cannot be had."""
    row = catalog.find(name)
    classes = tuple(entry.name for entry in catalog.imagenet_classes())
    spec = Spec(backbone=row.name, image_size=row.size, pooling="imagenet", classes=classes)
    source = weights.resolve(row, "imagenet", top=True)
    if source is None:
        raise WeightsError(
            f"{row.name} has no ImageNet weights, so it cannot answer with 1000 classes.",
            remedy="`finetune backbones` lists the networks that can.",
        )
    classifier = _network(spec, name=row.name)
    _fill(classifier, classifier.model.output, source)
    return classifier


def _network(spec: Spec, *, name: str, seed: int = 0) -> Classifier:
    """The flat functional model that `spec` describes, with weights as they come."""
    row = catalog.find(spec.backbone)
    with _dtype_policy(precision()):
        image = keras.Input((spec.image_size, spec.image_size, 3), name="image")
        x = _preprocess(image, row.scaling)
        constructor = _import(row.constructor)
        if spec.pretrained:
            whole = constructor(
                include_top=True, weights=None, input_tensor=x, classifier_activation=None, **row.arguments
            )
            features = networks.feature_map(whole, row)
            logits = whole.output
        else:
            features = constructor(include_top=False, weights=None, input_tensor=x, **row.arguments).output
            pool = keras.layers.GlobalMaxPooling2D if spec.pooling == "max" else keras.layers.GlobalAveragePooling2D
            x = pool(name="pooling")(features)  # (N, h, w, channels) -> (N, channels)
            x = keras.layers.Dropout(spec.dropout, seed=seed, name="dropout")(x)
            logits = keras.layers.Dense(len(spec.classes), dtype="float32", name="logits")(x)
        model = keras.Model(image, logits, name=row.name)
    return Classifier(name, spec, model, features)


def _preprocess(image: Any, scaling: str) -> Any:
    """Channel order, scale and offset as one frozen 1x1 convolution, so that the saved model needs nothing of ours."""
    if scaling == "none":  # the network brings its own
        return image
    matrix, bias = catalog.SCALINGS[scaling]
    layer = keras.layers.Conv2D(3, 1, trainable=False, name="preprocessing", dtype="float32")
    scaled = layer(image)
    layer.set_weights([np.asarray(matrix, "float32").reshape(1, 1, 3, 3), np.asarray(bias, "float32")])
    return scaled


def _fill(classifier: Classifier, output: Any, source: weights.Weights) -> None:
    """Puts the weights of `source` into the layers up to `output`: those of the original network, our scaling aside."""
    model, row = classifier.model, classifier.row
    begin = model.inputs[0] if row.scaling == "none" else model.get_layer("preprocessing").output
    networks.load_into(keras.Model(begin, output), source, row)
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


def load(source: str | Path) -> Classifier:
    """A run directory, a `.keras` file of ours, or the name of a backbone (its 1000-class answer).

    Nothing in the file is executed: the network is built from our own catalogue and only numbers are read.
    Raises WeightsError for files that are damaged or not ours, ConfigError for unknown names.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / "model.keras").exists():
            raise WeightsError(
                f"{path}: this directory holds no model.keras.",
                remedy=f"An unfinished run is continued with: finetune train --resume {path}",
            )
        return _open(path / "model.keras", name=path.name)
    if path.suffix == ".keras" or path.is_file():
        return _open(path, name=path.stem)
    if path.parent != Path("."):
        near = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise WeightsError(
            f"{path}: no such run or model.{did_you_mean(str(path), near)}",
            remedy="Give a run directory, a .keras file, or the name of a backbone (finetune backbones).",
        )
    return pretrained(str(source))


def _open(path: Path, *, name: str) -> Classifier:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
            if MEMBER not in members or "model.weights.h5" not in members:
                raise WeightsError(
                    f"{path}: not a model of finetune (a .keras file without {MEMBER}).",
                    remedy="Files that other programs saved may hold code and are not opened.",
                )
            if len(members) != len(archive.infolist()) or members[MEMBER] > 10_000_000:
                raise WeightsError(f"{path}: not a model of finetune (its list of contents is forged).")
            spec = _read_spec(path, archive.read(MEMBER))
            classifier = _network(spec, name=name)
            limit = sum(int(np.prod(w.shape)) for w in classifier.model.weights) * 4
            if members["model.weights.h5"] > limit * 1.5 + 10_000_000:
                raise WeightsError(f"{path}: its weights are larger than {spec.backbone} can be.")
            content = archive.read("model.weights.h5")
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file.", remedy="Give a run directory or a .keras file.") from None
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(_damaged(path, error)) from None
    _load_weights(classifier, content, path)
    classifier.weights_hash = None
    return classifier


def _damaged(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    return f"{path}: damaged, or not a model of finetune ({path.stat().st_size} bytes, starts with {start!r}; {error})."


def _read_spec(path: Path, text: bytes) -> Spec:
    """Checks every value before anything is built from it: a small file must not be able to claim a giant network."""
    try:
        values = json.loads(text)
        spec = Spec(**{**values, "classes": tuple(values["classes"])})
        if spec.format > FORMAT:
            raise WeightsError(f"{path}: made by a newer finetune (format {spec.format}).", remedy="Upgrade finetune.")
        row = catalog.find(spec.backbone)
        sound = (
            isinstance(spec.image_size, int)
            and row.min_size <= spec.image_size <= MAX_SIZE
            and 2 <= len(spec.classes) <= MAX_CLASSES
            and all(isinstance(name, str) for name in spec.classes)
            and spec.resize in ("crop", "squash", "pad")
            and spec.pooling in ("avg", "max", "imagenet")
            and isinstance(spec.dropout, int | float)
            and 0 <= spec.dropout < 1
        )
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: its {MEMBER} cannot be read ({error}).") from None
    except WeightsError:
        raise
    except FinetuneError as error:
        raise WeightsError(f"{path}: {error.what}") from None
    if not sound:
        raise WeightsError(f"{path}: its {MEMBER} holds values outside their range.")
    return spec


def _load_weights(classifier: Classifier, content: bytes, path: Path) -> None:
    shapes = h5file.shape_counts(tuple(w.shape) for w in classifier.model.weights)
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        plain = Path(folder) / "model.weights.h5"
        plain.write_bytes(content)
        h5file.vet_h5(plain, shapes)
        try:
            classifier.model.load_weights(plain)
        except (ValueError, KeyError, OSError) as error:
            raise WeightsError(f"{path}: its weights do not fit {classifier.spec.backbone}: {error}") from None



"""The classifier: preprocessing + backbone + head + class names + how an image file becomes a tensor.

    build_classifier(config.model, classes)   a backbone with ImageNet weights and a new head, ready to be trained
    load_classifier("resnet50")               the same network with its own 1000-class head, no training needed
    load_classifier("runs/flowers-1")         what a run has trained

All three are one flat Keras functional model, `image (N,S,S,3) float 0..255 -> logits (N, classes)`, and everything
that predicts, measures, explains or exports needs nothing but a `Classifier`.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backbones import Backbone, Block, find_backbone, find_blocks
from finetune.data import ImageSource, LabelType, Transform, image_batches, image_reader, pad_batch
from finetune.models.inference import activate, inference_function
from finetune.models.inputs import find_sources
from finetune.models.predictor import Prediction, predict_images
from finetune.models.spec import ClassifierSpec
from finetune.utils import UsageError, atomic_write, keras, tf

SPEC_MEMBER = "finetune.json"  # the spec inside the .keras archive; plain Keras ignores it


class Classifier:
    """A network that names what is in an image. Use `build_classifier` or `load_classifier` to get one.

    `feature_map` is the tensor between backbone and head, (N, h, w, channels).
    """

    def __init__(
        self, name: str, spec: ClassifierSpec, model: Any, feature_map: Any, weights_hash: str | None = None
    ) -> None:
        self.name = name
        self.spec = spec
        self.model = model
        self.weights_hash = weights_hash
        self.feature_map = feature_map
        self.warning = ""  # what the user should know about the weights
        self.changed: set[int] = set()  # ids of the variables that training has touched

    @property
    def row(self) -> Backbone:
        return find_backbone(self.spec.backbone)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return self.spec.ids

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def label_type(self) -> LabelType:
        return self.spec.label_type

    @property
    def thresholds(self) -> np.ndarray:
        """(classes,) the probability from which each class is predicted, if an image has any number; else unused."""
        return np.array(self.spec.thresholds or [0.5] * len(self.classes), np.float32)

    @property
    def transform(self) -> Transform:
        return self.spec.transform

    @property
    def backbone(self) -> Any:
        """The part below the head: `image -> feature map`, sharing its layers with `model`."""
        return keras.Model(self.model.inputs[0], self.feature_map)

    def blocks(self) -> list[Block]:
        return find_blocks(self.backbone)

    @property
    def head_input(self) -> Any:
        """The tensor under the first trainable layer of the head: pooled features, (N, channels)."""
        return self.model.get_layer("pooling").output

    @cached_property
    def forward(self) -> Callable[[Any], Any]:
        """`images (N,S,S,3) uint8 or float 0..255 -> probabilities (N, classes) float32`, with the weights of now."""
        run = inference_function(self.model)
        return lambda images: activate(self.label_type, tf.cast(run(images)[0], tf.float32))

    def probabilities(
        self, images: Sequence[ImageSource], *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
        """Yields `(start, probabilities (n, classes) float32, problems)` batch by batch, in the order of `images`.

        Reading runs ahead of the network; memory does not grow with the number of files. The row of an image that
        cannot be read is NaN, and `problems` maps its index to the reason.
        """
        read = image_reader(images, self.transform)
        batch_size = min(batch_size, max(1, len(images)))
        for batch in image_batches(read, np.arange(len(images)), batch_size):
            rows = self.forward(pad_batch(batch.images, batch_size)).numpy()[: len(batch.indices)]
            for index in batch.problems:
                rows[index - batch.indices[0]] = np.nan
            yield int(batch.indices[0]), rows, batch.problems
            if progress:
                progress(int(batch.indices[-1]) + 1, len(images))

    def predict(self, images: ImageSource | Iterable[ImageSource], *, top: int = 5) -> list[Prediction]:
        """The `top` likeliest classes of each image, in the order of `images`: one prediction for each.

        An image is a file, a URL, the bytes of a file, a PIL image, or an array (H, W, 3) of uint8 0..255; its
        prediction has no `path` if it is not in a file. A folder or a glob stands for all images in it. Raises
        UsageError for anything else and for `top` below 1, DataError when there is no such file or no image in a
        folder; an image that cannot be read is a prediction with an `error`.
        """
        if top < 1:
            raise UsageError(f"top={top}: expected a whole number above 0, how many classes of each image to give.")
        return list(predict_images(self, find_sources(images), top=top))

    def apply_temperature(self, temperature: float) -> None:
        """Divide the logits by `temperature` for good, in the weights of the last layer."""
        layer = self.model.get_layer("logits")
        layer.set_weights([weight / temperature for weight in layer.get_weights()])
        self.spec = self.spec.model_copy(update={"temperature": self.spec.temperature * temperature})

    def save(self, path: Path) -> None:
        """Write `path` (.keras), which plain Keras opens too. Raises ResourceError when it cannot be written."""

        def write(target: Path) -> None:
            self.model.save(target)
            with zipfile.ZipFile(target, "a") as archive:
                archive.writestr(SPEC_MEMBER, self.spec.to_json())

        atomic_write(path, write)

"""Where in an image a classifier sees a class: Grad-CAM, Grad-CAM++ and plain CAM.

    explanation = explain_image(classifier, "dog.jpg")                     the most probable class
    explanation = explain_image(classifier, "dog.jpg", target="beagle")    another one
    explanation.heat                                                       (S, S) in 0..1
    overlay_heatmap(explanation.image, explanation.heat)                   (S, S, 3) uint8
    overlay_photo(photo, explanation, classifier.transform)                the whole image, at its own resolution

It works for every backbone. A heatmap is computed from the last feature map, so it is as coarse as that (7 x 7 cells
in most networks at 224 px) and says where, not why. It costs one pass through the backbone, and one forward and one
backward through the head.

* grad-cam    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391
* grad-cam++  Chattopadhyay et al. 2018, https://arxiv.org/abs/1710.11063: kinder to several objects of one class
* cam         Zhou et al. 2016, https://arxiv.org/abs/1512.04150: only where the head is a global mean and one
              dense layer; its scale includes evidence against the class, while Grad-CAM starts at zero
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data import Transform, read_square, resize_square
from finetune.evaluation.class_lookup import find_class
from finetune.models import Classifier, ClassScore, activate
from finetune.utils import UsageError, did_you_mean, keras, tf

EXPLAIN_METHODS = ("grad-cam", "grad-cam++", "cam")
FAINT = 0.15  # heat below that does not show
UNSEEN = 0.45  # brightness of what the network does not see
PHOTO_SIDE = 512  # a JPEG is decoded at a fraction of its size if its shorter side still has twice as many pixels
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """The evidence in `image`, (S, S, 3) uint8 as the network saw it, for one class.

    `heat` is (S, S) float32 in 0..1, 1 at the strongest evidence, all 0 without any. `cells` is the heatmap at
    the size of the feature map, (h, w), in units of its own. `predictions` are the most probable classes, best first.
    """

    image: Pixels
    heat: Floats
    cells: Floats
    target: ClassScore
    predictions: tuple[ClassScore, ...]
    method: str
    labels: tuple[int, ...] = ()  # classes above their thresholds, where an image has any number of them


def explain_image(
    classifier: Classifier,
    image: str | Path | Pixels,
    *,
    target: str | int | None = None,
    method: str = "grad-cam",
    top: int = 5,
) -> Explanation:
    """The explanation of one image: a file, or pixels (H, W, 3) uint8 (not resized if they have the network's size).

    `target` is a class by name, WordNet id or number; None is the most probable one. Raises UsageError for an unknown
    class or method, and for a network without a feature map; ImageError for a file that cannot be read.
    """
    explainer = make_explainer(classifier)
    number = None if target is None else find_class(target, classifier.classes, classifier.ids)
    size = classifier.transform.size
    if isinstance(image, str | Path):
        image = read_square(image, classifier.transform)
    elif image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    elif image.shape[:2] != (size, size):
        image = np.array(resize_square(Image.fromarray(image), classifier.transform))
    cells, rows = explainer.maps(image[None], None if number is None else [number], method=method)
    probabilities = rows[0]
    best = np.argsort(-probabilities, kind="stable").tolist()
    labels = classifier.label_type.predicted_classes(probabilities, classifier.thresholds)

    def score(number: int) -> ClassScore:
        return ClassScore(classifier.classes[number], classifier.ids[number], float(probabilities[number]))

    return Explanation(
        image=image,
        heat=heatmap(cells[0], size, method=method),
        cells=cells[0],
        target=score(best[0] if number is None else number),
        predictions=tuple(map(score, best[:top])),
        method=method,
        labels=() if labels is None else tuple(np.flatnonzero(labels).tolist()),
    )


def make_explainer(classifier: Classifier) -> "Explainer":
    """The `Explainer` of `classifier`, created once; when the classifier is trained, it uses the new weights.

    Raises UsageError for a network without a feature map.
    """
    if classifier not in _EXPLAINERS:
        _EXPLAINERS[classifier] = Explainer(classifier)
    return _EXPLAINERS[classifier]


class Explainer:
    """Heatmaps of one classifier, for many images at once."""

    def __init__(self, classifier: Classifier) -> None:
        features = classifier.feature_map
        shape = tuple(features.shape[1:])
        if len(shape) != 3 or shape[0] * shape[1] < 2:
            raise UsageError(
                f"{classifier.name} has no feature map to explain: at {classifier.spec.image_size} px its features are "
                f"{' x '.join(map(str, shape))}, which say nothing about places.",
                hint="Train with a larger model.image_size.",
            )
        self._name, self._label_type = classifier.name, classifier.label_type
        self._below = keras.Model(classifier.model.inputs[0], features)
        self._above = keras.Model(features, classifier.model.output)
        self._run: dict[str, Callable[..., Any]] = {}  # by method, each traced at its first use

    def maps(
        self, images: Pixels, targets: Sequence[int] | None = None, *, method: str = "grad-cam"
    ) -> tuple[Floats, Floats]:
        """Images (N,S,S,3) -> cells (N,h,w), signed, and probabilities (N, classes).

        `targets` has a class number per image; None is the most probable class. `heatmap` enlarges the cells.
        """
        if method not in EXPLAIN_METHODS:
            raise UsageError(
                f"there is no method {method!r}.{did_you_mean(method, EXPLAIN_METHODS)}",
                hint=f"Known: {', '.join(EXPLAIN_METHODS)}",
            )
        if method == "cam" and not has_linear_head(self._above.layers):
            raise UsageError(
                f"{self._name}: plain CAM needs a head of one global mean and one dense layer, and this one has more.",
                hint="Use --method grad-cam, which works for every head and equals CAM where CAM is possible.",
            )
        weigh = _grad_cam_plus_plus if method == "grad-cam++" else _mean_gradient

        def explain(images: Any, targets: Any) -> tuple[Any, Any]:
            cells, logits = _weighted(self._above, self._below(images, training=False), targets, weigh)
            return cells, activate(self._label_type, logits)

        if method not in self._run:
            pixels = tf.TensorSpec((None, *self._below.inputs[0].shape[1:]), tf.float32)
            signature = (pixels, tf.TensorSpec((None,), tf.int32))
            self._run[method] = tf.function(explain, input_signature=signature, autograph=False)
        chosen = np.full(len(images), -1) if targets is None else np.asarray(targets)
        cells, probabilities = self._run[method](tf.cast(images, tf.float32), tf.cast(chosen, tf.int32))
        return cells.numpy(), probabilities.numpy()


_EXPLAINERS: WeakKeyDictionary[Classifier, Explainer] = WeakKeyDictionary()


def has_linear_head(head: Sequence[Any]) -> bool:
    """Whether these layers turn a feature map into its weighted mean, as plain CAM needs it."""
    layers, linear = keras.layers, keras.activations.linear
    passed = layers.InputLayer | layers.GlobalAveragePooling2D | layers.Dropout | layers.Flatten | layers.Reshape
    for layer in head:
        if isinstance(layer, layers.Conv2D | layers.Dense | layers.Activation):
            if layer.activation is not linear or getattr(layer, "kernel_size", (1, 1)) != (1, 1):
                return False
        elif not isinstance(layer, passed):
            return False
    return any(isinstance(layer, layers.GlobalAveragePooling2D) for layer in head)


def grad_cam(head: Any, features: Any) -> tuple[Any, Any]:
    """Signed cells (N, h, w) for the most probable class of each image, and logits (N, classes), as tensors.

    `head` is the model above the feature map, `features` (N, h, w, c) its input.
    """
    return _weighted(head, features, tf.fill([len(features)], -1), _mean_gradient)


def _weighted(head: Any, features: Any, targets: Any, weigh: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    features = tf.cast(features, tf.float32)  # (N, h, w, c)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(features)  # nothing below is differentiated, which would be the costly part
        logits = tf.cast(head(features, training=False), tf.float32)  # (N, classes)
        targets = tf.where(targets < 0, tf.argmax(logits, axis=1, output_type=tf.int32), targets)
        score = tf.reduce_sum(tf.gather(logits, targets, axis=1, batch_dims=1))
    weights = weigh(features, tape.gradient(score, features))  # (N, c)
    return tf.einsum("nhwc,nc->nhw", features, weights), logits


def _mean_gradient(_features: Any, gradients: Any) -> Any:
    return tf.reduce_mean(gradients, axis=(1, 2))


def _grad_cam_plus_plus(features: Any, gradients: Any) -> Any:
    """Weights of Grad-CAM++ for the score exp(logit), whose derivatives are powers of the logit's (section 3.2)."""
    squares, cubes = gradients**2, gradients**3
    denominator = 2 * squares + cubes * tf.reduce_sum(features, axis=(1, 2), keepdims=True)
    alpha = tf.math.divide_no_nan(squares, denominator)
    return tf.reduce_sum(alpha * tf.nn.relu(gradients), axis=(1, 2))


# --------------------------------------------------------------------------------------------------- images


def heatmap(cells: Floats, size: int, *, method: str = "grad-cam") -> Floats:
    """Signed cells (h, w) -> (size, size) in 0..1, enlarged smoothly.

    Evidence against the class is 0 in both kinds of Grad-CAM; plain CAM spans from its lowest cell to its highest.
    """
    lowest = float(cells.min()) if method == "cam" else 0.0
    positive = np.maximum(cells - lowest, 0)
    highest = positive.max()
    if not np.isfinite(highest) or highest <= 0:
        return np.zeros((size, size), np.float32)
    small = Image.fromarray((positive / highest).astype(np.float32))
    return np.clip(np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32), 0, 1)


def overlay_heatmap(image: Pixels, heat: Floats) -> Pixels:
    """`image` (H, W, 3) under `heat` (H, W) in 0..1, in warm colours; unchanged where there is hardly any heat."""
    from matplotlib import colormaps

    colours = colormaps["inferno"](0.35 + 0.6 * heat)[..., :3] * 255
    shown = np.clip((heat - FAINT) / (1 - FAINT), 0, 1)
    strength = (0.65 * shown**0.7)[..., None]  # the image can be seen through the strongest heat too
    result: Pixels = (image * (1 - strength) + colours * strength).round().astype(np.uint8)
    return result


def overlay_photo(photo: Pixels, explanation: Explanation, transform: Transform) -> Pixels:
    """A whole image (H, W, 3), at any resolution, under the heatmap of its `explanation`.

    What `transform` cuts off, so that the network did not see it, is darker.
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = transform.seen_box(width, height)
    seen = np.zeros((height, width), bool)
    seen[max(top, 0) : bottom, max(left, 0) : right] = True
    scale_x, scale_y = transform.size / (right - left), transform.size / (bottom - top)
    to_square = (scale_x, 0, -scale_x * left, 0, scale_y, -scale_y * top)  # from a pixel of the photo to one of the map
    heat = Image.fromarray(explanation.heat).transform(
        (width, height), Image.Transform.AFFINE, to_square, Image.Resampling.BILINEAR
    )
    shown = np.where(seen[..., None], photo, (photo * UNSEEN).astype(np.uint8))
    return overlay_heatmap(shown, np.where(seen, np.asarray(heat), 0))

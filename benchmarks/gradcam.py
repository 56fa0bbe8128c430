"""Grad-CAM of one image against one forward and backward pass of the same network, both compiled. Target: below 1.5.

    python benchmarks/gradcam.py [BACKBONE ...]

The two take turns; the ratio is the median over the rounds. Weights do not matter for the time: they are random.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from finetune.config import ModelConfig
from finetune.evaluation import explain as explanation
from finetune.models import Classifier, build_classifier
from finetune.utils.device import keras, tf

ROUNDS = 30
NAMES = ("efficientnet_lite0", "mobilenet_v2", "resnet50", "vgg16", "convnext_tiny")


def there_and_back(classifier: Classifier) -> Callable[[np.ndarray], None]:
    """The loss of one image and its gradients for all weights."""
    model = classifier.model
    model.trainable = True

    @tf.function(autograph=False)
    def both(batch: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            score = tf.reduce_max(model(batch, training=False))
        return tape.gradient(score, model.trainable_variables)

    return lambda image: keras.tree.map_structure(lambda slope: slope.numpy(), both(tf.cast(image, tf.float32)))


def seconds(call: Callable[[np.ndarray], object], image: np.ndarray) -> float:
    started = time.perf_counter()
    call(image)
    return time.perf_counter() - started


def main(*names: str) -> None:
    for name in names or NAMES:
        classifier = build_classifier(ModelConfig(backbone=name, weights="none"), ["cat", "dog"])
        size = classifier.spec.image_size
        image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
        ours, whole = explanation.make_explainer(classifier).maps, there_and_back(classifier)
        seconds(ours, image), seconds(whole, image)  # compile
        rounds = [(seconds(ours, image), seconds(whole, image)) for _ in range(ROUNDS)]
        first, second = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(one / two for one, two in rounds)
        print(
            f"{name:<20} Grad-CAM {first:6.1f} ms   forward and backward {second:6.1f} ms   ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

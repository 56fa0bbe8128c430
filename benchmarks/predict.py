"""`finetune predict` on a folder against `keras.utils.load_img` + `model.predict`, as Keras' documentation shows it.

    python benchmarks/predict.py IMAGES [--count 400] [--rounds 3]

One image after the other, as in https://keras.io/api/applications/ ("Classify ImageNet classes with ResNet50"), the
network being EfficientNet-Lite0 on both sides, and both times without the start of the process.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from finetune import data
from finetune.models import load_classifier
from finetune.utils.device import keras


def documented(model, paths: list[str]) -> float:
    started = time.monotonic()
    for path in paths:
        image = keras.utils.load_img(path, target_size=(224, 224))
        batch = np.expand_dims(keras.utils.img_to_array(image), axis=0)
        model.predict(batch, verbose=0)
    return time.monotonic() - started


def batched(model, paths: list[str]) -> float:
    """A kinder peer: everything loaded, then one `predict`."""
    started = time.monotonic()
    images = [keras.utils.img_to_array(keras.utils.load_img(path, target_size=(224, 224))) for path in paths]
    model.predict(np.stack(images), batch_size=32, verbose=0)
    return time.monotonic() - started


def ours(classifier, paths: list[str]) -> float:
    started = time.monotonic()
    for _ in classifier.probabilities(paths):
        pass
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    paths = [str(path) for path in data.find_images(arguments.images)[0][: arguments.count]]
    classifier = load_classifier("efficientnet_lite0")
    for _ in (ours(classifier, paths[:64]), batched(classifier.model, paths[:64])):
        pass  # both compiled
    times = []
    for _ in range(arguments.rounds):
        times.append((ours(classifier, paths), documented(classifier.model, paths), batched(classifier.model, paths)))
    for name, column in zip(
        ("finetune", "load_img + predict", "the same, batched"), zip(*times, strict=True), strict=True
    ):
        print(f"{name:<20} {len(paths) / statistics.median(column):7.1f} images/s")
    single = statistics.median(other / own for own, other, _ in times)
    batch = statistics.median(other / own for own, _, other in times)
    print(f"ratio {single:.1f}, against the batched one {batch:.1f}")


if __name__ == "__main__":
    main()

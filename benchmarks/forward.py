"""Images per second of the frozen pass, decoding included, against a bare compiled Keras forward loop on ready tensors.

    KERAS_HOME=... python benchmarks/forward.py PICTURES [BACKBONE ...]

The two take turns; the figures are medians over the rounds. Weights do not matter for the time: they are random.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from finetune import catalog, features, images, pipeline
from finetune.classifier import Classifier, Spec, _network
from finetune.device import keras, tf

ROUNDS, PICTURES = 5, 320


def ours(classifier: Classifier, paths: list[str]) -> float:
    extractor = features.Extractor(classifier, [classifier.head_input])
    read = pipeline.reader(paths, classifier.transform)
    extractor(np.zeros((1, *classifier.model.input_shape[1:])))
    started = time.monotonic()
    for batch in pipeline.batches(read, np.arange(len(paths)), features.BATCH):
        extractor(batch.images)
    return len(paths) / (time.monotonic() - started)


def bare(classifier: Classifier, ready: np.ndarray) -> float:
    model = keras.Model(classifier.model.inputs[0], classifier.head_input)
    forward = tf.function(lambda batch: model(batch, training=False), autograph=False)
    batches = [tf.constant(ready[at : at + 32]) for at in range(0, len(ready), 32)]
    forward(batches[0])
    started = time.monotonic()
    for batch in batches:
        forward(batch).numpy()
    return len(ready) / (time.monotonic() - started)


def main(folder: str, *names: str) -> None:
    paths = [str(path) for path in images.find_images(Path(folder))[0][:PICTURES]]
    for name in names or ("efficientnet_lite0", "mobilenet_v2", "resnet50"):
        row = catalog.find(name)
        classifier = _network(Spec(row.name, row.size, classes=("a", "b")), name=name)
        ready = np.random.default_rng(0).uniform(0, 255, (PICTURES, row.size, row.size, 3)).astype("float32")
        rounds = [(ours(classifier, paths), bare(classifier, ready)) for _ in range(ROUNDS)]
        first, second = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(one / two for one, two in rounds)
        print(
            f"{name:<20} ours {first:6.1f}/s with decoding   bare Keras {second:6.1f}/s   ratio {ratio:.2f}", flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

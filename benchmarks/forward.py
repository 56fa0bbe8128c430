"""Images per second of the frozen pass, decoding included, against a bare compiled Keras forward loop on ready tensors.

    KERAS_HOME=... python benchmarks/forward.py IMAGES [BACKBONE ...]

They take turns; the figures are medians over the rounds. The bare loop runs in a process of its own, as a user has it;
once more it runs in ours, to tell what the memory allocator (see `finetune.device`) does from what the folding of
constants does. Weights do not matter for the time: they are random.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from finetune import data
from finetune.backbones import registry as catalog
from finetune.models import Classifier, ClassifierSpec, build_network, features
from finetune.utils.device import keras, tf

ROUNDS, IMAGES = 3, 320


def ours(classifier: Classifier, paths: list[str]) -> float:
    extractor = features.FeatureExtractor(classifier, [classifier.head_input])
    read = data.image_reader(paths, classifier.transform)
    extractor(np.zeros((1, *classifier.model.input_shape[1:])))
    started = time.monotonic()
    for batch in data.image_batches(read, np.arange(len(paths)), features.FEATURE_BATCH):
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


def network(name: str) -> Classifier:
    row = catalog.find_backbone(name)
    return build_network(ClassifierSpec(backbone=row.name, image_size=row.size, classes=("a", "b")), name=name)


def in_a_process(name: str) -> float:
    """The bare loop as a user has it: in a process of its own, with TensorFlow's usual allocator."""
    environment = {**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": "false"}
    command = [sys.executable, __file__, "--bare", name]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def ready_for(classifier: Classifier) -> np.ndarray:
    shape = (IMAGES, *classifier.model.input_shape[1:])
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def main(folder: str, *names: str) -> None:
    if folder == "--bare":
        classifier = network(names[0])
        print(bare(classifier, ready_for(classifier)))
        return
    paths = [str(path) for path in data.find_images(Path(folder))[0][:IMAGES]]
    for name in names or ("efficientnet_lite0", "mobilenet_v2", "resnet50"):
        classifier = network(name)
        ready = ready_for(classifier)
        rounds = [(ours(classifier, paths), bare(classifier, ready), in_a_process(name)) for _ in range(ROUNDS)]
        first, same, usual = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(one / three for one, _, three in rounds)
        print(
            f"{name:<20} ours {first:6.1f}/s with decoding   bare Keras {usual:6.1f}/s   ratio {ratio:.2f}   "
            f"(bare Keras with our allocator {same:.1f}/s)",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The peer: what a user writes from Keras' transfer-learning guide and TensorFlow's tutorial of the same name.

    python benchmarks/keras_guide.py SPLITS [--backbone mobilenet_v2] [--head-epochs 10] [--fine-epochs 5]

SPLITS holds train/, validation/ and test/ with a folder per class (`benchmarks/split_folder.py` makes them, as links,
from the splits.csv of a run, so that both see the same images). Prints one line of JSON with seconds and accuracies.
https://keras.io/guides/transfer_learning/  https://www.tensorflow.org/tutorials/images/transfer_learning
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras


def backbone(name: str, size: int):
    """(model without head, preprocessing, index of the first layer to fine-tune)."""
    if name == "mobilenet_v2":
        base = keras.applications.MobileNetV2(input_shape=(size, size, 3), include_top=False, weights="imagenet")
        return base, keras.layers.Rescaling(1 / 127.5, offset=-1), 100
    from finetune.backbones import (
        registry as catalog,  # the guide cannot know this network; its weights are the same
        weights,
    )
    from finetune.backbones.networks import efficientnet_lite, loading as networks

    row = catalog.find_backbone(name)
    base = efficientnet_lite.EfficientNetLite0(include_top=False, weights=None, input_shape=(size, size, 3))
    networks.load_weights(base, weights.resolve_weights(row, "imagenet", top=False), row)
    first = next(index for index, layer in enumerate(base.layers) if layer.name.startswith("block5c"))
    return base, keras.layers.Rescaling(1 / 128, offset=-127 / 128), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("splits")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--head-epochs", type=int, default=10)
    parser.add_argument("--fine-epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    size = (arguments.size, arguments.size)
    started = time.monotonic()

    def read(split: str, shuffle: bool):
        folder = os.path.join(arguments.splits, split)
        dataset = keras.utils.image_dataset_from_directory(
            folder, image_size=size, batch_size=32, shuffle=shuffle, seed=arguments.seed, verbose=False
        )
        return dataset, dataset.class_names

    train, classes = read("train", True)
    validation, _ = read("validation", False)
    test, _ = read("test", False)
    train, validation, test = (part.prefetch(-1) for part in (train, validation, test))

    base, rescale, first = backbone(arguments.backbone, arguments.size)
    base.trainable = False
    inputs = keras.Input((*size, 3))
    x = base(rescale(inputs), training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(len(classes))(x)
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    built = time.monotonic()
    model.fit(train, validation_data=validation, epochs=arguments.head_epochs, verbose=2)
    head = time.monotonic()
    head_accuracy = model.evaluate(test, verbose=0)[1]
    tested = time.monotonic()

    base.trainable = True
    for layer in base.layers[:first]:
        layer.trainable = False
    model.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])
    fine_started = time.monotonic()
    if arguments.fine_epochs:
        model.fit(train, validation_data=validation, epochs=arguments.fine_epochs, verbose=2)
    fine = time.monotonic()
    accuracy = model.evaluate(test, verbose=0)[1]
    whole = time.monotonic() - started
    print(
        json.dumps(
            {
                "backbone": arguments.backbone,
                "build": built - started,
                "head": head - built,
                "fine": fine - fine_started,
                "whole": whole,
                "head_test_accuracy": head_accuracy,
                "test_accuracy": accuracy,
                "test_seconds": tested - head,
            }
        )
    )


if __name__ == "__main__":
    main()

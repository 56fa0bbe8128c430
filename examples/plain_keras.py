"""A trained run is an ordinary Keras model: `python examples/plain_keras.py runs/flowers-1 rose.jpg`.

Needs nothing of finetune. Scaling is part of the model; resizing here is squeezed for brevity.
"""

import sys
from pathlib import Path

import keras
import numpy as np


def main(run: str, path: str) -> None:
    model = keras.saving.load_model(Path(run) / "model.keras")
    classes = (Path(run) / "classes.txt").read_text().splitlines()
    size = model.input_shape[1:3]
    image = keras.utils.img_to_array(keras.utils.load_img(path, target_size=size))  # (S, S, 3), 0..255
    logits = model.predict(image[None], verbose=0)[0]
    print(classes[int(np.argmax(logits))])


if __name__ == "__main__":
    main(*sys.argv[1:])

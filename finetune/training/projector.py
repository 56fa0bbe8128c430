"""TensorBoard's embedding projector: the validation images as points, near each other where the network sees them so.

    add_to_projector(folder, "head", vectors, {"class": [...], "prediction": [...]}, images)

The projector looks for its files in every folder that holds event files: `projector_config.pbtxt` names the others,
`sprite.jpg` has a thumbnail of each point, `<embedding>.tsv` its vector and `<embedding>_metadata.tsv` what it is
(https://github.com/tensorflow/tensorboard/tree/master/tensorboard/plugins/projector).
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig

from finetune.utils import printable, write_bytes, write_text

CONFIG = "projector_config.pbtxt"
POINTS = 500  # more make the page slow, and no image of them any clearer
AXES = 100  # of the vectors; the page itself uses at most 200 of any
SIDE = 64  # of a thumbnail, in pixels


def add_to_projector(
    folder: Path, name: str, vectors: np.ndarray, columns: Mapping[str, Sequence[str]], images: np.ndarray
) -> None:
    """Puts an embedding beside those that `folder` has already, or in the place of one of that name.

    `vectors` are (n, d); `columns` are texts for each of them, by which the page colours and names points: two columns
    or more, for with a single one TensorBoard would take the heads for a point. `images` (n, SIDE, SIDE, 3) uint8 are
    the same for all embeddings. ResourceError where that cannot be written.
    """
    table, metadata = f"{name}.tsv", f"{name}_metadata.tsv"
    rows = _main_axes(vectors).tolist()
    write_text(folder / table, "".join("\t".join(f"{value:.4g}" for value in row) + "\n" for row in rows))
    lines = [tuple(columns), *zip(*columns.values(), strict=True)]  # a line of heads, then one for each point
    write_text(folder / metadata, "".join("\t".join(printable(text) for text in line) + "\n" for line in lines))
    write_bytes(folder / "sprite.jpg", _sprite(images))
    try:
        earlier = text_format.Parse((folder / CONFIG).read_text("utf-8"), ProjectorConfig()).embeddings
    except (OSError, UnicodeError, text_format.ParseError):  # the first phase, or somebody has changed the file
        earlier = ()
    config = ProjectorConfig(embeddings=[embedding for embedding in earlier if embedding.tensor_name != name])
    embedding = config.embeddings.add(tensor_name=name, tensor_path=table, metadata_path=metadata)
    embedding.sprite.image_path = "sprite.jpg"
    embedding.sprite.single_image_dim.extend([SIDE, SIDE])
    write_text(folder / CONFIG, text_format.MessageToString(config))


def _main_axes(vectors: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, at most AXES), on the axes that keep the most: angles and distances hardly change."""
    if vectors.shape[1] <= AXES:
        return vectors
    # By way of the products of all pairs, a small matrix: the same points as from an SVD, in a tenth of the time.
    strengths, axes = np.linalg.eigh(vectors @ vectors.T)
    turned: np.ndarray = axes[:, -AXES:] * np.sqrt(np.maximum(strengths[-AXES:], 0))
    return turned[:, ::-1]


def _sprite(images: np.ndarray) -> bytes:
    """All images row by row in one square, as WebGL wants it."""
    across = math.ceil(math.sqrt(len(images)))
    sheet = Image.new("RGB", (across * SIDE, across * SIDE))
    for at, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (at % across * SIDE, at // across * SIDE))
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=85)
    return target.getvalue()

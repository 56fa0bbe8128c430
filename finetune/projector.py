"""TensorBoard's embedding projector: the validation pictures as points, near each other where the network sees them so.

    write(folder, pictures, {"head": Embedding(vectors, {"class": [...], "answer": [...]})})

The projector looks for its files in every folder that holds event files: `projector_config.pbtxt` names the others,
`sprite.jpg` has a thumbnail of each point, `<embedding>.tsv` its vector and `<embedding>_metadata.tsv` what it is
(https://github.com/tensorflow/tensorboard/tree/master/tensorboard/plugins/projector).
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig

from finetune import files
from finetune.formats import escape

POINTS = 500  # more make the page slow, and no picture of them any clearer
AXES = 100  # of the vectors; the page itself goes on with 200 of any at most
SIDE = 64  # of a thumbnail, in pixels


class Embedding(NamedTuple):
    """Vectors (n, d), and for each texts by column, two columns or more: by these the page colours and names points."""

    vectors: np.ndarray
    columns: Mapping[str, Sequence[str]]


def write(folder: Path, pictures: np.ndarray, embeddings: Mapping[str, Embedding]) -> None:
    """Writes all files into `folder`, replacing those that are there; `pictures` are (n, SIDE, SIDE, 3) uint8.

    Raises ResourceError where that is not possible.
    """
    config = ProjectorConfig()
    for name, (vectors, columns) in embeddings.items():
        table, metadata = f"{name}.tsv", f"{name}_metadata.tsv"
        files.write_text(folder / table, _table(_main_axes(vectors)))
        files.write_text(folder / metadata, _metadata(columns))
        embedding = config.embeddings.add(tensor_name=name, tensor_path=table, metadata_path=metadata)
        embedding.sprite.image_path = "sprite.jpg"
        embedding.sprite.single_image_dim.extend([SIDE, SIDE])
    files.write_bytes(folder / "sprite.jpg", _sprite(pictures))
    files.write_text(folder / "projector_config.pbtxt", text_format.MessageToString(config))


def _main_axes(vectors: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, at most AXES), on the axes that keep the most: angles and distances hardly change."""
    if vectors.shape[1] <= AXES:
        return vectors
    _, _, axes = np.linalg.svd(vectors.astype(np.float32), full_matrices=False)
    turned: np.ndarray = vectors @ axes[:AXES].T
    return turned


def _table(vectors: np.ndarray) -> str:
    return "".join("\t".join(f"{value:.4g}" for value in row) + "\n" for row in vectors.tolist())


def _metadata(columns: Mapping[str, Sequence[str]]) -> str:
    """A line of heads, then one a point. With a single column TensorBoard would take the heads for a point."""
    lines = [tuple(columns), *zip(*columns.values(), strict=True)]
    return "".join("\t".join(escape(text) for text in line) + "\n" for line in lines)


def _sprite(pictures: np.ndarray) -> bytes:
    """All pictures row by row in one square, as WebGL wants it."""
    across = math.ceil(math.sqrt(len(pictures)))
    sheet = Image.new("RGB", (across * SIDE, across * SIDE))
    for at, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (at % across * SIDE, at // across * SIDE))
    target = io.BytesIO()
    sheet.save(target, "JPEG", quality=85)
    return target.getvalue()

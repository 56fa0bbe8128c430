"""Folders of small images to make data sets of."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Paint = Callable[[str], Path]


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """`paint("photos/cat/1.png")` makes an image unlike all others."""
    count = iter(range(1, 100_000))

    def make(name: str) -> Path:
        path = Path(os.path.join(tmp_path, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(next(count)).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def photos(tmp_path: Path, paint: Paint) -> Path:
    """20 cats and 10 dogs."""
    for index in range(20):
        paint(f"photos/cat/{index}.png")
    for index in range(10):
        paint(f"photos/dog/{index}.png")
    return tmp_path / "photos"

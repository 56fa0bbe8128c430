"""The built-in digits become a folder of images, once."""

from pathlib import Path

import numpy as np
import pytest
from dataset_tools import opened, sizes, tree
from PIL import Image

from finetune import data
from finetune.config import DataConfig


@pytest.mark.slow
def test_digits(private_cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    dataset = data.open_dataset(
        DataConfig(builtin="digits"), seed=0, progress=lambda done, total: seen.append((done, total))
    )
    assert (dataset.name, len(dataset), dataset.classes) == ("digits", 1797, tuple("0123456789"))
    assert sizes(dataset) == [1442, 183, 172]
    assert seen[-1] == (1797, 1797)
    assert dataset.root.is_relative_to(private_cache)
    from sklearn.datasets import load_digits

    expected = load_digits()
    index = dataset.names.index("5/000015.png")
    pixels = np.asarray(Image.open(dataset.path(index)))
    assert expected.target[15] == 5
    np.testing.assert_array_equal(pixels, np.round(expected.images[15] * 255 / 16))
    before = tree(dataset.root)
    assert opened(builtin="digits").hashes == dataset.hashes
    assert tree(dataset.root) == before

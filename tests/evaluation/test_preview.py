"""What goes into a training, as images and as a sentence."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import figure as figures
from PIL import Image

from finetune import config, data
from finetune.evaluation import preview


@pytest.fixture
def opened(settings):
    loaded = config.load_config({**settings, "augment": "standard"})
    return loaded, data.open_dataset(loaded.data, seed=loaded.seed)


def test_a_sheet_per_class(opened):
    sheets = dict(preview.preview_sheets(*opened, images=2, augmented=3))
    assert list(sheets) == ["blue", "green", "red"]
    for png in sheets.values():
        with Image.open(io.BytesIO(png)) as sheet:
            assert sheet.width >= 2 * sheet.height  # two rows of five, and the titles


def test_without_augmentation_there_is_nothing_to_show_of_it(settings):
    loaded = config.load_config(settings)
    sheets = dict(preview.preview_sheets(loaded, data.open_dataset(loaded.data, seed=0), images=2))
    with Image.open(io.BytesIO(sheets["red"])) as sheet:
        assert sheet.width < sheet.height  # two rows of two, and the titles


def test_many_classes_are_on_one_sheet_or_a_hundred_each(opened, monkeypatch):
    ((name, png),) = preview.preview_overviews(*opened)
    assert name == "overview"
    with Image.open(io.BytesIO(png)) as sheet:
        assert sheet.width > 3 * sheet.height / 2  # three tiles of two in a row, and the title
    monkeypatch.setattr(preview, "OVERVIEW_CLASSES", 2)
    assert [name for name, _ in preview.preview_overviews(*opened)] == ["overview-1", "overview-2"]


def test_a_long_title_is_not_cut(opened, monkeypatch):
    titles = []
    monkeypatch.setattr(figures.Figure, "suptitle", lambda figure, text, **style: titles.append((figure, text)))
    loaded, dataset = opened
    long = replace(dataset, classes=("a class with a very long name of several words",) * 3)
    next(iter(preview.preview_sheets(loaded, long, images=1, augmented=1)))
    ((figure, title),) = titles
    assert title.replace("\n", " ").endswith(" training images, 32 x 32 pixels")
    assert max(map(len, title.split("\n"))) * 10 * 0.55 / 72 < figure.get_figwidth()  # 0.55: the width of a letter


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 97)])
def test_the_box_is_what_the_evaluation_keeps(shape):
    """Black outside the box, white inside: the network sees white alone."""
    how = data.Transform(32)
    left, top, width, height = preview.crop_box(*shape, how)
    pixels = np.zeros((shape[1], shape[0], 3), np.uint8)
    pixels[top : top + height, left : left + width] = 255
    seen = np.array(data.resize_square(Image.fromarray(pixels), how))
    assert seen[1:-1, 1:-1].min() == 255
    assert seen.min() > 180  # half a pixel of what is around it is mixed in at the edge
    assert width * height < shape[0] * shape[1]


def test_squeezed_images_lose_nothing():
    assert preview.crop_box(300, 200, data.Transform(32, resize="squash")) is None


@pytest.mark.parametrize(
    ("resize", "sentence"),
    [
        # 40 x 36 pixels: round(0.875 * 36) = 32, and 1 - 32 * 32 / (40 * 36) = 29 %
        ("crop", "The center crop removes 29% of the pixels on median. The network sees 32 x 32 pixels."),
        ("squash", "Whole images are squeezed to a square, 1.1 to 1 on median. The network sees 32 x 32 pixels."),
        ("pad", "Whole images are fitted on black, which makes up 10% on median. The network sees 32 x 32 pixels."),
    ],
)
def test_the_sentence(settings, resize, sentence):
    settings["model"]["resize"] = resize
    loaded = config.load_config(settings)
    assert preview.crop_sentence(loaded, data.open_dataset(loaded.data, seed=0)) == sentence


def test_small_images_are_reported_to_be_enlarged(settings):
    settings["model"]["image_size"] = 64
    loaded = config.load_config(settings)
    assert "100% of the images are smaller" in preview.crop_sentence(loaded, data.open_dataset(loaded.data, seed=0))

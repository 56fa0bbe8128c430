"""The image that TensorFlow makes of a file's bytes is the one that Pillow makes, but for rounding."""

import io

import numpy as np
import pytest
from PIL import Image

from finetune import data
from finetune.data import Transform
from finetune.export import serving
from finetune.utils import tf

CROP = Transform(32, "crop", 0.875, "bicubic")


@pytest.fixture(scope="module")
def photo():
    """Smooth colours and edges, 150 x 110: left and right, top and bottom differ."""
    y, x = np.mgrid[0:110, 0:150]
    pixels = np.stack([x * 255 / 149, y * 255 / 109, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], axis=2)
    pixels[20:40, 30:60] = (250, 20, 20)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, format, **options):
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def difference(content, transform):
    ours = data.decode_square(content, transform).astype(float)
    theirs = serving.batch_pixels(tf.constant([content]), transform).numpy()[0]
    assert theirs.shape == ours.shape
    np.testing.assert_array_equal(theirs, np.round(theirs))
    apart = np.abs(ours - theirs)
    assert apart.mean() < 1
    return apart.max()


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 200])
def test_every_way_to_a_square_is_the_same(photo, resize, interpolation, size):
    transform = Transform(size, resize, 0.875, interpolation)
    assert difference(encoded(photo, "PNG"), transform) <= 8
    assert difference(encoded(photo.transpose(Image.Transpose.ROTATE_90), "PNG"), transform) <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpeg_is_turned_as_its_exif_orientation_says(photo, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    assert difference(encoded(photo, "JPEG", exif=exif.tobytes(), quality=95), CROP) <= 8


def test_a_large_jpeg_is_decoded_smaller_as_pillow_does(photo):
    large = photo.resize((1500, 1100), Image.Resampling.BICUBIC)
    assert difference(encoded(large, "JPEG", quality=95), CROP) <= 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_every_kind(photo, mode):
    image = photo.convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert difference(encoded(image, "PNG"), CROP) <= (20 if mode == "1" else 8)  # dots: nothing but edges


@pytest.mark.parametrize("format", ["GIF", "BMP", "WEBP"])
def test_other_formats_are_refused_by_name(photo, format):
    with pytest.raises(tf.errors.InvalidArgumentError, match="neither JPEG nor PNG"):
        serving.batch_pixels(tf.constant([encoded(photo, format)]), CROP)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG"])
def test_what_is_no_image_is_an_argument_error(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        serving.batch_pixels(tf.constant([content]), CROP)


def test_damaged_exif_never_hurts(photo):
    """Wherever it points, the image comes, upright or turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo, "JPEG", exif=exif.tobytes())
    start = content.index(b"Exif\0\0") + 6
    random = np.random.default_rng(0)
    damaged = []
    for _ in range(12):
        copy = bytearray(content)
        for at in random.integers(start, start + len(exif.tobytes()) - 6, 4):
            copy[at] = random.integers(0, 256)
        damaged.append(bytes(copy))
    images = serving.batch_pixels(tf.constant(damaged), CROP).numpy()
    assert images.shape == (12, 32, 32, 3)

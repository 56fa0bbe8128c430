"""Any image file becomes upright RGB pixels here, for training, evaluation and prediction.

    read_image(path)                the whole image, (H, W, 3) uint8
    read_square(path, transform)    what a network sees, (S, S, 3) uint8

One strict Pillow path; nothing else in this project decodes a user's file. `image_formats` says which are read.

* the size is taken from the header and anything above `MAX_PIXELS` refused before it is decoded;
* the EXIF orientation is applied;
* transparency is composited on black;
* 16 bit values are scaled to 8 bit, CMYK (as Adobe stores it) to RGB; colour profiles (ICC) are ignored;
* of an animation the first frame is used, on the whole canvas;
* a damaged file is refused, never half read.
"""

import errno
import io
import math
import os
import stat
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from finetune.data.buckets import is_bucket_url, read_bucket_file
from finetune.data.image_formats import CONVERT_HINT, FORMATS, identify_format
from finetune.utils import ImageError, format_bytes, printable

ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8]  # a file, a URL, the content of a file, or pixels

MAX_PIXELS = 120_000_000  # real cameras reach 100 megapixels; 120 take 360 MB as RGB
MAX_BYTES = 1 << 30

UPRIGHT = {  # EXIF orientation -> how to turn the pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SWAPS_SIDES = (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])

# Pillow's own checks, which some decoders make too, would warn from 89 megapixels on.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Pillow's remarks on metadata that is not used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class PassingImageError(ImageError):
    """An image cannot be used now, which says nothing about its content: no permission, no memory, a failing disk."""


@dataclass(frozen=True)
class Transform:
    """How an image of any shape becomes the square a network sees; saved with every classifier.

    `resize`: "crop" takes the central square, `crop` times as long as the short side (0.875 is the usual
    ImageNet evaluation); "squash" squeezes the whole image; "pad" fits the whole image on black. Every
    way goes straight from the source to the target in one antialiased step: no intermediate image of
    an extreme shape can arise.
    """

    size: int
    resize: Literal["crop", "squash", "pad"] = "crop"
    crop: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def seen_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """What becomes the square, of an image of that size: (left, top, right, bottom) in its pixels.

        With "pad" the box is larger than the image. Edges are whole pixels: half a pixel more blurs an image that fits
        already (0.9 points of top-1 on 1,000 images of ImageNet).
        """
        if self.resize == "squash":
            return 0, 0, width, height
        side = max(width, height) if self.resize == "pad" else max(1, round(self.crop * min(width, height)))
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side


def read_image(source: ImageSource, *, near: int | None = None) -> NDArray[np.uint8]:
    """The image as (H, W, 3) uint8, upright RGB.

    With `near`, a JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, its short side
    still at least `2 * near` pixels. Raises ImageError with the reason when the file cannot be used.
    """
    return np.array(_read_rgb(source, near))


def read_square(source: ImageSource, transform: Transform) -> NDArray[np.uint8]:
    """What the network sees in evaluation and prediction, (S, S, 3) uint8. Raises ImageError as `read_image`."""
    kept = transform.crop if transform.resize == "crop" else 1.0  # fraction of the short side
    rgb = _read_rgb(source, near=math.ceil(transform.size / kept))
    return np.array(resize_square(rgb, transform))


def decode_square(data: bytes, transform: Transform) -> NDArray[np.uint8]:
    """As `read_square`, for the content of a file."""
    return read_square(data, transform)


def _read_rgb(source: ImageSource, near: int | None) -> Image.Image:
    """Upright RGB pixels; `near` is for encoded images only."""
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        _check_size(*source.size)
        try:
            return _to_rgb(ImageOps.exif_transpose(source), format="", data=b"")
        except (OSError, ValueError, SyntaxError) as error:  # opened, and not decoded until now
            raise ImageError(f"the image is damaged: {printable(str(error))}") from None
    return decode_image(source if isinstance(source, bytes) else read_bytes(source), near).rgb


def resize_square(rgb: Image.Image, transform: Transform) -> Image.Image:
    """`rgb` as a square of `transform.size` pixels."""
    width, height = rgb.size
    size, filter = transform.size, Image.Resampling[transform.interpolation.upper()]
    if transform.resize == "pad":
        scale = size / max(width, height)
        fitted = rgb.resize((max(1, round(width * scale)), max(1, round(height * scale))), filter)
        canvas = Image.new("RGB", (size, size))
        canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
        return canvas
    return rgb.resize((size, size), filter, box=transform.seen_box(width, height))


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image file, and what its header says."""

    rgb: Image.Image  # upright RGB, possibly smaller than the file says
    format: str
    width: int  # of the upright image in the file
    height: int
    warnings: tuple[str, ...]


def decode_image(data: bytes, near: int | None = None) -> DecodedImage:
    """The image in `data`, `near` as in `read_image`. Whatever a decoder raises becomes an ImageError."""
    format = identify_format(data[:4096])
    try:
        with FORMATS[format](io.BytesIO(data)) as image:
            return _load(image, format, data, near)
    except ImageError:
        raise
    except MemoryError:
        raise PassingImageError("not enough memory to decode it") from None
    except Exception as error:  # SyntaxError, struct.error, ValueError, OSError: a damaged file can raise anything
        raise ImageError(f"the file is damaged: {printable(str(error)) or type(error).__name__}") from None


def _load(image: Image.Image, format: str, data: bytes, near: int | None) -> DecodedImage:
    width, height = image.size
    _check_size(width, height)
    if near is not None and format == "JPEG":  # of HEIC it would be the thumbnail, which may show something else
        image.draft(None, (2 * near, 2 * near))
    image.load()
    turn = UPRIGHT.get(_orientation(image, format))
    rgb = _to_rgb(image, format, data)
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn in SWAPS_SIDES:
            width, height = height, width
    return DecodedImage(rgb, format, width, height, _warnings(image, rgb, width, height))


def _check_size(width: int, height: int) -> None:
    """ImageError for an image without pixels, or with more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise ImageError("the image has no pixels")
    if width * height > MAX_PIXELS:
        megapixels = f"{width:,} x {height:,} pixels, the limit is {MAX_PIXELS // 1_000_000} megapixels"
        raise ImageError(f"too large: {megapixels}; make it smaller")


def _orientation(image: Image.Image, format: str) -> int:
    """1..8 of the EXIF tag; broken metadata count as 1. TIFF and HEIC are turned by their decoders while loading."""
    if format in ("TIFF", "HEIC"):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image, format: str, data: bytes) -> Image.Image:
    """8 bit RGB on black from any of Pillow's modes."""
    key = image.info.pop("transparency", None) if format == "PNG" and image.mode != "P" else None
    if image.mode == "F":
        raise ImageError(f"its pixels are floating point numbers of unknown range: {CONVERT_HINT}")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"its pixels are 32 bit numbers of unknown range: {CONVERT_HINT}")
        rgb = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
        return rgb if key is None else _blacken(rgb, values == key)
    if key is not None:
        return _blacken(image.convert("RGB"), _has_colour(image, key, depth=data[24]))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if format == "BMP" and alpha.getextrema() == (0, 0):  # the fourth byte is unused, not "invisible"
        return rgba.convert("RGB")
    black = Image.new("RGB", rgba.size)
    black.paste(rgba.convert("RGB"), mask=alpha)
    return black


def _has_colour(image: Image.Image, key: Any, depth: int) -> NDArray[np.bool_]:
    """Where a PNG has the transparent colour `key`, numbers of `depth` bits; `image` is scaled to 8 bits."""
    values = np.atleast_3d(np.asarray(image.convert("L") if image.mode == "1" else image))
    scaled = np.asarray(key) >> 8 if depth == 16 else np.minimum(np.asarray(key) * 255 // (2**depth - 1), 255)
    same: NDArray[np.bool_] = np.all(values == scaled, axis=-1)
    return same


def _blacken(rgb: Image.Image, invisible: NDArray[np.bool_]) -> Image.Image:
    return Image.composite(Image.new("RGB", rgb.size), rgb, Image.fromarray(invisible.astype(np.uint8) * 255))


def _warnings(image: Image.Image, rgb: Image.Image, width: int, height: int) -> tuple[str, ...]:
    """What is odd about an image that can be read all the same."""
    notes = []
    if min(width, height) < 8:
        notes.append("only a few pixels")
    elif max(width, height) > 20 * min(width, height):
        notes.append("very long and thin")
    extrema: Any = rgb.getextrema()
    if all(low == high for low, high in extrema):
        notes.append("a single colour")
    elif max(high for _, high in extrema) <= (64 if image.mode.startswith("I") else 16):
        notes.append(
            "nearly black: values of 12 or 14 bits in a 16-bit file? Scale all images alike to the whole range"
        )
    if image.mode == "CMYK" and isinstance(image, FORMATS["JPEG"]) and "adobe" not in image.info:
        notes.append("CMYK without the Adobe marker: its colours may be inverted")
    try:
        if getattr(image, "is_animated", False):
            notes.append("several frames: only the first is used")
    except Exception:
        notes.append("damaged after the first frame")
    return tuple(notes)


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file or one in a bucket; a network drive that drops out is tried three times.

    Raises ImageError with the reason when it cannot be read or does not begin as an image does.
    """
    for wait in (0.2, 1.0, None):
        try:
            return _read_regular(path)
        except FileNotFoundError:
            raise PassingImageError("there is no such file") from None
        except PermissionError:
            raise PassingImageError("no permission to read it: chmod u+r") from None
        except OSError as error:
            if wait is None or error.errno not in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
                raise PassingImageError(f"cannot be read: {error.strerror or error}") from None
            time.sleep(wait)
    raise AssertionError


def _read_regular(path: str | Path) -> bytes:
    if is_bucket_url(path):
        return read_bucket_file(str(path), max_bytes=MAX_BYTES)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise ImageError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"too large: {format_bytes(status.st_size)}")
    with open(path, "rb") as file:
        head = file.read(4096)
        identify_format(head)  # before the rest of something that is no image is read
        return head + file.read()

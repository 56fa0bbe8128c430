"""Any image file becomes upright RGB pixels here, for training, evaluation and prediction alike.

    read(path)                      the whole image, (H, W, 3) uint8
    read_square(path, transform)    what a network sees, (S, S, 3) uint8
    inspect(path)                   can it be read, what is odd about it, its hash
    find_images(folder)             the image files below a folder, and what was left out

One strict Pillow path; nothing else in this project decodes a user's file. `formats` says which are read.

* the size is taken from the header and anything above `MAX_PIXELS` refused before it is decoded;
* the EXIF orientation is applied;
* transparency is composited on black;
* 16 bit values are scaled to 8 bit, CMYK (as Adobe stores it) to RGB; colour profiles (ICC) are ignored;
* of an animation the first frame is used, on the whole canvas;
* a damaged file is refused, never half read.
"""

import errno
import hashlib
import io
import math
import os
import stat
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.buckets import is_bucket_url, read_bucket_file
from finetune.data.image_formats import CONVERT_HINT, FORMAT_SUFFIXES, FORMATS, IMAGE_SUFFIXES, identify_format
from finetune.utils import DataError, ImageError, format_bytes, printable

MAX_PIXELS = 120_000_000  # real cameras reach 100 megapixels; 120 take 360 MB as RGB
MAX_BYTES = 1 << 30
SAMPLE = 50  # images whose headers tell the usual size

_UPRIGHT = {  # EXIF orientation -> how to turn the pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# Pillow's own checks, which some decoders make too, would warn from 89 megapixels on.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Remarks on metadata that is not used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


# ---------------------------------------------------------------------------------------------------- reading


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


def read_image(path: str | Path, *, near: int | None = None) -> NDArray[np.uint8]:
    """The image in the file as (H, W, 3) uint8, upright RGB.

    With `near`, a JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, its short side
    still at least `2 * near` pixels. ImageProblem with the reason when the file cannot be used.
    """
    return np.array(_decode(_bytes(path), near).rgb)


def read_square(path: str | Path, transform: Transform) -> NDArray[np.uint8]:
    """What the network sees in evaluation and prediction, (S, S, 3) uint8. ImageProblem as in `read`."""
    return decode_square(_bytes(path), transform)


def decode_square(data: bytes, transform: Transform) -> NDArray[np.uint8]:
    """As `read_square`, for the content of a file."""
    share = transform.crop if transform.resize == "crop" else 1.0
    rgb = _decode(data, near=math.ceil(transform.size / share)).rgb
    return np.array(resize_square(rgb, transform))


def resize_square(rgb: Image.Image, transform: Transform) -> Image.Image:
    """`image` as a square of `transform.size` pixels."""
    width, height = rgb.size
    size, filter = transform.size, Image.Resampling[transform.interpolation.upper()]
    if transform.resize == "squash":
        return rgb.resize((size, size), filter)
    if transform.resize == "pad":
        scale = size / max(width, height)
        fitted = rgb.resize((max(1, round(width * scale)), max(1, round(height * scale))), filter)
        canvas = Image.new("RGB", (size, size))
        canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
        return canvas
    # Whole pixels: half a pixel more blurs an image that fits already (0.9 points of top-1 on 1,000 of
    # ImageNet).
    side = max(1, round(transform.crop * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return rgb.resize((size, size), filter, box=(left, top, left + side, top + side))


@dataclass(frozen=True)
class _Decoded:
    rgb: Image.Image  # upright RGB, possibly smaller than the file says
    format: str
    width: int  # of the upright image in the file
    height: int
    warnings: tuple[str, ...]


def _decode(data: bytes, near: int | None) -> _Decoded:
    """The image in `data`. Whatever a decoder raises becomes an ImageProblem."""
    format = identify_format(data[:4096])
    try:
        with FORMATS[format](io.BytesIO(data)) as image:
            return _decode_image(image, format, data, near)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except Exception as error:  # SyntaxError, struct.error, ValueError, OSError: a damaged file can raise anything
        raise ImageError(f"the file is damaged: {printable(str(error)) or type(error).__name__}") from None


def _decode_image(image: Image.Image, format: str, data: bytes, near: int | None) -> _Decoded:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("the image has no pixels")
    if width * height > MAX_PIXELS:
        megapixels = f"{width:,} x {height:,} pixels, the limit is {MAX_PIXELS // 1_000_000} megapixels"
        raise ImageError(f"too large: {megapixels}; make it smaller")
    if near is not None:
        image.draft(None, (2 * near, 2 * near))  # only JPEG does something here
    image.load()
    turn = _UPRIGHT.get(_orientation(image, format))
    rgb = _to_rgb(image, format, data)
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8]):
            width, height = height, width
    return _Decoded(rgb, format, width, height, _warnings(image, rgb, width, height))


def _orientation(image: Image.Image, format: str) -> int:
    """1..8 of the EXIF tag; broken metadata count as 1. TIFF is turned by Pillow itself while loading."""
    if format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image, format: str, data: bytes) -> Image.Image:
    """8 bit RGB on black from any of Pillow's modes."""
    key = image.info.pop("transparency", None) if format == "PNG" and image.mode != "P" else None
    if image.mode == "F":
        raise ImageError(f"its pixels are floating point numbers, of no agreed range: {CONVERT_HINT}")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"its pixels are 32 bit numbers, of no agreed range: {CONVERT_HINT}")
        rgb = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
        return _mask(rgb, values == key) if key is not None else rgb
    if key is not None:
        return _mask(image.convert("RGB"), _is_key(image, key, depth=data[24]))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if format == "BMP" and alpha.getextrema() == (0, 0):  # the fourth byte is unused, not "invisible"
        return rgba.convert("RGB")
    black = Image.new("RGB", rgba.size)
    black.paste(rgba.convert("RGB"), mask=alpha)
    return black


def _is_key(image: Image.Image, key: Any, depth: int) -> NDArray[np.bool_]:
    """Where a PNG has its transparent colour, a number of `depth` bits; `image` is scaled to 8 bits."""
    values = np.atleast_3d(np.asarray(image.convert("L") if image.mode == "1" else image))
    scaled = np.asarray(key) >> 8 if depth == 16 else np.minimum(np.asarray(key) * 255 // (2**depth - 1), 255)
    same: NDArray[np.bool_] = np.all(values == scaled, axis=-1)
    return same


def _mask(rgb: Image.Image, invisible: NDArray[np.bool_]) -> Image.Image:
    return Image.composite(Image.new("RGB", rgb.size), rgb, Image.fromarray(invisible.astype(np.uint8) * 255))


def _warnings(image: Image.Image, rgb: Image.Image, width: int, height: int) -> tuple[str, ...]:
    """What is odd about an image that can be read all the same."""
    found = []
    if min(width, height) < 8:
        found.append("only a few pixels")
    elif max(width, height) > 20 * min(width, height):
        found.append("very long and thin")
    elif all(low == high for low, high in rgb.getextrema()):  # type: ignore[misc]
        found.append("a single colour")
    if image.mode == "CMYK" and isinstance(image, FORMATS["JPEG"]) and "adobe" not in image.info:
        found.append("CMYK without the Adobe marker: its colours may be inverted")
    try:
        if getattr(image, "is_animated", False):
            found.append("several frames: only the first is used")
    except Exception:
        found.append("damaged after the first frame")
    return tuple(found)


# --------------------------------------------------------------------------------------------------- the file


def _bytes(path: str | Path) -> bytes:
    """The content of a regular file; a network drive that drops out is asked three times."""
    for patience in (0.2, 1.0, None):
        try:
            return _read_regular(path)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT) or patience is None:
                raise ImageError(_why(error)) from None
            time.sleep(patience)
    raise AssertionError


def _read_regular(path: str | Path) -> bytes:
    if is_bucket_url(path):
        return read_bucket_file(str(path), most=MAX_BYTES)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise ImageError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"too large: {format_bytes(status.st_size)}")
    with open(path, "rb") as file:
        head = file.read(4096)
        identify_format(head)  # before the rest of something that is no image is read
        return head + file.read()


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it: chmod u+r"
    return f"cannot be read: {error.strerror or error}"


# ------------------------------------------------------------------------------------------------- inspecting


class Inspection(NamedTuple):
    """What is known about one file after decoding it. `reason` is why it cannot be used, None if it can."""

    path: str
    reason: str | None
    warnings: tuple[str, ...] = ()
    format: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    fingerprint: str = ""
    size: int = 0
    mtime_ns: int = 0

    @property
    def ok(self) -> bool:
        return self.reason is None


def inspect_image(path: str | Path) -> Inspection:
    """Decode the file and say what is wrong with it; never raises for anything that a file can hold.

    JPEGs are decoded at 1/8 of their size: every coded bit is read, so that damage shows, in half the time.
    """
    name = os.fspath(path)
    size = mtime_ns = 0
    digest = ""
    try:
        status = os.stat(name)
        size, mtime_ns = status.st_size, status.st_mtime_ns
        data = _bytes(name)
        digest = hashlib.sha256(data).hexdigest()
        found = _decode(data, near=1)
    except OSError as error:
        return Inspection(name, _why(error))
    except ImageError as problem:
        return Inspection(name, problem.message, sha256=digest, size=size, mtime_ns=mtime_ns)
    notes = found.warnings
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in FORMAT_SUFFIXES[found.format]:
        notes += (f"{found.format} under another name ({suffix or 'no ending'})",)
    facts = (found.format, found.width, found.height, digest, fingerprint(found.rgb), size, mtime_ns)
    return Inspection(name, None, notes, *facts)


def fingerprint(rgb: Image.Image) -> str:
    """What an image looks like, in 128 bits as 32 hexadecimal digits: near-copies differ in few of them.

    A difference hash (N. Krawetz, "Kind of Like That", 2013): is a place of a 9 x 9 thumbnail lighter than the one to
    its left, and than the one above it? Size, quality and brightness of a copy hardly change that; turning does.
    """
    small = np.asarray(rgb.resize((9, 9), Image.Resampling.BILINEAR).convert("L"))
    bits = np.concatenate([small[1:, 1:] > small[1:, :-1], small[1:, 1:] > small[:-1, 1:]])
    return np.packbits(bits).tobytes().hex()


# ---------------------------------------------------------------------------------------------------- finding

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
_SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found"})
_OTHER_IMAGES = frozenset(
    (
        ".heic",
        ".heif",
        ".svg",
        ".eps",
        ".pdf",
        ".jp2",
        ".jxl",
        ".ico",
        ".psd",
        ".tga",
        ".qoi",
        ".dng",
        ".cr2",
        ".nef",
    )
)


def find_images(folder: str | Path) -> tuple[list[Path], Counter[str]]:
    """The image files below `folder`, sorted, and how many of what was left out. See `list_images`."""
    names, left_out = list_images(folder)
    return [Path(folder, name) for name in names], left_out


def list_images(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """Names of the image files below `folder`, relative with "/" between, sorted; and what was left out.

    Goes by the endings in `IMAGE_SUFFIXES`. Links are followed, each folder once, so that loops end; pipes,
    sockets and devices are never opened. DataError when the folder or one below it cannot be listed.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below) if below else os.fspath(folder)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen and status.st_ino:
                left_out["links to a folder already seen"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    _sort_entry(entry, below, names, waiting, left_out)
        except PermissionError:
            hint = f"make it readable: chmod u+rx '{printable(place)}'"
            raise DataError(f"{printable(place)}: no permission to list this folder", hint=hint) from None
        except OSError as error:
            raise DataError(f"{printable(place)}: {error.strerror or error}") from None
    return sorted(names), left_out


def _sort_entry(
    entry: os.DirEntry[str], below: str, names: list[str], waiting: list[str], left_out: Counter[str]
) -> None:
    """Put one entry of a folder where it belongs."""
    lower = entry.name.lower()
    suffix = os.path.splitext(lower)[1]
    name = f"{below}/{entry.name}" if below else entry.name
    if _is(entry.is_dir):
        if lower in _SYSTEM_FOLDERS or lower.startswith("."):
            left_out["hidden and system folders"] += 1
        elif suffix in IMAGE_SUFFIXES:
            left_out["folders named like an image"] += 1
        else:
            waiting.append(name)
    elif not _is(entry.is_file):
        left_out["broken links" if entry.is_symlink() else "pipes, sockets and devices"] += 1
    elif lower in _SYSTEM_FILES or lower.startswith("."):  # ._x.jpg is where macOS keeps its notes on x.jpg
        left_out["hidden and system files"] += 1
    elif suffix in IMAGE_SUFFIXES:
        names.append(name)
    elif suffix in _OTHER_IMAGES:
        left_out[f"{suffix} ({CONVERT_HINT})"] += 1
    else:
        left_out["other files"] += 1


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link to itself
        return False


def typical_size(paths: Sequence[str | Path]) -> tuple[int, int] | None:
    """Median width and height of some of `paths`, from their headers; None if none of them can be read."""
    some = paths[:: -(-len(paths) // SAMPLE)] if paths else []
    sizes = [size for path in some if (size := _dimensions(Path(path)))]
    if not sizes:
        return None
    width, height = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    return width, height


def _dimensions(path: Path) -> tuple[int, int] | None:
    """Width and height from the header of an image; None if it cannot be read (training will say why)."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = file.read(2048)
            file.seek(0)
            width, height = FORMATS[identify_format(head)](file).size
            return int(width), int(height)
    except Exception:  # damaged headers raise whatever they like
        return None

"""What is known about an image file after decoding it once: whether it can be used, its size, hash and fingerprint.

inspect_image("photos/cat/1.jpg").ok
"""

import hashlib
import os
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from finetune.data.image_formats import FORMAT_SUFFIXES, FORMATS, identify_format
from finetune.data.images import PassingImageError, decode_image, read_bytes
from finetune.utils import ImageError

MIN_SIDE = 32  # pixels for a fingerprint; among smaller images two of a kind look the same (digits of 8 x 8: 253 pairs)
SAMPLE = 50  # images whose headers `typical_size` reads


class Inspection(NamedTuple):
    """The result of decoding one file. `reason` is why it cannot be used, None if it can.

    `state` is the `file_state` that was decoded; empty where the result says nothing about the content of the file,
    because it could not be read.
    """

    path: str
    reason: str | None
    warnings: tuple[str, ...] = ()
    format: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    fingerprint: str = ""
    state: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file can be used."""
        return self.reason is None


def inspect_image(path: str | Path) -> Inspection:
    """Decode the file and report what is wrong with it; never raises for anything that a file can hold.

    Large JPEGs are decoded at 1/8 of their size: every coded bit is read, so that damage shows, in half the time.
    """
    name = os.fspath(path)
    state = file_state(name)  # before it is read: what changes it meanwhile must show
    digest = ""
    try:
        data = read_bytes(name)
        digest = hashlib.sha256(data).hexdigest()
        decoded = decode_image(data, near=MIN_SIDE // 2)
    except PassingImageError as problem:
        return Inspection(name, problem.message, sha256=digest)
    except ImageError as problem:
        return Inspection(name, problem.message, sha256=digest, state=state)
    notes = decoded.warnings
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in FORMAT_SUFFIXES[decoded.format]:
        notes += (f"{decoded.format} under another name ({suffix or 'no ending'})",)
    return Inspection(
        path=name,
        reason=None,
        warnings=notes,
        format=decoded.format,
        width=decoded.width,
        height=decoded.height,
        sha256=digest,
        fingerprint=fingerprint(decoded.rgb) if min(decoded.width, decoded.height) >= MIN_SIDE else "",
        state=state,
    )


def file_state(path: str) -> str:
    """What tells that a file is not the one it was, without a look at its content; "" if it cannot be looked at.

    Size and time of modification would miss a file that was replaced by one of the same size and with the old time
    (`rsync -t`, `cp -p`); the time of the last change of any kind (ctime) is set by the system alone.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def fingerprint(rgb: Image.Image) -> str:
    """What an image looks like, in 128 bits as 32 hexadecimal digits: near-copies differ in few of them.

    A difference hash (N. Krawetz, "Kind of Like That", 2013): is a place of a 9 x 9 thumbnail lighter than the one to
    its left, and than the one above it? Size, quality and brightness of a copy hardly change that; turning does.
    """
    small = np.asarray(rgb.resize((9, 9), Image.Resampling.BILINEAR).convert("L"))
    bits = np.concatenate([small[1:, 1:] > small[1:, :-1], small[1:, 1:] > small[:-1, 1:]])
    return np.packbits(bits).tobytes().hex()


def typical_size(paths: Sequence[str | Path]) -> tuple[int, int] | None:
    """Median width and height of some of `paths`, from their headers; None if none of them can be read."""
    step = -(-len(paths) // SAMPLE) or 1
    sizes = []
    for path in paths[::step]:
        try:
            with open(path, "rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                format = identify_format(file.read(2048))
                file.seek(0)
                sizes.append(FORMATS[format](file).size)
        except Exception:  # a damaged header can raise anything; the scan will name the file
            continue
    if not sizes:
        return None
    widths, heights = zip(*sizes, strict=True)
    return int(statistics.median(widths)), int(statistics.median(heights))

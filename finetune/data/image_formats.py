"""Which image format a file holds, told by its first bytes, never by its name; why others are refused.

`FORMATS` is the whole list of decoders that may ever see a user's file, each called directly, so that
no other can be tried on the same bytes: EPS would start Ghostscript, an animated WebP ends TensorFlow.
"""

from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from pillow_heif import HeifImageFile

from finetune.utils import ImageError, printable

FORMATS: dict[str, Any] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIC": HeifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif", ".hif"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMAT_SUFFIXES.values() for suffix in suffixes)

CONVERT_HINT = "convert it to JPEG or PNG"
_STARTS: tuple[tuple[bytes, str, str], ...] = (  # first bytes, format or "", why it is refused
    (b"\xff\xd8\xff", "JPEG", ""),
    (b"\x89PNG\r\n\x1a\n", "PNG", ""),
    (b"GIF87a", "GIF", ""),
    (b"GIF89a", "GIF", ""),
    (b"BM", "BMP", ""),
    (b"II*\0", "TIFF", ""),
    (b"MM\0*", "TIFF", ""),
    (b"II+\0", "TIFF", ""),
    (b"MM\0+", "TIFF", ""),
    (b"version https://git-lfs", "", "a Git LFS pointer, not the image: run `git lfs pull`"),
    (b"%!PS", "", f"PostScript (EPS) is never opened: {CONVERT_HINT}"),
    (b"\xc5\xd0\xd3\xc6", "", f"PostScript (EPS) is never opened: {CONVERT_HINT}"),
    (b"%PDF", "", f"a PDF document, not an image: {CONVERT_HINT}"),
    (b"\0\0\0\x0cjP  \r\n", "", f"JPEG 2000 is not supported: {CONVERT_HINT}"),
    (b"\xff\x4f\xff\x51", "", f"JPEG 2000 is not supported: {CONVERT_HINT}"),
    (b"\0\0\0\x0cJXL \r\n", "", f"JPEG XL is not supported: {CONVERT_HINT}"),
    (b"\xff\x0a", "", f"JPEG XL is not supported: {CONVERT_HINT}"),
    (b"\0\0\x01\0", "", f"an icon (ICO) is not supported: {CONVERT_HINT}"),
    (b"8BPS", "", f"a Photoshop file is not supported: {CONVERT_HINT}"),
    (b"qoif", "", f"QOI is not supported: {CONVERT_HINT}"),
    (b"PK\x03\x04", "", "a ZIP archive, not an image: unpack it"),
    (b"\x1f\x8b", "", "a gzip archive, not an image: unpack it"),
)


def identify_format(head: bytes) -> str:
    """The format, a key of `FORMATS`, from the first bytes of a file; ImageError says what else it is."""
    if not head:
        raise ImageError("the file is empty (0 bytes)")
    if not head.strip(b"\0"):
        raise ImageError("only zero bytes: copy or download it again")
    for start, format, refusal in _STARTS:
        if head.startswith(start):
            if refusal:
                raise ImageError(refusal)
            return format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp":
        # AVIF, HEIC and MP4 have the same container; its first box lists the brands.
        brands = head[8 : max(12, min(int.from_bytes(head[:4], "big"), 256))]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")):
            return "HEIC"
        raise ImageError("a video, not an image")
    raise ImageError(_describe(head))


def _describe(head: bytes) -> str:
    """What a file that is no image seems to be."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text[:1024].lower()
    if b"<svg" in lower:
        return f"SVG is a vector format: {CONVERT_HINT}"
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, not an image: the download failed"
    if lower.startswith((b"{", b"[")):
        return "JSON, not an image: the download failed"
    if text and all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in text[:64]):
        return f"text, not an image (starts with {printable(text[:24].decode('ascii'))!r})"
    return f"not an image that is known here (starts with {head[:8].hex(' ')})"

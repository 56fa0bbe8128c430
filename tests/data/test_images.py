"""Files become the right pixels, or are refused with the right reason."""

import csv
import errno
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from finetune import data
from finetune.data import Transform
from finetune.utils import ImageError

# The filter that finetune.images sets is undone by pytest's own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

pillow_heif.register_heif_opener()  # so that Pillow can write HEIC

RED, GREEN, BLUE, GRAY = (200, 40, 40), (40, 180, 60), (40, 60, 200), (128, 128, 128)


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green over blue, gray: any turn, flip or swapped channel shows."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, GRAY
    return Image.fromarray(pixels)


def corners(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return np.array([pixels[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1)) for y in rows for x in columns])


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as problem:
        data.read_image(path)
    found = data.inspect_image(path)
    assert not found.ok
    assert found.reason == problem.value.message
    return found.reason


# --------------------------------------------------------------------------------------------- the odd images


def test_every_odd_image_is_read_right_or_refused(shared: Path) -> None:
    folder = shared / "data" / "odd_images"
    wrong = []
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if (path := folder / row["file"]).exists() and (fault := _fault(path, row)):
            wrong.append(f"{row['file']}: {fault}")
    assert len(rows) >= 75
    assert not wrong


def _fault(path: Path, row: dict[str, str]) -> str:
    """What is wrong with our reading of `path`, by the manifest."""
    found = data.inspect_image(path)
    if row["file"] == "heic_header.heic":  # listed before HEIC could be read; it is no more than a header
        return "" if "damaged" in (found.reason or "") else f"{found.reason}"
    if row["verdict"] == "skip":
        return "found" if path in data.find_images(path.parent)[0] else ""
    if found.ok != (row["verdict"] == "accept") and row["verdict"] != "accept-or-reject":
        return f"{row['verdict']}, but {found.reason or 'accepted'}"
    if not found.ok:
        return ""
    pixels = data.read_image(path)
    assert pixels.shape[:2] == (found.height, found.width)
    if row["width"] and (found.width, found.height) != (int(row["width"]), int(row["height"])):
        return f"{found.width} x {found.height}"
    tolerance = float(row["tol"] or 0)
    if row["mean_r"]:
        means = [float(row[f"mean_{channel}"]) for channel in "rgb"]
        if np.abs(pixels.mean((0, 1)) - means).max() > tolerance + 0.51:
            return f"means {pixels.mean((0, 1))}"
    if row["tl"]:
        wanted = [[int(value) for value in row[corner].split("/")] for corner in ("tl", "tr", "bl", "br")]
        if np.abs(corners(pixels) - wanted).max() > 2 * tolerance + 1:
            return f"corners {corners(pixels).tolist()}"
    return ""


# ----------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "heic"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    turned = quadrants()
    inverse = {0: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    if inverse is not None:
        turned = turned.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, turned, f"x.{suffix}", exif=exif.tobytes() if suffix == "heic" else exif)
    pixels = data.read_image(path)
    assert pixels.shape == (48, 64, 3)
    np.testing.assert_allclose(corners(pixels), [RED, GREEN, BLUE, GRAY], atol=9)
    found = data.inspect_image(path)
    assert (found.width, found.height) == (64, 48)


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("L", "l.png", None),
        ("1", "bit.png", None),
        ("P", "p.gif", [RED, GREEN, BLUE, GRAY]),
        ("RGB", "x.bmp", [RED, GREEN, BLUE, GRAY]),
        ("RGB", "x.ppm", [RED, GREEN, BLUE, GRAY]),
        ("RGB", "x.avif", [RED, GREEN, BLUE, GRAY]),
        ("RGB", "x.heic", [RED, GREEN, BLUE, GRAY]),
        ("RGBA", "a.heif", [RED, GREEN, BLUE, GRAY]),
        ("CMYK", "c.jpg", [RED, GREEN, BLUE, GRAY]),
        ("CMYK", "c.tif", [RED, GREEN, BLUE, GRAY]),
    ],
)
def test_modes(tmp_path: Path, mode: str, name: str, expected: list[tuple[int, ...]] | None) -> None:
    converted = quadrants().convert(mode)
    pixels = data.read_image(saved(tmp_path, converted, name))
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(corners(pixels), expected or corners(np.array(converted.convert("RGB"))), atol=10)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(0, 256, dtype=np.uint16).reshape(16, 16) * 257
    for name in ("ramp.png", "ramp.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert (data.read_image(tmp_path / name)[..., 0] == np.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize(("bits", "remark"), [(12, True), (14, True), (16, False)])
def test_few_bits_in_a_file_of_sixteen_are_pointed_out(tmp_path: Path, bits: int, remark: bool) -> None:
    values = np.linspace(0, 2**bits - 1, 400).astype(np.uint16).reshape(20, 20)
    for name in ("x.png", "x.tif"):
        Image.fromarray(values).save(tmp_path / name)
        (note,) = data.inspect_image(tmp_path / name).warnings or [""]
        assert ("nearly black" in note and "Scale all images alike" in note) == remark


def test_few_bits_in_a_colour_png_are_pointed_out(tmp_path: Path) -> None:
    row = struct.pack(">30H", *np.linspace(0, 4095, 30).astype(int))
    (tmp_path / "x.png").write_bytes(png(16, 2, row, width=10, height=10))
    assert "nearly black" in data.inspect_image(tmp_path / "x.png").warnings[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_composited_on_black(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((20, 20), np.uint8)
    alpha[:, 10:] = 128
    image = Image.new("RGB", (20, 20), (240, 240, 240))
    image.putalpha(Image.fromarray(alpha))
    if mode == "LA":
        image = image.convert("LA")
    path = saved(
        tmp_path,
        image,
        "x.webp" if mode == "PA" else "x.png",
        **({"lossless": True} if mode == "PA" else {}),
    )
    pixels = data.read_image(path)
    assert (pixels[:, :10] == 0).all()
    np.testing.assert_allclose(pixels[:, 10:], 120, atol=1)


def png(depth: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes], width: int, height: int = 1) -> bytes:
    """A PNG file written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    others = b"".join(chunk(*one) for one in chunks)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for _ in range(height))))
    return b"\x89PNG\r\n\x1a\n" + header + others + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "expected"),
    [
        (8, 0, bytes([7, 9]), struct.pack(">H", 7), [0, 9]),
        (4, 0, bytes([0x3A]), struct.pack(">H", 3), [0, 170]),
        (2, 0, bytes([0b01_10_0000]), struct.pack(">H", 1), [0, 170]),
        (1, 0, bytes([0b1000_0000]), struct.pack(">H", 1), [0, 0]),
        (16, 0, struct.pack(">HH", 257 * 7, 257 * 9), struct.pack(">H", 257 * 7), [0, 9]),
        (8, 2, bytes([7, 7, 7, 9, 9, 9]), struct.pack(">HHH", 7, 7, 7), [0, 9]),
        (16, 2, struct.pack(">6H", *[1799] * 3, *[2313] * 3), struct.pack(">HHH", 1799, 1799, 1799), [0, 9]),
    ],
)
def test_the_transparent_colour_of_a_png(
    tmp_path: Path, depth: int, colour: int, row: bytes, key: bytes, expected: list[int]
) -> None:
    path = tmp_path / "key.png"
    path.write_bytes(png(depth, colour, row, (b"tRNS", key), width=2))
    assert data.read_image(path)[0].tolist() == [[value] * 3 for value in expected]


def test_transparent_palette_entries(tmp_path: Path) -> None:
    palette = bytes([200, 0, 0, 0, 200, 0])
    path = tmp_path / "p.png"
    path.write_bytes(png(8, 3, bytes([0, 1]), (b"PLTE", palette), (b"tRNS", bytes([128, 0])), width=2))
    assert data.read_image(path)[0].tolist() == [[100, 0, 0], [0, 0, 0]]


def test_bmp_with_an_unused_fourth_byte(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = 10, 20, 30  # blue, green, red, and a zero that a V4 header calls alpha
    info = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, 64, 2835, 2835, 0, 0)
    info += struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000) + bytes(52)
    path = tmp_path / "x.bmp"
    path.write_bytes(struct.pack("<2sIHHI", b"BM", 14 + 108 + 64, 0, 0, 122) + info + pixels.tobytes())
    assert (data.read_image(path) == (30, 20, 10)).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animation_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [quadrants(), *(Image.new("RGB", (64, 48), (index, 0, 0)) for index in range(5))]
    path = saved(tmp_path, frames[0], f"a.{suffix}", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(corners(data.read_image(path)), [RED, GREEN, BLUE, GRAY], atol=12)
    assert any("several frames" in warning for warning in data.inspect_image(path).warnings)


def test_many_frames_cost_no_more_than_few(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 100, 100), np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    few = saved(tmp_path, frames[0], "few.gif", save_all=True, append_images=frames[1:3])
    many = saved(tmp_path, frames[0], "many.gif", save_all=True, append_images=frames[1:])

    def seconds(path: Path) -> float:
        started = time.process_time()
        for _ in range(5):
            data.read_image(path)
        return time.process_time() - started

    assert seconds(many) < 20 * seconds(few) + 0.05


def test_a_broken_exif_block_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = saved(tmp_path, quadrants(), "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage", quality=95)
    np.testing.assert_allclose(corners(data.read_image(path)), [RED, GREEN, BLUE, GRAY], atol=9)


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (bytes(500), "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "damaged"),  # no more than the header of a HEIC file
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"\n<!DOCTYPE html><html>login</html>", "HTML"),
        (b'{"error": "not found"}', "JSON"),
        (b"just some text in a file", "text, not an image"),
        (b"PK\x03\x04 a zip", "ZIP"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", "01 02 03"),
    ],
)
def test_what_is_no_image_is_refused_by_its_first_bytes(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert says in reason(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm", "avif", "heic"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f"x.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert reason(path)


def bombs(folder: Path) -> list[Path]:
    """Small files that promise far more pixels, or text, than anybody has memory for."""
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    tags = ((256, 100_000), (257, 100_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1))
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value)
                                                                     for tag, value in tags)  # fmt: skip
    jpeg = (
        b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65_500, 65_500) + b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
    )
    contents = {
        "huge.png": png(8, 0, b"", width=30_000, height=30_000),
        "text.png": png(8, 0, b"\7", (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))), width=1),
        "profile.png": png(8, 0, b"\7", (b"iCCP", b"x\0\0" + zlib.compress(bytes(100_000_000))), width=1),
        "x.webp": b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + bytes(30),
        "x.gif": b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + bytes(20),
        "x.bmp": bmp + bytes(40),
        "x.tif": tiff + bytes(40),
        "x.ppm": b"P6 60000 60000 255\n" + bytes(40),
        "x.jpg": jpeg + b"\xff\xda" + bytes(100),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    paths = bombs(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in paths:
        started = time.perf_counter()
        assert reason(path)
        assert time.perf_counter() - started < 10  # a bomb would take far longer; benchmarks/trust.py measures
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # KB


def test_a_huge_text_chunk_is_refused(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000))
    path = tmp_path / "text.png"
    path.write_bytes(png(8, 0, b"\7", (b"zTXt", text), width=1))
    assert "damaged" in reason(path)


def test_a_photo_of_100_megapixels_is_accepted_in_little_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("L", (11_600, 8_700), 77), "photo.jpg", quality=20)
    program = (
        "import sys; from finetune.data import Transform, inspect_image, read_square; path = sys.argv[1]; "
        "print(read_square(path, Transform(224)).mean(), inspect_image(path).width, "
        "[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    answer = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    mean, width, kilobytes = map(float, answer.split())
    assert (round(mean), width) == (pytest.approx(77, abs=1), 11_600)
    assert kilobytes < 200_000


def test_what_cannot_be_opened_is_an_image_problem(tmp_path: Path) -> None:
    assert "no such file" in reason(tmp_path / "absent.jpg")
    assert "folder" in reason(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in reason(tmp_path / "pipe.jpg")


def test_a_drive_that_drops_out_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, quadrants(), "x.png")
    calls = []

    def stat(path: object) -> os.stat_result:
        calls.append(path)
        if len(calls) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)

    real = os.stat
    monkeypatch.setattr("finetune.data.images.time.sleep", lambda seconds: None)
    monkeypatch.setattr("finetune.data.images.os.stat", stat)
    assert data.read_image(path).shape == (48, 64, 3)
    assert len(calls) == 3


# ---------------------------------------------------------------------------------------------------- squares


def test_crop_takes_the_central_square(tmp_path: Path) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[10:90, 60:140] = 255  # 80 % of the short side
    path = saved(tmp_path, Image.fromarray(pixels), "x.png")
    assert data.read_square(path, Transform(40, crop=0.8))[1:-1, 1:-1].min() == 255
    assert data.read_square(path, Transform(40, crop=1.0))[1:-1, 1:-1].min() == 0


def test_squash_and_pad_keep_the_whole_image(tmp_path: Path) -> None:
    path = saved(tmp_path, quadrants(64, 32), "x.png")
    squashed = data.read_square(path, Transform(64, "squash"))
    assert squashed.shape == (64, 64, 3)
    np.testing.assert_allclose(corners(squashed), [RED, GREEN, BLUE, GRAY], atol=2)
    padded = data.read_square(path, Transform(64, "pad"))
    assert (padded[:16] == 0).all()
    assert (padded[48:] == 0).all()
    np.testing.assert_allclose(corners(padded[16:48]), [RED, GREEN, BLUE, GRAY], atol=2)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (10_000, 2), (1, 30_000)])
def test_extreme_shapes_become_squares(tmp_path: Path, resize: str, shape: tuple[int, int]) -> None:
    path = saved(tmp_path, Image.new("RGB", shape, RED), "x.png")
    pixels = data.read_square(path, Transform(32, resize))  # type: ignore[arg-type]
    assert pixels.shape == (32, 32, 3)
    assert (pixels == RED).all(axis=-1).any()
    assert data.inspect_image(path).warnings


def test_draft_decoding_of_big_photos_changes_next_to_nothing(tmp_path: Path) -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    path = saved(tmp_path, smooth.resize((1600, 1200), Image.Resampling.BICUBIC), "big.jpg", quality=95)
    assert data.read_image(path, near=224).shape == (600, 800, 3)
    fast = data.read_square(path, Transform(224)).astype(int)
    exact = np.array(data.resize_square(Image.fromarray(data.read_image(path)), Transform(224)), int)
    assert np.abs(fast - exact).mean() < 2  # the crop starts at a whole pixel of either size


def test_interpolations_differ_and_reading_is_repeatable(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "x.png")
    bilinear, bicubic = (data.read_square(path, Transform(32, interpolation=i)) for i in ("bilinear", "bicubic"))  # type: ignore[arg-type]
    assert (bilinear != bicubic).any()
    assert (bilinear == data.read_square(path, Transform(32))).all()
    assert bilinear.flags.writeable


# ------------------------------------------------------------------------------------------------- inspecting


def test_inspection_tells_what_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path, quadrants(), "x.jpg", format="PNG")
    found = data.inspect_image(path)
    assert (found.ok, found.format, found.width, found.height) == (True, "PNG", 64, 48)
    assert found.state
    assert len(found.sha256) == 64
    assert found.warnings == ("PNG under another name (.jpg)",)
    assert "a single colour" in data.inspect_image(saved(tmp_path, Image.new("RGB", (50, 50)), "y.png")).warnings


def test_cmyk_without_its_marker_is_pointed_out(tmp_path: Path) -> None:
    content = saved(tmp_path, quadrants().convert("CMYK"), "x.jpg").read_bytes()
    at = content.index(b"\xff\xee")  # the segment that Adobe's programs, and Pillow, write
    length = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    (tmp_path / "bare.jpg").write_bytes(content[:at] + content[at + length :])
    assert data.inspect_image(tmp_path / "x.jpg").warnings == ()
    assert "CMYK without the Adobe marker" in data.inspect_image(tmp_path / "bare.jpg").warnings[0]


def test_a_file_without_permission_says_how_to_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: object, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = saved(tmp_path, quadrants(), "x.png")
    monkeypatch.setattr("finetune.data.images.open", denied, raising=False)
    assert reason(path) == "no permission to read it: chmod u+r"


def test_of_a_heic_file_the_image_is_read_and_not_its_thumbnail(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "x.heic", thumbnails=[64])
    whole, near = data.read_image(path), data.read_image(path, near=8)
    assert whole.shape == (300, 400, 3)
    assert (near == whole).all()


def test_importing_images_stays_light() -> None:
    heavy = ("tensorflow", "keras", "sklearn", "pydantic", "rich")
    program = f"import sys, finetune.data.scan; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"

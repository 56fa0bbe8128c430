"""Many files at once: in order, from the cache the second time, and past a decoder that crashes."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from finetune.data import scan as scanning
from finetune.data.images import Inspection, inspect_image
from finetune.data.scan import TABLE, scan_images
from finetune.utils.errors import ResourceError


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for index in range(70):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.new("RGB", (20 + index, 20), (index, 0, 0)).save(paths[-1])
    return paths


def test_answers_come_in_order_and_as_from_inspect(images: list[str]) -> None:
    Path(images[3]).write_bytes(b"")
    Path(images[5]).unlink()
    found = list(scan_images(iter(images), workers=2))
    assert found == [inspect_image(path) for path in images]
    assert [index for index, one in enumerate(found) if not one.ok] == [3, 5]


CRASHING = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import finetune.data.scan as scan
inspect_image = scan.inspect_image
scan.inspect_image = lambda path: {how} if "/crash" in path else inspect_image(path)
scan.serve()
"""


@pytest.mark.parametrize(("how", "says"), [("__import__('os').abort()", "signal 6"), ("exit(7)", "exit code 7")])
def test_a_crashing_decoder_is_survived_and_its_file_named(
    images: list[str], monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    monkeypatch.setattr(scanning, "WORKER", CRASHING.format(how=how))
    for index in (0, 40, 69):
        images[index] = os.path.join(os.path.dirname(images[index]), f"crash{index}.png")
        Image.new("RGB", (9, 9)).save(images[index])
    found = list(scan_images(images, workers=2))
    assert [one.path for one in found] == images
    bad = {index: one.reason for index, one in enumerate(found) if not one.ok}
    assert list(bad) == [0, 40, 69]
    assert all(says in (reason or "") for reason in bad.values())


def test_workers_that_cannot_work_are_an_error(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "WORKER", "import no_such_module")
    with pytest.raises(ResourceError, match="ended at once"):
        list(scan_images(images))
    always = CRASHING.replace('"/crash" in path', "True")
    monkeypatch.setattr(scanning, "WORKER", always.format(how="exit(1)"))
    monkeypatch.setattr(scanning, "MAX_CRASHES", 2)
    with pytest.raises(ResourceError, match="3 processes"):
        list(scan_images(images, workers=1))


def test_the_second_time_nothing_is_decoded(images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "deep" / "scan.sqlite"
    Path(images[3]).write_bytes(b"not an image")
    first = list(scan_images(images, cache=cache))
    monkeypatch.setattr(scanning, "WORKER", "raise SystemExit")
    assert list(scan_images(images, cache=cache)) == first
    monkeypatch.undo()
    Image.new("RGB", (5, 5), (1, 2, 3)).save(images[0])
    os.utime(images[1], ns=(1, 1))
    Path(images[2]).unlink()
    again = list(scan_images(images, cache=cache))
    assert again == [inspect_image(path) for path in images]
    assert again[3:] == first[3:]
    assert (again[0].width, again[1].mtime_ns, again[2].ok) == (5, 1, False)


def test_other_rules_make_the_cache_stale(images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "scan.sqlite"
    list(scan_images(images[:2], cache=cache))
    monkeypatch.setattr(scanning, "RULES", "others")
    monkeypatch.setattr(scanning, "WORKER", "raise SystemExit")
    with pytest.raises(ResourceError):
        list(scan_images(images[:2], cache=cache))


@pytest.mark.parametrize("trouble", ["garbage", "folder", "in a file"])
def test_a_cache_that_cannot_be_used_is_no_error(images: list[str], tmp_path: Path, trouble: str) -> None:
    cache = tmp_path / "scan.sqlite"
    if trouble == "garbage":
        cache.write_bytes(b"no database " * 1000)
    elif trouble == "folder":
        cache.mkdir()
    else:
        cache = Path(images[0]) / "scan.sqlite"
    assert all(one.ok for one in scan_images(images[:3], cache=cache))


def test_an_abandoned_scan_leaves_no_process(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr("finetune.data.scan.subprocess.Popen", Recorded)
    iterator = scan_images(images * 20, workers=2)
    assert isinstance(next(iterator), Inspection)
    began = time.monotonic()
    iterator.close()
    assert time.monotonic() - began < 5
    assert started
    assert all(process.returncode is not None for process in started)


def test_a_program_on_standard_input_can_scan(images: list[str]) -> None:
    program = f"from finetune.data.scan import scan_images\nprint(sum(one.ok for one in scan_images({images[:5]!r})))\n"
    answer = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("5\n", "")


def test_two_scans_may_share_a_cache(images: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "scan.sqlite"
    program = (
        "import sys; from pathlib import Path; from finetune.data.scan import scan_images; "
        "cache, *paths = sys.argv[1:]; "
        "print(sum(one.ok for one in scan_images(paths, cache=Path(cache))))"
    )
    words = [sys.executable, "-c", program, cache, *images]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["70\n", "70\n"]
    with closing(sqlite3.connect(cache)) as database:
        assert database.execute(f"SELECT count(*) FROM {TABLE}").fetchone() == (70,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = os.path.join(tmp_path, os.fsdecode(b"\xe9\n.png"))
    with open(path, "wb") as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
    cache = tmp_path / "scan.sqlite"
    first = list(scan_images([path], cache=cache))
    assert first == list(scan_images([path], cache=cache)) == [inspect_image(path)]

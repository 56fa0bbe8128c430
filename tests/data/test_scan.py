"""Many files are inspected at once: in order, and past a decoder that crashes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from finetune.data import Inspection, inspect_image, scan_images
from finetune.utils import ResourceError


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
    inspections = list(scan_images(iter(images), workers=2))
    assert inspections == [inspect_image(path) for path in images]
    assert [index for index, inspection in enumerate(inspections) if not inspection.ok] == [3, 5]


CRASHING = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import finetune.data.scan as scan
inspect_image = scan.inspect_image
scan.inspect_image = lambda path: {how} if "/crash" in path else inspect_image(path)
scan.serve()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), [("__import__('os').abort()", "signal 6"), ("exit(7)", "exit code 7")])
def test_a_crashing_decoder_is_survived_and_its_file_named(
    images: list[str], monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    monkeypatch.setattr("finetune.data.scan.WORKER", CRASHING.format(how=how))
    for index in (0, 40, 69):
        images[index] = os.path.join(os.path.dirname(images[index]), f"crash{index}.png")
        Image.new("RGB", (9, 9)).save(images[index])
    inspections = list(scan_images(images, workers=2))
    assert [inspection.path for inspection in inspections] == images
    bad = {index: inspection.reason for index, inspection in enumerate(inspections) if not inspection.ok}
    assert list(bad) == [0, 40, 69]
    assert all(says in (reason or "") for reason in bad.values())


@pytest.mark.slow
def test_workers_that_cannot_work_are_an_error(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.scan.WORKER", "import no_such_module")
    with pytest.raises(ResourceError, match="ended at once"):
        list(scan_images(images))
    always = CRASHING.replace('"/crash" in path', "True")
    monkeypatch.setattr("finetune.data.scan.WORKER", always.format(how="exit(1)"))
    monkeypatch.setattr("finetune.data.scan.MAX_CRASHES", 2)
    with pytest.raises(ResourceError, match="3 processes"):
        list(scan_images(images, workers=1))


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
    program = (
        f"from finetune.data import scan_images\nprint([file.ok for file in scan_images({images[:5]!r})].count(True))\n"
    )
    answer = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("5\n", "")

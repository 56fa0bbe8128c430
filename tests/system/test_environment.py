"""Machines as they are: no home, no name, no UTF-8, other packages, few descriptors; each in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from processes import finetune

from finetune import config as configs
from finetune.models import build_classifier

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 54321  # a user id without a name


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user may enter, with a model and images of odd names."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-test-"))
    made = build_classifier(configs.ModelConfig(backbone="tiny", weights="none"), ("Füße", "手", "plain"))
    made.save(folder / "model.keras")
    (folder / "pictures").mkdir()
    for name in ("ü.png", "日本.png", "a.png"):
        Image.new("RGB", (40, 40), (200, 0, 0)).save(folder / "pictures" / name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "cache").mkdir(mode=0o777)
    (folder / "cache").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_without_home_name_terminal_utf8_and_asserts(place: Path) -> None:
    """A container's user: no HOME, no entry in passwd, the C locale; and Python without `assert`."""
    bare = {
        "PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "FINETUNE_CACHE": str(place / "cache"),
        "FINETUNE_OFFLINE": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip
    enter = ["test", "-x", os.path.realpath(sys.executable)]
    able = os.geteuid() == 0 and not subprocess.run(enter, user=NOBODY, check=False).returncode
    user = {"user": NOBODY} if able else {}

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-O", "-m", "finetune.cli", *words]
        return subprocess.run(command, cwd=place, env=bare, capture_output=True, timeout=120, check=False, **user)

    lines = run("predict", "pictures", "--model", "model.keras", "--top", "1")
    assert (lines.returncode, lines.stderr) == (0, b"")
    assert len(lines.stdout.splitlines()) == 3
    assert lines.stdout.isascii()
    missing = run("predict", "日本", "--model", "model.keras")
    assert missing.returncode == 3
    assert missing.stderr.isascii()
    assert b"no such file or folder" in missing.stderr
    assert b"Traceback" not in missing.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_of_keras_is_one_line(place: Path, backend: str) -> None:
    done = finetune("predict", "pictures", folder=place, env={**os.environ, "KERAS_BACKEND": backend})
    assert done.returncode == 2
    assert done.stderr == (
        f"error: finetune needs Keras on TensorFlow, got KERAS_BACKEND={backend}.\n  unset KERAS_BACKEND\n"
    )


@pytest.mark.slow
def test_a_missing_package_is_named(place: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['tensorflow_datasets'] = None\n")
    (tmp_path / "cfg.yaml").write_text("data: {tfds: tf_flowers}\n")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = finetune("preview", "cfg.yaml", folder=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 5
    assert done.stderr == ("error: the package tensorflow_datasets is missing.\n  pip install --upgrade finetune\n")


FEW = (
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); "
    "from finetune.cli.main import main; main()"
)


@pytest.mark.slow
def test_few_descriptors_are_enough(place: Path) -> None:
    many = place / "cache" / "many"
    many.mkdir(exist_ok=True)
    for number in range(300):
        shutil.copy(place / "pictures" / "a.png", many / f"{number}.png")
    words = ["predict", str(many), "--model", "model.keras", "--json"]
    done = subprocess.run([sys.executable, "-c", FEW, *words], cwd=place, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sum("predictions" in answer for answer in json.loads(done.stdout)) == 300


def test_no_decoder_of_tensorflow_sees_a_file_of_a_user() -> None:
    """Two kinds of ordinary images end the process there: nothing here decodes with TensorFlow but an exported model,
    which has nothing else, and that keeps to the decoders of JPEG and PNG."""
    found = {
        (path.name, word)
        for path in (ROOT / "finetune").rglob("*.py")
        for word in re.findall(r"tf\.(?:io|image)\.decode_\w+|from_generator", path.read_text("utf-8"))
    }
    assert found == {("serving.py", f"tf.io.decode_{kind}") for kind in ("jpeg", "png", "raw")}

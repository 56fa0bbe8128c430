"""A run that survives anything: real processes, killed and signalled, must end as one that nobody touched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import EAGER, SLOW, Forge, finetune, furnish, outcome, tree

pytestmark = pytest.mark.slow

CONFIG = """
name: colours
recipe: none
deterministic: true
data: {folder: images, split: {train: 0.6, validation: 0.2, test: 0.2}}
model: {backbone: tiny, weights: none, dropout: 0.2}
head: {start: random, epochs: 3, batch_size: 8, learning_rate: 0.01}
fine_tune: {unfreeze: 2, epochs: 2, batch_size: 8, learning_rate: 0.003}
"""


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Forge]:
    forge = Forge(furnish(tmp_path_factory.mktemp("trust"), images, CONFIG))
    yield forge
    forge.close()


@pytest.fixture(scope="module")
def unbroken(forge: Forge) -> dict:
    before = tree(forge.folder / "images")
    assert forge.run("train", "cfg.yaml", "--output", "unbroken") == 0, forge.said()
    assert tree(forge.folder / "images") == before
    return outcome(forge.folder / "unbroken" / "colours-1")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder for runs."""
    return tmp_path / "runs"


MOMENTS = {
    "scan": "at(scan.ScanCache, 'keep')",
    "naming the splits": "at(os, 'replace', when=lambda old, new: new.name == 'splits.csv')",
    "features": "at(feature_cache.FeatureWriter, 'commit')",
    "first batch": "at(Trainer, 'train_batch')",
    "mid-epoch, saved before": EAGER + "at(Trainer, 'train_batch', 9)",
    "half of a checkpoint": EAGER
    + """
import numpy
def savez(path, **arrays):
    path.write_bytes(b"PK" + bytes(1000))
    die()
at(Trainer, 'train_batch', 2, act=lambda: setattr(numpy, 'savez', savez))
""",
    "before the pointer": EAGER + "at(os, 'replace', when=lambda old, new: new.name == 'LAST')",
    "validation": "at(Trainer, 'validate')",
    "history without its checkpoint": EAGER + "at(Run, 'append_history', after=True)",
    "the end of a phase": "at(Run, 'finish_phase', after=True)",
    "the first look of fine-tuning": "at(Trainer, 'validate', when=lambda self: self.phase.index)",
    "fine-tuning": EAGER + "at(Trainer, 'train_batch', 8, when=lambda self, *_: self.phase.index)",
    "saving the model": "at(os, 'replace', when=lambda old, new: new.name == 'model.keras')",
    "evaluation": "at(experiment, 'evaluate_on_test')",
    "report": "at(experiment, 'write_report', after=True)",
}


def test_a_run_killed_at_every_stage_ends_as_one_that_never_was(forge: Forge, unbroken: dict, output: Path) -> None:
    shutil.rmtree(forge.folder / "cache", ignore_errors=True)  # so that it has to be filled, too
    for moment, patch in MOMENTS.items():
        code = forge.run("train", "cfg.yaml", "--output", output, "--resume", patch=patch)
        assert code == -signal.SIGKILL, f"{moment}: {code}\n{forge.said()}"
    cache = {**os.environ, "FINETUNE_CACHE": str(forge.folder / "cache")}
    last = finetune("train", "cfg.yaml", "--output", output, "--resume", folder=forge.folder, env=cache)
    assert last.returncode == 0, last.stderr
    assert last.stdout == ""
    assert [path.name for path in output.iterdir()] == ["colours-1"]
    assert outcome(output / "colours-1") == unbroken
    assert not list(output.rglob(".tmp-*"))
    assert not list((forge.folder / "cache").rglob(".tmp-*"))


def test_signals_end_a_run_within_seconds_and_lose_nothing(forge: Forge, unbroken: dict, output: Path) -> None:
    run = output / "colours-1"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)):
        again = ["--resume", run] if run.exists() else ["cfg.yaml", "--output", output]
        forge.start("train", *again, patch=SLOW)
        forge.said("head: training")
        time.sleep(0.3)
        begin = time.monotonic()
        forge.send(number)
        assert forge.wait() == code
        assert time.monotonic() - begin < 5
        said = forge.said()
        assert f"error: stopped by {number.name}\n  Everything up to here is saved. Go on with: finetune" in said
        assert "Traceback" not in said
        assert json.loads((run / "state.json").read_text())["status"] == "stopped"
    assert forge.run("train", "--resume", run) == 0
    assert outcome(run) == unbroken


def test_interrupted_twice_means_now_and_a_hanging_thread_holds_nobody(forge: Forge, output: Path) -> None:
    forge.start(
        "train", "cfg.yaml", "--output", output,
        patch="import threading; threading.Thread(target=time.sleep, args=(500,)).start()\n"
        "def hang(): print('validating', flush=True), time.sleep(500)\n"
        "at(Trainer, 'validate', act=hang)",
    )  # fmt: skip
    forge.said("validating")
    forge.send(signal.SIGINT)
    time.sleep(0.5)
    begin = time.monotonic()
    forge.send(signal.SIGINT)
    assert forge.wait() == 130
    assert time.monotonic() - begin < 2


def test_a_logger_that_fails_costs_no_work(forge: Forge, unbroken: dict, output: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    output.symlink_to(tmp_path / "elsewhere")  # a link is as good as a folder
    full = "def full(): raise OSError(28, 'No space left on device')\n"
    moment = "at(tensorboard.tf.summary, 'scalar', 17, act=full)"  # after 6 steps and an epoch: that of the 7th step
    assert forge.run("train", "cfg.yaml", "--output", output, patch=full + moment) == 5
    assert "tensorboard" in forge.said()
    run = output / "colours-1"
    assert json.loads(max((run / "checkpoints").glob("0*/state.json")).read_text())["state"]["step"] == 7
    assert forge.run("train", "--resume", run) == 0, forge.said()
    points = {"points": None}  # that of the 7th step is what could not be written
    assert outcome(run) | points == unbroken | points


def test_under_nohup_an_interrupt_is_ignored(forge: Forge, output: Path) -> None:
    forge.start("train", "cfg.yaml", "--output", output, patch="signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SLOW)
    forge.said("head: training")
    for _ in range(3):
        forge.send(signal.SIGINT)
    time.sleep(0.3)
    forge.send(signal.SIGTERM)
    assert forge.wait() == 143
    assert "stopped by SIGTERM" in forge.said()


def test_stopped_in_the_scan_nothing_has_begun(forge: Forge, output: Path) -> None:
    shutil.rmtree(forge.folder / "cache", ignore_errors=True)
    patch = "at(scan.ScanCache, 'keep', act=lambda: os.kill(os.getpid(), signal.SIGTERM))"
    assert forge.run("train", "cfg.yaml", "--output", output, patch=patch) == 143
    assert not output.exists()


def test_stopped_while_tensorflow_loads(forge: Forge, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "finetune.cli", "train", "cfg.yaml", "--output", str(tmp_path / "runs")]
    with subprocess.Popen(words, cwd=forge.folder, stderr=subprocess.PIPE, text=True) as process:
        while "tensorflow" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "error: stopped by SIGTERM" in said
    assert "Traceback" not in said
    # The images are looked at before TensorFlow starts, so there may be a run folder: then it is told how to resume.
    assert (tmp_path / "runs").exists() == (f"finetune train --resume {tmp_path / 'runs'}" in said)


def test_one_training_at_a_time_and_a_dead_one_blocks_nobody(forge: Forge, unbroken: dict, output: Path) -> None:
    forge.start("train", "cfg.yaml", "--output", output, patch=SLOW)
    forge.said("epoch 1/")
    refused = finetune("train", "--resume", output / "colours-1", folder=forge.folder, env=_counting_imports())
    assert refused.returncode == 5
    assert f"in use by process {forge.pid} on " in refused.stderr
    assert " since 20" in refused.stderr
    assert "tensorflow" not in refused.stdout
    forge.send(signal.SIGKILL)
    assert forge.wait() == -signal.SIGKILL
    assert (output / "colours-1" / "run.lock").exists()
    assert forge.run("train", "--resume", output / "colours-1") == 0, forge.said()
    assert outcome(output / "colours-1") == unbroken


def _counting_imports() -> dict[str, str]:
    """An environment in which Python lists on standard output, at its end, what big things it has imported."""
    folder = Path(os.environ["FINETUNE_CACHE"]) / "site"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: print([m for m in ('tensorflow', 'keras') if m in sys.modules]))\n"
    )
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_is_wrong(
    forge: Forge, unbroken: dict, output: Path
) -> None:
    full = """
import resource
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 10**9))
at(Trainer, 'train_batch', 9, when=lambda self, *_: self.phase.index, act=limit)
"""
    assert forge.run("train", "cfg.yaml", "--output", output, patch=EAGER + full) == 5
    said = forge.said()
    assert f"cannot write {output / 'colours-1'}" in said
    assert "files may not be that large here (see `ulimit -f`) (" in said
    assert "free " in said
    assert "Traceback" not in said
    assert forge.run("train", "--resume", output / "colours-1") == 0, forge.said()
    assert outcome(output / "colours-1") == unbroken


FILL = """
def fill():
    with open({folder!r} + "/filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError:
            pass
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 30 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "moment",
    ["at(Trainer, 'train_batch', 9, act=fill)", "at(feature_cache, 'image_batches', act=fill)"],
)
def test_a_disk_that_is_really_full(forge: Forge, unbroken: dict, small_disk: Path, moment: str) -> None:
    command = ("train", "cfg.yaml", "--output", small_disk / "runs", "--resume")
    cache = {"FINETUNE_CACHE": str(small_disk / "cache")}
    assert forge.run(*command, patch=EAGER + FILL.format(folder=str(small_disk)) + moment, **cache) == 5, forge.said()
    assert "the disk is full (" in forge.said() or "too little space (" in forge.said()
    assert "free 0 bytes)" in forge.said()
    assert "Traceback" not in forge.said()
    (small_disk / "filler").unlink()
    assert forge.run(*command, **cache) == 0, forge.said()
    assert outcome(small_disk / "runs" / "colours-1") == unbroken


def test_a_plan_that_cannot_fit_is_refused_at_the_start(forge: Forge, output: Path) -> None:
    small = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6)"
    assert forge.run("train", "cfg.yaml", "cache=memory", "--output", output, patch=small) == 5
    said = forge.said()
    assert "too little space (needed 2" in said
    assert "free 1.0 MB" in said
    assert "head: training" not in said


@pytest.mark.parametrize("error", ["MemoryError()", "tf.errors.ResourceExhaustedError(None, None, 'OOM on tensor')"])
def test_out_of_memory_says_what_to_make_smaller(forge: Forge, output: Path, error: str) -> None:
    patch = (
        f"from finetune.utils.device import tf\ndef full(): raise {error}\n" + "at(Trainer, 'train_batch', act=full)"
    )
    assert forge.run("train", "cfg.yaml", "--output", output, patch=patch) == 5
    assert "Out of memory" in forge.said()
    assert "Halve head.batch_size" in forge.said()
    assert "model.image_size" in forge.said()


def test_a_nan_stops_at_once_and_names_the_images(forge: Forge, output: Path) -> None:
    assert forge.run("train", "cfg.yaml", "head.learning_rate=1e38", "--output", output) == 2
    said = forge.said()
    assert "head, epoch 1, batch " in said
    assert "Try learning_rate=1e+37" in said
    assert ".png" in said
    assert "Traceback" not in said


def test_changed_images_and_moved_folders(forge: Forge, unbroken: dict, output: Path, tmp_path: Path) -> None:
    shutil.copytree(forge.folder / "images", tmp_path / "data")
    folder = f"data.folder={tmp_path / 'data'}"
    patch = EAGER + "at(Trainer, 'train_batch', 9)"
    assert forge.run("train", "cfg.yaml", folder, "--output", output, patch=patch) == -signal.SIGKILL
    changed = tmp_path / "data" / "red" / "03.png"
    changed.write_bytes((tmp_path / "data" / "blue" / "03.png").read_bytes())
    assert forge.run("train", "--resume", output / "colours-1") == 3
    assert "1 of 72 images are not what they were:\n  red/03.png: its content has changed" in forge.said()
    shutil.rmtree(tmp_path / "data")
    (output / "colours-1").rename(tmp_path / "moved")
    assert forge.run("train", "--resume", tmp_path / "moved") == 3
    assert "there is no folder" in forge.said()
    shutil.copytree(forge.folder / "images", tmp_path / "elsewhere")
    assert forge.run("train", "--resume", tmp_path / "moved", f"data.folder={tmp_path / 'elsewhere'}") == 0, (
        forge.said()
    )
    assert outcome(tmp_path / "moved") == unbroken


def test_changed_images_may_be_accepted(forge: Forge, output: Path, tmp_path: Path) -> None:
    shutil.copytree(forge.folder / "images", tmp_path / "data")
    words = ("train", "cfg.yaml", f"data.folder={tmp_path / 'data'}", "--output", output)
    patch = EAGER + "at(Trainer, 'train_batch', 3, when=lambda self, *_: self.phase.index)"
    assert forge.run(*words, patch=patch) == -signal.SIGKILL
    run = output / "colours-1"
    tests = [line.split(",") for line in (run / "splits.csv").read_text().splitlines() if ",test," in line]
    (tmp_path / "data" / tests[0][0]).unlink()
    other = forge.folder / "images" / "blue" / "03.png"
    (tmp_path / "data" / "red" / "03.png").write_bytes(other.read_bytes())
    assert forge.run("train", "--resume", run) == 3
    assert "2 of 72 images are not what they were" in forge.said()
    assert f"finetune train --resume {run} --accept-data-change" in forge.said()
    again = "at(Trainer, 'train_batch', 2)"
    assert forge.run("train", "--resume", run, "--accept-data-change", patch=again) == -signal.SIGKILL
    assert "2 of 72 images are not what they were, and that is accepted" in forge.said()
    assert forge.run("train", "--resume", run) == 0, forge.said()  # accepted once is enough
    report = json.loads((run / "report.json").read_text())
    assert report["test"]["n"] == len(tests) - 1
    assert "that is accepted" in json.loads((run / "run.json").read_text())["data_changes"][0]
    assert forge.run("train", "cfg.yaml", "--accept-data-change") == 2


def test_only_the_run_that_was_begun_goes_on(forge: Forge, unbroken: dict, output: Path) -> None:
    done = forge.folder / "unbroken" / "colours-1"
    assert forge.run("train", "--resume", done) == 2
    assert "is done, 5 of 5 epochs (head 3 of 3, fine_tune 2 of 2)." in forge.said()
    patch = EAGER + "at(Trainer, 'train_batch', 9)"
    assert forge.run("train", "cfg.yaml", "--output", output, patch=patch) == -signal.SIGKILL
    run = output / "colours-1"
    for words in (
        ("cfg.yaml", "--output", output, "--resume", "head.epochs=9"),
        ("--resume", run, "head.epochs=9"),
        ("cfg.yaml", "head.epochs=9", "--resume", run),
    ):
        assert forge.run("train", *words) == 2
        assert "begun with another config" in forge.said()
        assert "  head.epochs: 3 in the run, 9 now\n" in forge.said()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("dropout: 0.2", "dropout: 0.5"))
    assert forge.run("train", "--resume", run) == 2
    assert "  model.dropout: 0.2 in the run, 0.5 now\n" in forge.said()
    (run / "config.yaml").write_text(text)
    assert forge.run("train", "--resume", run, "cache=memory") == 0, forge.said()
    assert outcome(run) == unbroken


def test_a_damaged_checkpoint_falls_back_to_the_one_before(forge: Forge, unbroken: dict, output: Path) -> None:
    patch = EAGER + "at(Trainer, 'train_batch', 9)"
    assert forge.run("train", "cfg.yaml", "--output", output, patch=patch) == -signal.SIGKILL
    newest = max((output / "colours-1" / "checkpoints").glob("0*"))
    with (newest / "arrays.npz").open("r+b") as file:
        file.seek(500)
        file.write(b"\0\1\2\3")
    assert forge.run("train", "--resume", output / "colours-1") == 0
    assert f"checkpoint {newest.name} cannot be used (arrays.npz was changed" in forge.said()
    assert outcome(output / "colours-1") == unbroken


def test_training_goes_on_when_nobody_listens(forge: Forge, output: Path) -> None:
    patch = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1); os.dup2(writer, 2)"
    assert forge.run("train", "cfg.yaml", "head.epochs=1", "fine_tune=null", "--output", output, patch=patch) == 0
    assert (output / "colours-1" / "report.html").exists()


NO_NETWORK = """
import socket
def refuse(*args, **more): raise SystemExit("somebody opened a socket")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture
def untouchable(forge: Forge, tmp_path: Path) -> Iterator[Path]:
    """Images that are as before at the end; where the kernel lets us, it forbids to write there."""
    images, mounted = forge.folder / "images", tmp_path / "mounted"
    before = tree(images)
    mounted.mkdir()
    mounting = ["mount", "--bind", "-o", "ro", str(images), str(mounted)]
    if not shutil.which("mount") or subprocess.run(mounting, capture_output=True, check=False).returncode:
        yield images
    else:
        try:
            with pytest.raises(OSError, match="Read-only"):
                (mounted / "x").touch()
            yield mounted
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    assert tree(images) == before


def test_every_command_works_without_a_network_and_writes_nothing_to_the_data(
    forge: Forge, output: Path, untouchable: Path
) -> None:
    images, made = untouchable, output.parent / "made"
    folder = f"data.folder={images}"
    assert forge.run("train", "cfg.yaml", folder, "--output", output, patch=NO_NETWORK) == 0, forge.said()
    run = next(output.iterdir())
    for command in (
        ("train", "--resume", run),
        ("predict", images / "red", "--model", run, "--csv", made / "answers.csv"),
        ("predict", images / "red" / "00.png", "--top", "2", "--figure", made / "answer.png"),
        ("evaluate", run, "--data", images),
        ("explain", images / "red" / "00.png", "--model", run, "--output", made / "maps"),
        ("preview", "cfg.yaml", folder, "--output", made / "preview"),
        ("zeroshot", images, "--pictures", "4"),
        ("init", images, made / "written.yaml"),
    ):
        made.mkdir(exist_ok=True)
        code = 2 if command[0] == "train" else 0  # it is done
        assert forge.run(*command, patch=NO_NETWORK) == code, forge.said()
        assert "Traceback" not in forge.said()


def test_the_built_in_data_need_no_network(forge: Forge, output: Path) -> None:
    (forge.folder / "digits.yaml").write_text(
        CONFIG.split("data:")[0]
        + "data: {builtin: digits}\n"
        + ("model: {backbone: tiny, weights: none}\nhead: {epochs: 1}\n")
    )
    assert forge.run("train", "digits.yaml", "--output", output, patch=NO_NETWORK) == 0, forge.said()


def test_a_fault_of_ours_leaves_a_report(forge: Forge, output: Path, tmp_path: Path) -> None:
    patch = f"""
import tempfile
tempfile.tempdir = {str(tmp_path)!r}
def break_it(): raise ZeroDivisionError('oops')
at(Trainer, 'validate', act=break_it)
"""
    assert forge.run("train", "cfg.yaml", "--output", output, patch=patch) == 1
    said = forge.said()
    assert "this is a bug in finetune: ZeroDivisionError: oops" in said
    assert "Traceback" not in said
    report = next(tmp_path.glob("finetune-bug-*")).read_text()
    assert "ZeroDivisionError: oops" in report
    assert "break_it" in report
    assert json.loads((output / "colours-1" / "state.json").read_text())["status"] == "failed"


def test_predicting_with_bad_images(forge: Forge, unbroken: dict, tmp_path: Path) -> None:
    run = forge.folder / "unbroken" / "colours-1"
    images = tmp_path / "some"
    shutil.copytree(forge.folder / "images" / "red", images)
    (images / "bad.png").write_bytes((images / "00.png").read_bytes()[:500])
    (images / "page.jpg").write_text("<!DOCTYPE html>")
    assert forge.run("predict", images, "--model", run, "--csv", tmp_path / "answers.csv") == 6
    assert "24 of 26 images were predicted; these could not be read:" in forge.said()
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 1 + 26
    assert forge.run("predict", images, "--model", run, "--csv", tmp_path / "answers.csv") == 2
    assert "exists already" in forge.said()
    assert forge.run("predict", images / "bad.png", images / "page.jpg", "--model", run) == 3
    assert "none of the 2 images could be read" in forge.said()
    assert forge.run("predict", images, "--model", tmp_path / "nowhere") == 4
    assert forge.run("predict", images, "--model", forge.folder / "cfg.yaml") == 4
    assert "starts with b'\\nname: c'" in forge.said()
    assert forge.run("predict", images, "--model", "resnet51") == 2
    assert "Did you mean" in forge.said()
    assert "Traceback" not in forge.said()


def test_a_broken_predict_goes_on_where_it_was(forge: Forge, unbroken: dict, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(forge.folder / "images", images)
    (images / "bad.png").write_text("no image")
    (images / "red" / "=odd,'\n.png").write_bytes((images / "red" / "00.png").read_bytes())
    words = ("predict", images, "--model", forge.folder / "unbroken" / "colours-1", "--batch-size", "4", "--csv")
    whole, table = tmp_path / "whole.csv", tmp_path / "out.csv"
    part = tmp_path / "out.csv.part"
    assert forge.run(*words, whole) == 6
    said = forge.said().partition("\n")[2]
    at_row = "from finetune.models.writers import CsvWriter\nat(CsvWriter, 'write', {row}, act=lambda: {act})"
    assert forge.run(*words, table, patch=at_row.format(row=9, act="die()")) == -signal.SIGKILL
    assert not table.exists()
    assert part.read_bytes() == whole.read_bytes()[: part.stat().st_size]
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 5)  # as a power loss might
    assert forge.run(*words, table) == 2
    assert "has the rows of an interrupted predict" in forge.said()
    stop = at_row.format(row=20, act="os.kill(os.getpid(), signal.SIGTERM)")
    assert forge.run(*words, table, "--resume", patch=stop) == 143
    assert "7 of 74 images have their row already" in forge.said()
    assert f"Continue with the same command and --resume: {part}" in forge.said()
    assert part.read_bytes() == whole.read_bytes()[: part.stat().st_size]
    assert forge.run(*words, table, "--resume") == 6
    assert forge.said().splitlines()[-2:] == said.splitlines()[-2:]  # the bad image is among those of before
    assert table.read_bytes() == whole.read_bytes()
    assert not part.exists()
    assert forge.run(*words, table, "--resume") == 6
    assert "74 of 74 images have their row already" in forge.said()
    assert table.read_bytes() == whole.read_bytes()
    assert forge.run(*words, table, "--resume", "--top", "2") == 2
    assert "other columns" in forge.said()
    table.write_bytes(table.read_bytes().replace(b"blue", b"violet"))
    assert forge.run(*words, table, "--resume") == 2
    assert "another model" in forge.said()
    assert forge.run(*words[:-1], "--resume") == 2


def test_predict_and_head(forge: Forge, unbroken: dict) -> None:
    run = forge.folder / "unbroken" / "colours-1"
    patch = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    for more in ((), ("--json",)):
        assert forge.run("predict", forge.folder / "images", "--model", run, *more, patch=patch) == 0
        assert "Error" not in forge.said()


def test_data_that_cannot_be_trained_on(forge: Forge, output: Path, tmp_path: Path) -> None:
    def train(folder: str) -> str:
        begin = time.monotonic()
        assert forge.run("train", "cfg.yaml", f"data.folder={tmp_path / folder}", "--output", output) == 3
        assert time.monotonic() - begin < 10
        return forge.said()

    assert "there is no folder" in train("nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images" in train("empty")
    shutil.copytree(forge.folder / "images" / "red", tmp_path / "flat")
    assert "24 images but no class folders" in train("flat")
    shutil.copytree(forge.folder / "images" / "red", tmp_path / "one" / "red")
    assert "only the class 'red'" in train("one")
    (tmp_path / "one" / "blue").mkdir()
    assert "only the class 'red'" in train("one")
    shutil.copy(forge.folder / "images" / "blue" / "00.png", tmp_path / "one" / "blue")
    assert "blue: 1 in all" in train("one")
    shutil.copytree(forge.folder / "images", tmp_path / "bad")
    for number, content in enumerate((b"", b"version https://git-lfs.github.com/spec/v1\n", b"GIF89a")):
        (tmp_path / "bad" / "red" / f"x{number}.png").write_bytes(content)
    said = train("bad")
    assert "3 of 75 files cannot be used" in said
    assert "git lfs pull" in said
    assert not output.exists()

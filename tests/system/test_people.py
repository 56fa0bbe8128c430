"""Six people's first hour, typed as they would type it: each step works, or answers with what to do instead.

A student with a folder of photos, a shop with an official split, a radiologist with a table, a maker with a handful of
images, an engineer who automates, and somebody who only clicks. The images are made, the network is the tiny one of
the tests, so that the words and the files are looked at here, not the accuracy.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cli.main import main

pytestmark = pytest.mark.slow
QUICK = (
    "model.backbone=tiny", "model.weights=none", "model.image_size=32", "head.start=random", "head.epochs=3",
    "head.learning_rate=0.01", "head.batch_size=8", "fine_tune=none", "augment=none", "recipe=none",
)  # fmt: skip
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Types a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def type_command(*words: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # argparse's way of refusing a word
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return code, captured.out, captured.err

    return type_command


def paint(folder: Path, count: int, colours: tuple[str, ...] = tuple(COLOURS), seed: int = 0, suffix: str = "") -> None:
    """`count` noisy images of each colour, each different, in a folder per colour."""
    random = np.random.default_rng(seed)
    for name in colours:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.clip(random.normal(COLOURS[name], 40, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{seed}-{index:02}.png{suffix}", "PNG")


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_student_with_a_folder_of_photos(run: Run, tmp_path: Path) -> None:
    """An archive with a folder in a folder; no config, a misspelt word, a photo from a phone, a wrong folder."""
    paint(tmp_path / "colours" / "colours", 24)
    code, _, err = run("trian", "colours/")
    assert code == 2
    assert "train" in err
    code, _, err = run("train", "colors/")
    assert code != 0
    assert "colours" in err
    code, _, err = run("train", "colours/", *QUICK)
    assert code == 0, err
    assert (tmp_path / "runs" / "colours-1" / "report.html").is_file()
    photo = tmp_path / "photo.heic"
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), COLOURS["red"])).save(photo)
    code, out, err = run("predict", photo, "--model", "runs/colours-1", "--json")
    assert code == 0, err
    assert {score["class"] for score in json.loads(out)[0]["predictions"]} <= set(COLOURS)
    code, _, err = run("predict", photo, "--model", "runs/colour-1")
    assert code != 0
    assert "runs/colours-1" in err


def test_a_shop_with_an_official_split(run: Run, tmp_path: Path) -> None:
    """Only train/ and val/: val, which lacks a class, is the test split, and validation is cut from train."""
    paint(tmp_path / "shop" / "train", 20)
    paint(tmp_path / "shop" / "val", 7, ("blue", "green"), seed=1)
    code, _, err = run("init", "shop")
    assert code == 0, err
    text = (tmp_path / "shop.yaml").read_text("utf-8")
    assert "held_out: test" in text
    assert "test 14" in text
    code, _, err = run("train", "shop.yaml", *QUICK)
    assert code == 0, err
    report = json.loads((tmp_path / "runs" / "shop-1" / "report.json").read_text("utf-8"))
    assert report["test"]["n"] == 14
    rows = read_table(tmp_path / "runs" / "shop-1" / "predictions.csv")
    assert sum(row["split"] == "test" for row in rows) == 14
    assert all("train" in row["path"] for row in rows if row["split"] == "validation")


def test_a_radiologist_with_a_table(run: Run, tmp_path: Path) -> None:
    """Columns of her own, grey images of 12 bits in 16-bit files, every probability for the AUC in another program."""
    random = np.random.default_rng(0)
    rows = []
    (tmp_path / "scans").mkdir()
    for number in range(48):
        ill = number % 2
        pixels = random.integers(0, 1500, (36, 40)) + 2000 * ill
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "scans" / f"{number:02}.png")
        rows.append(f"scans/{number:02}.png,{('healthy', 'ill')[ill]}")
    (tmp_path / "scans.csv").write_text("\n".join(["file,finding", *rows]), "utf-8")
    code, _, err = run("train", "scans.csv", "data.label_column=findings", *QUICK)
    assert code != 0
    assert "findings" in err
    assert "finding" in err.replace("findings", "")
    code, _, err = run("train", "scans.csv", *QUICK)
    assert code == 0, err
    assert "12 bits" in err or "4095" in err or "16-bit" in err
    code, _, err = run("predict", "scans", "--model", "runs/scans-1", "--csv", "all.csv", "--long")
    assert code == 0, err
    table = read_table(tmp_path / "all.csv")
    assert len(table) == 48 * 2
    for image in {row["path"] for row in table}:
        assert sum(float(row["probability"]) for row in table if row["path"] == image) == pytest.approx(1, abs=1e-3)


def test_a_maker_with_a_handful_of_images(run: Run, tmp_path: Path) -> None:
    """Twelve images and a drawing: it trains, says what was passed over, and promises nothing that it cannot know."""
    paint(tmp_path / "parts", 6, ("blue", "red"))
    (tmp_path / "parts" / "red" / "sketch.svg").write_text("<svg/>", "utf-8")
    code, _, err = run("train", "parts", *QUICK)
    assert code == 0, err
    assert "sketch.svg" in err
    code, _, err = run("predict", "parts", "--model", "runs/parts-1", "--precision", "0.98")
    assert code != 0
    assert "images" in err
    assert "98" in err
    code, out, err = run("predict", "parts", "--model", "runs/parts-1")
    assert code == 0, err
    assert "sketch.svg" in err
    assert len(out.splitlines()) == 12


def test_an_engineer_who_automates(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that extends another, a folder from the environment, a fixed run folder, JSON, exit codes."""
    paint(tmp_path / "data", 24)
    settings = "\n".join(f"{key}: {value}" for key, value in (("recipe", "none"), ("fine_tune", "none")))
    (tmp_path / "base.yaml").write_text(
        f"{settings}\nmodel: {{backbone: tiny, weights: none, image_size: 32}}\n"
        "head: {start: random, epochs: 1, batch_size: 8}\ndata: {folder: '${IMAGES}'}\n",
        "utf-8",
    )
    (tmp_path / "job.yaml").write_text("extends: base.yaml\nhead: {learning_rate: 0.01, epochs: 3}\n", "utf-8")
    code, _, err = run("train", "job.yaml")
    assert code != 0
    assert "IMAGES" in err
    monkeypatch.setenv("IMAGES", str(tmp_path / "data"))
    code, out, err = run("train", "job.yaml", "--json", "--quiet", "--run-dir", "job")
    assert code == 0, err
    answer = json.loads(out)
    assert Path(answer["run"]).resolve() == (tmp_path / "job").resolve()
    assert answer["test"]["n"] > 0
    code, _, err = run("evaluate", "job", "--assert-accuracy", "1.01")
    assert code == 2
    code, _, err = run("train", "job.yaml", "--run-dir", "job")
    assert code != 0
    assert "job" in err
    assert "--resume" in err


def test_somebody_who_only_clicks(run: Run, tmp_path: Path) -> None:
    """The report is one file that needs nothing else, and says in words what it found."""
    paint(tmp_path / "things", 24)
    code, _, err = run("train", "things", *QUICK)
    assert code == 0, err
    assert "report.html" in err
    page = (tmp_path / "runs" / "things-1" / "report.html").read_text("utf-8")
    assert 'src="http' not in page
    assert 'href="http' not in page
    for words in ("validation accuracy", "95 % interval", "finetune predict"):
        assert words in page.casefold(), words

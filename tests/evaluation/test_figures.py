"""Figures: real PNGs from any data and any names, in the colours that the report explains."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from finetune.evaluation import draw_blocks, draw_pairs, draw_prediction, draw_schedule, draw_similar_pairs
from finetune.evaluation.figures.curves import draw_curves
from finetune.evaluation.figures.images import draw_sheet
from finetune.evaluation.figures.scores import draw_calibration, draw_confusion
from finetune.evaluation.figures.style import BLUE, ORANGE
from finetune.evaluation.metrics import multiclass_metrics

NASTY = ["$x_1$ and $", "a\x1b[31m\nb", "ば ら 花", "\udc80", "w" * 90, "<b>&amp;</b>"]


def opened(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def epochs(*phases: str, **changed: object) -> list[dict[str, object]]:
    row = {"loss": 0.5, "accuracy": 0.8, "validation_loss": 0.6, "validation_accuracy": 0.7}
    return [{"phase": name, "epoch": i + 1, **row, **changed} for i, name in enumerate(phases)]


def has(image: np.ndarray, colour: str) -> bool:
    target = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image.astype(int) - target).max(axis=2) <= 2).any())


@pytest.mark.parametrize(
    "history",
    [
        epochs("head"),
        epochs("head", "head", "fine_tune", "fine_tune"),
        epochs("head", "head", loss="0.5", validation_accuracy=""),
        [{"phase": "head", "loss": 0.1, "accuracy": 1}] * 60,
        epochs(*NASTY),
    ],
    ids=["one epoch", "two phases", "text and gaps", "no validation", "nasty names"],
)
def test_curves(history: list[dict[str, object]]) -> None:
    image = opened(draw_curves(history))
    assert has(image, ORANGE)  # the training curve


def test_kept_epochs_are_marked() -> None:
    history = epochs("head", "head", "fine_tune")
    assert draw_curves(history, [1]) != draw_curves(history)


def test_confusion_is_blue_where_correct_and_orange_where_wrong() -> None:
    right = opened(draw_confusion(np.diag([5, 5]), ["a", "b"]))
    assert has(right, BLUE)
    assert not has(right, ORANGE)
    wrong = opened(draw_confusion(np.array([[0, 5], [5, 0]]), ["a", "b"]))
    assert has(wrong, ORANGE)
    assert not has(wrong, BLUE)


def test_confusion_shows_one_mistake_in_a_thousand() -> None:
    clean, one = np.diag([1000] * 40), np.diag([1000] * 40)
    one[3, 30] = 1
    changed = opened(draw_confusion(clean, ["c"] * 40)) != opened(draw_confusion(one, ["c"] * 40))
    assert changed.any(axis=2).sum() > 50  # pixels


@pytest.mark.parametrize("count", [2, 20, 120, 300])
def test_confusion_of_any_size(count: int) -> None:
    png = draw_confusion(np.eye(count, dtype=int), [f"class number {i}" for i in range(count)])
    height, width, _ = opened(png).shape
    assert abs(height - width) < 0.5 * width
    assert max(height, width) < 3500
    assert len(png) < 1e6


def test_confusion_of_classes_without_images() -> None:
    opened(draw_confusion(np.zeros((3, 3), int), ["a", "b", "c"]))


def test_calibration_of_few_and_of_certain_answers() -> None:
    for probabilities in (np.array([[1.0, 0.0]]), np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])):
        metrics = multiclass_metrics(probabilities, np.zeros(len(probabilities), int), ["a", "b"])
        assert has(opened(draw_calibration(metrics.calibration)), BLUE)


@pytest.mark.parametrize("count", [1, 5, 13])
def test_sheet(count: int) -> None:
    red = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    assert has(opened(draw_sheet([red] * count, ["two\nlines"] * count)), "#ff0000")


def test_pairs_have_both_views_of_each_image_and_mark_what_is_wrong() -> None:
    red, green = (np.full((20, 20, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))

    def pairs(right: list[bool]) -> np.ndarray:
        jpeg = draw_pairs([red] * 3, [green] * 3, ["cat\n90%", "$t$", "w" * 90], right)
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)

    right, wrong = pairs([True] * 3), pairs([True, False, True])
    assert (np.abs(right[60, [60, 190, 330]] - (255, 0, 0)) < 9).all()
    assert (np.abs(right[200, [60, 190, 330]] - (0, 255, 0)) < 9).all()

    def orange(image: np.ndarray) -> bool:
        caption = image[265:]
        return bool(((caption[..., 0] - caption[..., 2]) > 60).any())

    assert orange(wrong)
    assert not orange(right)


@pytest.mark.parametrize("shape", [(40, 60, 3), (500, 20, 3), (10, 900, 3)])
def test_prediction(shape: tuple[int, int, int]) -> None:
    image = np.full(shape, (255, 0, 0), np.uint8)
    result = opened(draw_prediction(image, [("elephant", 0.9), ("tusker", 0.0001)], "photo.jpg"))
    assert has(result, "#ff0000")
    assert has(result, BLUE)


def test_a_schedule_over_phases() -> None:
    image = opened(draw_schedule([("head", 10, [1e-3, 5e-4, 0.0]), ("fine_tune", 5, [3e-4] * 3), ("no", 0, [1.0])]))
    assert has(image, BLUE)
    assert has(image, ORANGE)


@pytest.mark.parametrize("count", [1, 4, 12])
def test_similar_pairs(count: int) -> None:
    red, tall = np.full((20, 30, 3), (255, 0, 0), np.uint8), np.full((60, 20, 3), (0, 0, 255), np.uint8)
    image = opened(draw_similar_pairs([(NASTY[0], (red, NASTY[1]), (tall, NASTY[2]))] * count))
    assert has(image, "#ff0000")
    assert has(image, "#0000ff")


@pytest.mark.parametrize("count", [1, 2, 17, 120])
def test_blocks_of_any_number(count: int) -> None:
    rows = [(f"block_{at}_conv", 1000 * at, max(1, 112 >> (at // 4)), 112, 8 * (at + 1)) for at in range(count)]
    image = opened(draw_blocks("Network", rows))
    assert max(image.shape) < 5000
    assert image.shape[1] > 0.9 * image.shape[0]


def test_names_are_drawn_as_they_are() -> None:
    """No formula, no warning about missing letters (warnings are errors here), no crash."""
    image = np.zeros((8, 8, 3), np.uint8)
    draw_confusion(np.eye(6, dtype=int), NASTY)
    draw_sheet([image] * 6, NASTY)
    draw_pairs([image] * 6, [image] * 6, NASTY, [True] * 6)
    draw_prediction(image, [(name, 0.1) for name in NASTY], NASTY[1])


def test_no_window_and_no_global_state() -> None:
    code = (
        "import sys, finetune.evaluation.figures.curves as d; assert 'matplotlib' not in sys.modules;"
        "d.draw_curves([{'phase': 'head', 'loss': 1, 'accuracy': 1}]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

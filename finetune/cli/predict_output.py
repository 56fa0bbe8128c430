"""Where the predictions of `finetune predict` go: the terminal, a JSON array, a CSV table, a figure."""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from finetune.backbones import levels_sentence
from finetune.cli.output import FIGURE_IMAGES, stack_figures
from finetune.data import NO_LABEL, read_image
from finetune.evaluation import draw_prediction
from finetune.models import JsonWriter, PartialTable, Prediction, TableLayout, open_table
from finetune.utils import printable, result_console, write_bytes

Output = Callable[[Prediction], object]
BAR_WIDTH = 30
NAMED = 3  # classes per image in a list of many images


def open_outputs(
    stack: ExitStack,
    arguments: argparse.Namespace,
    layout: TableLayout,
    so_far: PartialTable,
    *,
    detailed: bool,
) -> list[Output]:
    """What is called with every prediction, as the options of the command say; `stack` closes the files.

    `so_far` are the rows of the table that were written before an interruption, `layout` its columns. With `detailed`,
    the terminal shows a table for the image instead of a line.
    """
    outputs: list[Output] = []
    if arguments.csv:
        outputs.append(stack.enter_context(open_table(arguments.csv, layout, so_far)).write)
    if arguments.figure:
        outputs.append(stack.enter_context(closing(FigureWriter(arguments.figure))).write)
    if arguments.json:
        outputs.append(stack.enter_context(closing(JsonWriter(sys.stdout))).write)
    elif not arguments.csv:
        outputs.append(print_details if detailed else print_line)
    return outputs


class FigureWriter:
    """One PNG with the first images and their predictions as bars, one below the other."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.drawn: list[bytes] = []

    def write(self, prediction: Prediction) -> None:
        if prediction.error or len(self.drawn) >= FIGURE_IMAGES:
            return
        image = read_image(prediction.path, near=512)
        bars = [(score.name, score.probability) for score in prediction.shown]
        self.drawn.append(draw_prediction(image, bars, Path(prediction.path).name))

    def close(self) -> None:
        if self.drawn:
            write_bytes(self.file, stack_figures(self.drawn))


def print_line(prediction: Prediction) -> None:
    """One of many images: its likeliest classes, its labels, or why it could not be read."""
    name = escape(printable(prediction.path))
    if prediction.error:
        result_console().print(f"{name}  [yellow]{escape(prediction.error)}[/]")
        return
    scores = prediction.shown[:NAMED] if prediction.labels is None else prediction.labels
    text = levels_sentence(prediction.levels)
    if not text:
        text = ", ".join(f"{score.name} {score.probability:.1%}" for score in scores) or NO_LABEL
    result_console().print(f"{name}  {escape(text)}")


def print_details(prediction: Prediction) -> None:
    """A single image: a table of its classes with bars. Nothing for one that could not be read: the error names it."""
    if prediction.error:
        return
    console = result_console()
    name = escape(printable(prediction.path))
    table = Table("class", "id", "probability", title=name, title_justify="left", box=None, header_style="dim")
    for score in prediction.shown:
        bar = "█" * round(score.probability * BAR_WIDTH)
        table.add_row(escape(score.name), score.id, f"{score.probability:7.2%}  {bar}")
    console.print(table)
    if prediction.levels:
        console.print(escape(levels_sentence(prediction.levels)))
    if prediction.labels is not None:
        labels = ", ".join(score.name for score in prediction.labels) or NO_LABEL
        console.print(f"labels: [bold]{escape(labels)}[/]")

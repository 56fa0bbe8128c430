"""`finetune compare`: runs side by side, and whether their test accuracies differ by more than chance."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from finetune.cli.options import add_figure, add_json, add_overwrite
from finetune.cli.output import print_json
from finetune.utils import printable, refuse_existing, result_console, write_bytes

if TYPE_CHECKING:
    from finetune.evaluation import Comparison, RunSummary

MISSING = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune compare runs/flowers-1 runs/flowers-2"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the others are compared with the first")
    add_json(parser)
    add_figure(parser, "draw learning curves and test accuracies")
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.evaluation import compare_runs, draw_comparison

    refuse_existing(arguments.figure, arguments.overwrite)
    comparison = compare_runs(arguments.runs)
    if arguments.json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison)
    if arguments.figure:
        rows = [(run.name, run.history, run.accuracy) for run in comparison.runs]
        write_bytes(arguments.figure, draw_comparison(rows))


def print_comparison(comparison: "Comparison") -> None:
    """Facts and settings are rows, runs are columns: so a few runs fit a narrow terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    for run in comparison.runs:
        table.add_column(escape(printable(run.name)), overflow="fold")
    for title, cells in _facts(comparison.runs).items():
        table.add_row(f"[dim]{title}[/]", *map(escape, cells))
    if comparison.differences:
        table.add_row()
        table.add_row("[bold]settings that differ[/]")
    for key, values in comparison.differences.items():
        table.add_row(f"[dim]{escape(key)}[/]", *(escape(printable(value)) for value in values))
    console = result_console()
    console.print(table)
    if not comparison.differences:
        console.print("\nTheir configs are the same.")
    for sentence in comparison.sentences():
        console.print(f"\n{escape(printable(sentence))}")


def _facts(runs: "Sequence[RunSummary]") -> dict[str, list[str]]:
    """Title of a row -> the cell of each run."""
    tests = [run.report.get("test") or {} for run in runs]
    accuracies = [run.accuracy for run in runs]
    return {
        "test accuracy": [f"{run.accuracy.value:.1%}" if run.accuracy else f"none ({run.status})" for run in runs],
        "95 % interval": [f"{value.low:.1%} to {value.high:.1%}" if value else MISSING for value in accuracies],
        "test images": [_number(test.get("n"), ",") for test in tests],
        "head alone": [_number(run.head_accuracy, ".1%") for run in runs],
        "validation accuracy": [_number(run.validation_accuracy, ".1%") for run in runs],
        "log loss": [_number(test.get("log_loss"), ".3f") for test in tests],
        "calibration error": [_number(test.get("calibration_error"), ".3f") for test in tests],
        "backbone": [str(run.report.get("backbone", run.config.get("model.backbone", MISSING))) for run in runs],
        "minutes": [_number(run.seconds and run.seconds / 60, ".1f") for run in runs],
    }


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else f"{value:{form}}"

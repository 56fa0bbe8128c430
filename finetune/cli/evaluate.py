"""`finetune evaluate`: measure a classifier on labelled images."""

import argparse
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from finetune.cli.options import add_assert_accuracy, add_classifier, add_json
from finetune.cli.output import print_json
from finetune.utils import Terminal, format_interval, format_percent, result_console

if TYPE_CHECKING:
    from finetune.evaluation import Metrics

LISTED_CLASSES = 200
FEW_CLASSES = 50  # up to here, a class without images has a line too


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune evaluate runs/flowers-1 --data new_photos/"
    add_classifier(parser)
    parser.add_argument("--data", metavar="FOLDER|CSV", help="labelled images (default: the images of the run)")
    text = "which images of the run (default: %(default)s)"
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help=text)
    add_json(parser)
    add_assert_accuracy(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.evaluation import evaluate_classifier, require_accuracy

    terminal = Terminal(quiet=arguments.quiet)
    metrics = evaluate_classifier(arguments.model, arguments.data, split=arguments.split, terminal=terminal)
    if arguments.json:
        print_json(metrics.to_json())
    else:
        print_metrics(metrics)
    require_accuracy(metrics.accuracy, arguments.assert_accuracy)


def print_metrics(metrics: "Metrics") -> None:
    """A table of the summary, one of the classes, and which classes are confused most."""
    console = result_console()
    summary = Table(box=None, show_header=False)
    summary.add_row("images", f"{metrics.n:,}")
    for name, value in metrics.summary().items():
        summary.add_row(name, f"{value:.4f}" if isinstance(value, float) else format_interval(value))
    multi_label = any(row.average_precision for row in metrics.per_class)
    table = Table("class", box=None, header_style="dim")
    for title in ("n", "precision", "recall", "F1", *(("average precision", "threshold") if multi_label else ())):
        table.add_column(title, justify="right")
    for row in metrics.per_class[:LISTED_CLASSES]:
        if row.n or len(metrics.per_class) <= FEW_CLASSES:
            recall = row.recall.value if row.recall else None
            cells = [str(row.n), *map(format_percent, (row.precision, recall, row.f1))]
            if multi_label:
                average = row.average_precision.value if row.average_precision else None
                cells += [format_percent(average), f"{row.threshold:.2f}"]
            table.add_row(escape(row.name), *cells)
    console.print(summary, "", table, sep="\n")
    if pairs := metrics.confused_pairs(5):
        text = "; ".join(f"{count} x {true} called {predicted}" for true, predicted, count in pairs)
        console.print(escape(f"\nmost confused: {text}"))

"""`finetune zeroshot`: what an ImageNet network knows of your class folders without training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from finetune.cli.options import add_images_per_class, add_json, add_model
from finetune.cli.output import print_json
from finetune.utils import Terminal, format_interval, printable, result_console, shell_command

if TYPE_CHECKING:
    from finetune.evaluation import Survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune zeroshot photos/"
    parser.add_argument("folder", type=Path, help="a folder with one folder per class")
    add_model(parser, metavar="BACKBONE")
    add_images_per_class(parser, default=20)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.evaluation import survey_folders

    terminal = Terminal(quiet=arguments.quiet)
    with terminal.stage("Looking") as update:
        survey = survey_folders(arguments.folder, model=arguments.model, images=arguments.images, progress=update)
    for warning in survey.warnings:
        terminal.warn(warning)
    for path, reason in survey.skipped:
        terminal.warn(f"{printable(path)} is left out: {reason}")
    if arguments.json:
        print_json(survey.to_json())
        return
    print_survey(survey)
    terminal.say(f"Next: {shell_command('finetune', 'init', arguments.folder)}")


def print_survey(survey: "Survey") -> None:
    """A line for each folder, the two accuracies, and whether they differ."""
    console = result_console()
    table = Table("folder", "images", f"{survey.model} calls them", box=None, header_style="dim")
    for folder in survey.folders:
        classes = ", ".join(f"{name} {fraction:.0%}" for name, fraction in folder.classes)
        table.add_row(escape(printable(folder.name)), str(folder.images), escape(classes))
    console.print(table)
    console.print(
        f"\nWithout training, its classes mapped to your folders:  {format_interval(survey.without_training)}"
    )
    console.print(f"With a new head (estimate):                            {format_interval(survey.with_head)}")
    paired = survey.paired
    verdict = "more than chance" if paired.better else "no evidence of a difference"
    console.print(f"The head makes {paired.difference * 100:+.1f} points: {verdict} (p = {paired.p_value:.2g})")
    count = sum(folder.images for folder in survey.folders)
    console.print(f"Both measured on {count:,} images; a head trained on all images does better.")

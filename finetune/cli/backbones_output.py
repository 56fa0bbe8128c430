"""What `finetune backbones` prints: the list of all networks, everything about one, and a ranking."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from finetune.backbones import Backbone, BlockFacts, list_weights
from finetune.cli.output import print_table
from finetune.utils import cache_folder, describe_device, format_bytes, result_console

if TYPE_CHECKING:
    from finetune.evaluation import Ranked

LAYERS_COUNTED = "layers as Keras counts them, BatchNorm, activations and additions too"
SCALING = {
    "none": "inside the network",
    "tf": "pixel / 127.5 - 1",
    "lite": "(pixel - 127) / 128",
    "torch": "pixel / 255, less the ImageNet mean, over its standard deviation",
    "caffe": "RGB to BGR, less the ImageNet mean",
}


def _accuracy(percent: float | None) -> str:
    """A published accuracy in percent, `-` if there is none."""
    return "-" if percent is None else f"{percent:.1f}"


# --------------------------------------------------------------------------------------------------- all of them


def print_backbones(rows: Sequence[Backbone]) -> None:
    """A line per network. Its weights are here, can be downloaded, or come with an extra package."""
    on_disk = {stored.backbone for stored in list_weights() if stored.path}
    table = Table(box=None, header_style="dim", pad_edge=False)  # fits 80 columns
    table.add_column("name", no_wrap=True, min_width=max(len(row.name) for row in rows))
    for title in ("size", "layers", "params", "top-1", "top-5"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for row in rows:
        place = "[green]here[/]" if row.name in on_disk else "download" if row.top and row.top.url else "extra"
        parameters, top1, top5 = f"{row.parameters / 1e6:.1f} M", _accuracy(row.top1), _accuracy(row.top5)
        table.add_row(row.name, str(row.size), str(row.layers), parameters, top1, top5, place)
    print_table(table)
    console = result_console()
    console.print(f"\n[dim]size in pixels; {LAYERS_COUNTED}; top-1 and top-5: ImageNet accuracy in %.[/]")
    console.print("[dim]finetune backbones NAME describes one in full.[/]")


# ------------------------------------------------------------------------------------------------------ one network


def print_description(row: Backbone, blocks: Sequence[BlockFacts]) -> None:
    """Every fact about a network, its blocks in the order in which they are unfrozen, and how to use it."""
    facts = {
        "name in configs": row.name,
        "trained on": row.trained_on,
        "input": f"{row.size} x {row.size} RGB (at least {row.min_size} x {row.min_size})",
        "scaling": SCALING[row.scaling],
        "resizing": f"{row.interpolation}, central {row.crop:g} of the shorter side",
        "layers": f"{row.layers}, in {len(blocks)} blocks and the head ({LAYERS_COUNTED})",
        "parameters": f"{row.parameters:,} with the 1000-class head, {row.backbone_parameters:,} without",
        "size": f"{format_bytes(row.parameters * 4)} of weights",
        "ImageNet top-1": f"{row.top1:.1f} %" if row.top1 else "not published",
        "ImageNet top-5": f"{row.top5:.1f} %" if row.top5 else "not published",
        "last feature map": row.features or "the network's output",
        "built by": row.constructor.replace(":", "."),
        "paper": row.paper,
        "licence": row.license,
    }
    paths = {stored.file: stored.path for stored in list_weights() if stored.backbone == row.name and stored.path}
    for title, file in (("weights, 1000 classes", row.top), ("weights, no head", row.no_top)):
        if not file:
            continue
        if file in paths:
            facts[title] = f"{paths[file]}\n{file.hash or ''}"
        elif file.extra:
            facts[title] = f"pip install 'finetune[{file.extra}]'\n{file.hash or ''}"
        else:
            facts[title] = f"{file.url}\n{file.hash or 'no hash published'}"
    table = Table(box=None, show_header=False, title=row.title, title_justify="left", title_style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a URL that is cut is no use
    for key, value in facts.items():
        table.add_row(f"[dim]{key}[/]", escape(value))
    console = result_console()
    print_table(table)
    console.print()
    print_table(_block_table(blocks))
    console.print()
    usage = {
        "To unfreeze:": "finetune train CONFIG fine_tune.unfreeze='3 blocks'",
        "or from a layer:": f"finetune train CONFIG fine_tune.unfreeze={blocks[-1].name}",
        "As backbone:": f"finetune train CONFIG model.backbone={row.name}",
        "As it is:": f"finetune predict dog.jpg --model {row.name}",
    }
    if row.top and row.top.url:
        usage["Without network:"] = (
            f"finetune weights fetch {row.name} on a machine that has one, then copy the files that it names "
            f"to {cache_folder() / 'weights'} here"
        )
    for title, command in usage.items():
        console.print(f"[dim]{title:<18}[/]{command}", soft_wrap=True)


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


# ------------------------------------------------------------------------------------------------------- side by side


def print_ranking(ranking: "Sequence[Ranked]", *, with_accuracy: bool) -> None:
    """A line per network: its accuracy on the images where they were given, its speed and its size."""
    table = Table(box=None, header_style="dim")
    table.add_column("network", no_wrap=True)
    for title in (*(("accuracy (95 %)", "n") if with_accuracy else ()), "per s", "px", "params", "top-1"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in ranking:
        rate = f"{row.rate:.1f}" if row.rate < 10 else f"{row.rate:.0f}"
        cells = [rate, str(row.size), f"{row.parameters / 1e6:.1f} M", _accuracy(row.top1)]
        if with_accuracy:
            value = row.accuracy
            interval = f"{value.value:.1%} ({value.low:.1%} to {value.high:.1%})" if value else "too slow"
            cells = [interval, f"{row.n:,}", *cells]
        table.add_row(row.name, *cells)
    print_table(table)
    console = result_console()
    remarks = [f"Images per second: the frozen part on {describe_device()}, 32 at a time, reading not counted."]
    if with_accuracy:
        remarks.append("Accuracy: logistic regression on frozen features, cross-validated on the same images.")
        if len({row.n for row in ranking}) > 1:
            remarks.append("A smaller n: the network is too slow for all images; fewer images give less accuracy.")
    console.print()
    for remark in (*remarks, "finetune weights fetch NAME brings another network here."):
        console.print(f"[dim]{remark}[/]")

"""`finetune export`: write a classifier for other programs, and prove that it gives the same predictions there."""

import argparse
from typing import TYPE_CHECKING

from finetune.cli.options import add_assert_accuracy, add_classifier, add_json, add_output
from finetune.cli.output import print_json
from finetune.export import EXPORT_FORMATS
from finetune.utils import Terminal, format_bytes, format_interval, printable

if TYPE_CHECKING:
    from finetune.export import ExportResult, Parity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune export runs/flowers-1 --format litert"
    add_classifier(parser)
    parser.add_argument(
        "--format", choices=tuple(EXPORT_FORMATS), required=True, help="saved_model is for TensorFlow Serving"
    )
    text = "smaller and faster, and slightly different predictions"
    parser.add_argument("--quantize", choices=("float16", "int8"), help=text)
    add_output(parser, "a new folder (default: exports/NAME-FORMAT)")
    text = "images to compare predictions on (default: the test images of the run)"
    parser.add_argument("--images", nargs="+", default=[], metavar="IMAGE|FOLDER", help=text)
    add_json(parser, "print the content of export.json on standard output")
    add_assert_accuracy(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.export import export_classifier, find_format
    from finetune.models import find_inputs

    find_format(arguments.format, arguments.quantize)  # before TensorFlow: a missing package is reported at once
    terminal = Terminal(quiet=arguments.quiet)
    find_inputs(arguments.images, terminal.warn)
    result = export_classifier(
        arguments.model,
        arguments.format,
        output=arguments.output,
        quantize=arguments.quantize,
        images=arguments.images,
        assert_accuracy=arguments.assert_accuracy,
        terminal=terminal,
    )
    if arguments.json:
        print_json({"folder": str(result.folder), **result.facts})
    else:
        print_export(result)


def print_export(result: "ExportResult") -> None:
    """Where the export is, how it compares with its classifier, and how accurate it is."""
    facts = result.facts
    size = format_bytes(sum(file["bytes"] for file in facts["files"].values()))
    quantized = f", {facts['quantize']}" if facts["quantize"] else ""
    rows = {
        "compared on": f"{result.parity.n:,} images ({facts['pictures']}) in {facts['runtime']}",
        "same prediction": _parity(result.parity),
        "from file bytes": result.bytes_parity and _parity(result.bytes_parity),
        "accuracy before": result.before and format_interval(result.before),
        "accuracy after": result.after and format_interval(result.after),
        "calibrated on": facts["calibration"],
        "how to use it": result.folder / "README.md",
    }
    print(f"{result.format.title}{quantized}: {result.folder} ({size}, {facts['seconds']:.0f} s)")
    for name, value in rows.items():
        if value:
            print(f"  {name:<16} {printable(str(value))}")


def _parity(parity: "Parity") -> str:
    lost = f"; {parity.undecodable:,} files not decoded" if parity.undecodable else ""
    return f"{parity.agreement:.1%} (largest difference of a probability {parity.largest_difference:.2g}){lost}"

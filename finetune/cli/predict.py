"""`finetune predict`: the classes of images, by a trained run or by an ImageNet network, in constant memory.

Predictions are printed and written as they come (see `predict_output`). An interrupted `--csv` table is continued
with `--resume`; `--shard` divides the images among machines, `--engine ray` among the workers of a cluster.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.cli.options import add_figure, add_json, add_model, add_overwrite, fraction, positive_int
from finetune.cli.output import raise_for_unreadable
from finetune.utils import Terminal, UsageError, csv_cell, refuse_existing, require_packages, stop_on_signals

if TYPE_CHECKING:
    from finetune.models import Classifier, PartialTable, TableLayout

TOP = 5  # classes per image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune predict photos/ --model runs/flowers-1"
    which = parser.add_mutually_exclusive_group(required=True)
    text = "images, also in s3://, gs:// and other buckets"
    which.add_argument("inputs", nargs="*", default=[], metavar="IMAGE|FOLDER|GLOB|URL", help=text)
    text = "a text file with the path of an image per line"
    which.add_argument("--list", type=Path, metavar="FILE", help=text)
    add_model(parser)
    text = f"classes per image (default: {TOP}; in a --long table, all)"
    parser.add_argument("--top", type=positive_int, metavar="K", help=text)
    text = "with a trained run: predict the 1000 ImageNet classes too"
    parser.add_argument("--imagenet", action="store_true", help=text)
    text = "also name the WordNet category of the likeliest ImageNet class"
    parser.add_argument("--level", action="store_true", help=text)
    text = 'predict "unknown" where it is less sure than a precision of P needs, such as 0.98'
    parser.add_argument("--precision", type=fraction, metavar="P", help=text)
    add_json(parser, "print one JSON array on standard output")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table, a row per image")
    text = "write the --csv table with a row per image and class: path, rank, class, id, probability"
    parser.add_argument("--long", action="store_true", help=text)
    text = "continue the --csv table of an interrupted predict"
    parser.add_argument("--resume", action="store_true", help=text)
    add_figure(parser, "draw the images with their predictions")
    add_overwrite(parser)
    text = "images per batch (default: %(default)s)"
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help=text)
    text = "only the i-th of n parts of the images, 1/n to n/n; all parts in order give the whole"
    parser.add_argument("--shard", type=shard_position, metavar="i/n", help=text)
    text = "ray: workers on the Ray cluster of RAY_ADDRESS, or on this machine (default: %(default)s)"
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help=text)


def shard_position(text: str) -> tuple[int, int]:
    """`2/4` as (2, 4)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n, such as 1/4 to 4/4")
    return int(number), int(count)


def run(arguments: argparse.Namespace) -> None:
    """Raises PartlyDone if some images could not be read, DataError if none could, Stopped on Ctrl-C."""
    from finetune.models import find_inputs, read_path_list, shard

    terminal = Terminal(quiet=arguments.quiet)
    # Before TensorFlow: a wrong path or option is reported at once.
    paths = read_path_list(arguments.list) if arguments.list else find_inputs(arguments.inputs, terminal.warn)
    if arguments.shard:
        paths = shard(paths, *arguments.shard)
    _check_options(arguments)

    from finetune.backbones import require_imagenet_ids
    from finetune.cli.predict_output import open_outputs
    from finetune.models import PredictionRequest, load_classifiers, partial_path, predict_jointly

    classifiers = load_classifiers(arguments.model, imagenet=arguments.imagenet)
    if arguments.level:
        require_imagenet_ids(classifiers[0].ids)
    top = arguments.top or (max(len(one.classes) for one in classifiers) if arguments.long else TOP)
    request = PredictionRequest(
        model=arguments.model,
        top=top,
        imagenet=arguments.imagenet,
        level=arguments.level,
        reject=_reject_below(classifiers[0], arguments.precision, terminal),
        batch_size=arguments.batch_size,
    )
    for classifier in classifiers:
        if classifier.warning:
            terminal.warn(classifier.warning)
    layout = _layout(classifiers, top, long=arguments.long, rejects=arguments.precision is not None)
    so_far = _rows_so_far(arguments, classifiers[0], layout)
    if arguments.resume:
        terminal.say(f"{len(so_far.paths):,} of {len(paths):,} images have their row already")
    problems = so_far.problems
    remaining = [path for path in paths if not so_far.has(path)]
    if arguments.engine == "ray":
        from finetune.cli.ray import ray_predictions

        stream = ray_predictions(remaining, request)
    else:
        stream = predict_jointly(classifiers, remaining, request)
    hint = f"Continue with the same command and --resume: {partial_path(arguments.csv)}" if arguments.csv else ""
    # All files are closed, even if one of them cannot be written; and while the bar is there, which stays below them.
    with stop_on_signals() as stop, terminal.stage("Predicting") as update, ExitStack() as stack:
        outputs = open_outputs(stack, arguments, layout, so_far, detailed=len(paths) == 1)
        for number, prediction in enumerate(stream, 1):
            if prediction.error:
                problems.append(prediction)
            for write in outputs:
                write(prediction)
            update(number, len(remaining))
            stop.check(hint)
    for file in (arguments.csv, arguments.figure):
        if file and file.exists():
            terminal.say(f"Wrote {file}")
    raise_for_unreadable(problems, len(paths))


def _check_options(arguments: argparse.Namespace) -> None:
    """UsageError for options that exclude each other, files that exist and packages that are missing."""
    from finetune.models import partial_path

    csv, may_exist = arguments.csv, arguments.overwrite or arguments.resume
    if arguments.resume and (not csv or arguments.json or arguments.figure or arguments.overwrite):
        raise UsageError("--resume continues a table: give --csv FILE, and none of --json, --figure, --overwrite.")
    if arguments.long and not csv:
        raise UsageError("--long is the form of a table: give --csv FILE too.")
    if arguments.engine == "ray":
        require_packages("--engine ray", "ray", "pyarrow", extra="ray")
    refuse_existing(arguments.figure, arguments.overwrite)
    refuse_existing(csv, may_exist)
    if csv and partial_path(csv).exists() and not may_exist:
        raise UsageError(
            f"{partial_path(csv)} has the rows of an interrupted predict.",
            hint="Continue it with --resume, or start again with --overwrite.",
        )


def _reject_below(classifier: "Classifier", precision: float | None, terminal: Terminal) -> float:
    """The probability (0..1) below which a prediction is "unknown", so that the others reach `precision`."""
    from finetune.evaluation import promise_precision

    if precision is None:
        return 0.0
    promise = promise_precision(classifier, precision)
    terminal.say(promise.sentence())
    if warning := promise.warning():
        terminal.warn(warning)
    return promise.threshold


def _layout(classifiers: "Sequence[Classifier]", top: int, *, long: bool, rejects: bool) -> "TableLayout":
    """The columns of the table; in a long one `top` is exactly the rows of an image."""
    from finetune.models import TableLayout

    count = sum(min(top, len(one.classes)) for one in classifiers) if long else top * len(classifiers)
    decision: Literal["", "labels", "predicted"] = "predicted" if rejects else ""
    return TableLayout(count, long, "labels" if classifiers[0].spec.multi_label else decision)


def _rows_so_far(arguments: argparse.Namespace, classifier: "Classifier", layout: "TableLayout") -> "PartialTable":
    """With --resume, the rows of the interrupted table; none otherwise. UsageError if another model wrote them."""
    from finetune.models import PartialTable, read_partial

    if not arguments.resume:
        return PartialTable()
    so_far = read_partial(arguments.csv, layout)
    unknown_classes = so_far.classes - set(map(csv_cell, classifier.classes))
    if unknown_classes:
        raise UsageError(
            f"{so_far.file} was written with another model: {classifier.name} has no class {min(unknown_classes)!r}.",
            hint="Give the same --model as then, or start again with --overwrite.",
        )
    return so_far

"""`finetune check`: find what could go wrong with a training, without training."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.options import add_config, add_json, add_overwrite
from finetune.cli.output import print_json
from finetune.utils import FinetuneError, Terminal, explain_os_errors, refuse_existing, write_bytes

if TYPE_CHECKING:
    from finetune.data import Dataset, SimilarPair
    from finetune.evaluation import Image
    from finetune.training import CheckResult

DRAWN_PAIRS = 12
DRAWN_SIDE = 128  # shorter side of a drawn image in pixels; it may be up to twice as long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: finetune check flowers head.epochs=5. Exit code: 0 if there is no problem, else that of the first "
        "problem: 2 config, or a step that diverges; 3 data; 4 weights; 5 disk or memory."
    )
    add_config(parser)
    text = "compute the features now, to compare images by them"
    parser.add_argument("--features", action="store_true", help=text)
    text = "draw the learning rate and near-duplicate images"
    parser.add_argument("--figures", type=Path, metavar="DIR", help=text)
    add_overwrite(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises all problems as one error, after everything is printed."""
    from finetune.config import load_config
    from finetune.data import config_source

    source = config_source(arguments.config, arguments.overrides)
    config = load_config(source, arguments.overrides)  # before TensorFlow: a mistake is reported at once
    from finetune.cli.check_output import print_check
    from finetune.training import check_config

    terminal, folder = Terminal(quiet=arguments.quiet), arguments.figures
    if folder:
        for name in ("learning_rate", "alike"):
            refuse_existing(folder / f"{name}.png", arguments.overwrite)
    result = check_config(config, compute_features=arguments.features, terminal=terminal)
    if arguments.json:
        print_json(result.to_json())
    else:
        print_check(result, [arguments.config, *arguments.overrides])
    if folder:
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, png in _draw(result):
            write_bytes(folder / f"{name}.png", png)
            terminal.say(f"Wrote {folder / f'{name}.png'}")
    if result.problems:
        raise combine_problems(result.problems)


def combine_problems(problems: Sequence[FinetuneError]) -> FinetuneError:
    """All problems as one error of the kind of the first one, and so with its exit code."""
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, 1))
    return type(problems[0])(f"{len(problems)} problems prevent this training\n{listed}")


def _draw(result: "CheckResult") -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of every figure that there is something to draw for."""
    from finetune.evaluation import draw_schedule, draw_similar_pairs

    if result.dry_run:
        yield (
            "learning_rate",
            draw_schedule([(phase.name, phase.epochs, phase.rates) for phase in result.dry_run.phases]),
        )
    if result.dataset and result.similar.pairs:
        pairs = result.similar.pairs[:DRAWN_PAIRS]
        yield "alike", draw_similar_pairs([_side_by_side(pair, result.dataset) for pair in pairs])


def _side_by_side(pair: "SimilarPair", dataset: "Dataset") -> "tuple[str, tuple[Image, str], tuple[Image, str]]":
    """(title, (image, caption), (image, caption))."""
    from finetune.data import read_image
    from finetune.training import describe_pair

    first, second = (
        (read_image(image["path"], near=DRAWN_SIDE), f"{Path(image['path']).name}\n{image['class']}, {image['split']}")
        for image in describe_pair(pair, dataset)["pictures"]
    )
    return f"similarity {pair.similarity:.2f}", first, second

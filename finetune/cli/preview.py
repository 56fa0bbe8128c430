"""`finetune preview`: a sheet of images for every class, or one of many classes, as the training will see them."""

import argparse
import math
from pathlib import Path

from finetune.cli.options import add_config, add_images_per_class, add_output, add_overwrite, positive_int
from finetune.utils import Terminal, explain_os_errors, format_count, printable, refuse_existing, write_bytes

MOST_SHEETS = 20  # classes; with more, overviews


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune preview flowers"
    add_config(parser)
    add_output(parser, "folder of the sheets (default: %(default)s)", Path("preview"))
    add_images_per_class(parser, default=4)
    text = "augmented versions of each image (default: %(default)s)"
    parser.add_argument("--augmented", type=positive_int, default=4, metavar="K", help=text)
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.config import fill_open_keys, load_config
    from finetune.data import config_source

    source = config_source(arguments.config, arguments.overrides)
    config = load_config(source, arguments.overrides)  # before TensorFlow: a mistake is reported at once
    from finetune.data import data_facts, open_dataset
    from finetune.evaluation import OVERVIEW_CLASSES, crop_sentence, preview_overviews, preview_sheets

    terminal = Terminal(quiet=arguments.quiet)
    with terminal.stage("Checking the images") as update:
        dataset = open_dataset(config.data, seed=config.seed, progress=update)
    for warning in dataset.warnings:
        terminal.warn(warning)
    config, _ = fill_open_keys(config, data_facts(dataset, config.device))  # the augmentation that `train` would choose
    output: Path = arguments.output
    if len(dataset.classes) <= MOST_SHEETS:
        names = file_names(dataset.classes)
        sheets = preview_sheets(config, dataset, images=arguments.images, augmented=arguments.augmented)
    else:
        pages = math.ceil(len(dataset.classes) / OVERVIEW_CLASSES)
        names = ["overview"] if pages == 1 else [f"overview-{page}" for page in range(1, pages + 1)]
        sheets = preview_overviews(config, dataset)
        some = ", ".join(map(printable, dataset.classes[:2]))
        terminal.say(f"An overview of {len(dataset.classes):,} classes; for a sheet each: data.classes='[{some}]'")
    files = [output / f"{name}.png" for name in names]
    for file in files:
        refuse_existing(file, arguments.overwrite)
    with explain_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    with terminal.stage("Drawing") as update:
        for number, (file, (_, png)) in enumerate(zip(files, sheets, strict=True), 1):
            write_bytes(file, png)
            update(number, len(files))
    print(crop_sentence(config, dataset))
    if not config.augment.active:
        print("Training images are not augmented (augment: none).")
    terminal.say(f"Wrote {format_count(len(files), 'sheet')} to {output}")


def file_names(classes: tuple[str, ...]) -> list[str]:
    """Class names as file names, no two the same."""
    plain = ["".join(c if c.isalnum() or c in "-_ " else "_" for c in name) or "_" for name in classes]
    return [name if plain.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(plain)]

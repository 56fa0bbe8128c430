"""`finetune demo`: a page in the browser to try a classifier on (see `server`)."""

import argparse
from collections import Counter
from pathlib import Path

from finetune.cli.options import DEFAULT_BACKBONE
from finetune.cli.serve import PACKAGES, serve
from finetune.utils import FinetuneError, Terminal, require_packages

EXAMPLES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune demo runs/flowers-1 --share-lan"
    text = "a run or the name of a backbone (default: %(default)s)"
    parser.add_argument("model", nargs="?", default=DEFAULT_BACKBONE, metavar="RUN|BACKBONE", help=text)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    text = "let phones and computers of your network open the page, and print the address that they type"
    where.add_argument("--share-lan", dest="host", action="store_const", const="0.0.0.0", help=text)
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    require_packages("demo", *PACKAGES, extra="demo")
    from finetune.cli.server import ImageService, make_app
    from finetune.models import load_classifier, load_imagenet_classifier

    terminal = Terminal(quiet=arguments.quiet)
    classifier = load_classifier(arguments.model)
    imagenet = None if classifier.spec.pretrained else load_imagenet_classifier(classifier)
    service = ImageService(classifier, imagenet, example_images(Path(arguments.model)))
    service.warm_up()
    if arguments.host == "0.0.0.0":
        terminal.say(
            "Everybody in your network can open this address. Photos from a phone come by its own chooser; "
            "the live camera of another computer would need https, which browsers demand for it."
        )
    serve(make_app(service), host=arguments.host, port=arguments.port, say=terminal.head)


def example_images(run: Path, count: int = EXAMPLES) -> list[str]:
    """Paths of some test images of a run, the classes in turn; none if it is not a run or the images are gone."""
    from finetune.config import load_config
    from finetune.data import MULTICLASS, MULTILABEL, list_source, read_splits

    if not (run / "splits.csv").is_file():
        return []
    try:
        source = load_config(run / "config.yaml").data
        root, labels = list_source(source).root, MULTILABEL if source.multi_label else MULTICLASS
        dataset = read_splits(run / "splits.csv", run / "classes.txt", root, labels)
    except FinetuneError:
        return []
    groups = labels.group_ids(dataset.labels)
    seen: Counter[int] = Counter()
    places = []  # (how many of its class came before, class, index)
    for index in dataset.indices("test").tolist():
        group = int(groups[index])
        places.append((seen[group], group, index))
        seen[group] += 1
    paths = [dataset.path(index) for *_, index in sorted(places)[:count]]
    return [path for path in paths if Path(path).is_file()]

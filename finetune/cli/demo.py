"""`finetune demo`: a page in the browser, served from this computer, to try a classifier on (see `demo_page`)."""

import argparse
import os
import tempfile
import time
from pathlib import Path

from finetune.cli.options import DEFAULT_BACKBONE
from finetune.utils import Terminal, require_packages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune demo runs/flowers-1"
    text = "a run or the name of a backbone (default: %(default)s)"
    parser.add_argument("model", nargs="?", default=DEFAULT_BACKBONE, metavar="RUN|BACKBONE", help=text)
    text = "0.0.0.0 lets other computers connect (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C. Images that were dropped on it are deleted then."""
    require_packages("demo", "gradio", extra="demo")
    from finetune.cli.demo_page import DemoPage, example_images
    from finetune.models import load_classifier, load_imagenet_classifier

    classifier = load_classifier(arguments.model)
    imagenet = None if classifier.spec.pretrained else load_imagenet_classifier(classifier)
    with tempfile.TemporaryDirectory(prefix="finetune-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = DemoPage(classifier, imagenet, example_images(Path(arguments.model)))
        page.warm_up()
        server, address = page.launch(host=arguments.host, port=arguments.port)
        Terminal(quiet=arguments.quiet).head(f"{address}   Ctrl-C ends it")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            server.close()

"""A page on this computer to try a classifier on: drop an image or use the camera, see what it says and why.

    finetune demo runs/flowers-1

Nothing leaves the machine: the page is served on the loopback address unless asked otherwise, loads nothing from
elsewhere, and reports to nobody. Images that were dropped are deleted when the page is closed.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data import label_type
from finetune.utils import FinetuneError, UsageError

if TYPE_CHECKING:
    from finetune.models import Classifier

MAX_UPLOAD = "25mb"
EXAMPLES = 12
TOP = 5
TICK = "\u2713 "  # before a label over its threshold
Bars = dict[str, float]


@dataclass(frozen=True)
class DemoAnswer:
    """What the page shows for one image: a message instead of everything else where it cannot be used."""

    message: str = ""
    answers: Bars | None = None
    seen: np.ndarray | None = None  # (S, S, 3) uint8: Grad-CAM of the likeliest class
    imagenet: Bars | None = None


class Demo:
    """A classifier with its page. `imagenet` answers beside it with 1000 classes; None where it has these itself."""

    def __init__(self, classifier: "Classifier", imagenet: "Classifier | None", examples: Sequence[str]) -> None:
        self.classifier = classifier
        self.imagenet = imagenet
        self.examples = list(examples)

    def answer(self, path: str | None) -> DemoAnswer:
        """What to show for the image in `path`; never raises for anything that a file can hold."""
        from finetune.evaluation import explain_image, overlay_heatmap

        if not path:
            return DemoAnswer()
        try:
            found = explain_image(self.classifier, path, top=TOP)
            seen = overlay_heatmap(found.image, found.heat)
            other = self.imagenet and self.imagenet.predict(path, top=TOP)[0].predictions
        except FinetuneError as error:
            return DemoAnswer(message=f"This image cannot be used: {error.message}.")
        over = {self.classifier.classes[at] for at in found.labels}
        answers = {f"{TICK}{name}" if name in over else name: share for name, share in _bars(found.predictions).items()}
        return DemoAnswer(answers=answers, seen=seen, imagenet=_bars(other) if other else None)

    def page(self) -> Any:
        """The page as gradio Blocks."""
        _quiet_gradio()
        import gradio

        with gradio.Blocks(title=f"finetune: {self.classifier.name}", analytics_enabled=False) as page:
            gradio.Markdown(f"## {self.classifier.name}\n{self._about()}")
            with gradio.Row():
                with gradio.Column():
                    sources: list[Any] = ["upload", "webcam", "clipboard"]
                    image = gradio.Image(label="An image", sources=sources, type="filepath", height=360)
                    # gradio would decode the file with its own rules; we take it as it is
                    image.preprocess = lambda payload: payload and payload.path
                    message = gradio.Markdown(visible=False)
                    if self.examples:
                        gradio.Examples(
                            [[one] for one in self.examples],
                            image,
                            examples_per_page=EXAMPLES,
                            label="From the test split",
                        )
                with gradio.Column():
                    answers = gradio.Label(label="Answer", num_top_classes=TOP)
                    seen = gradio.Image(label="What it looked at (Grad-CAM)", interactive=False, height=280, buttons=[])
                    other = gradio.Label(label="Of the 1000 ImageNet classes", visible=self.imagenet is not None)
            outputs = [message, answers, seen, other]

            def answer(path: str | None) -> list[Any]:
                shown = self.answer(path)
                return [
                    gradio.Markdown(shown.message, visible=bool(shown.message)),
                    shown.answers,
                    shown.seen,
                    shown.imagenet,
                ]

            image.change(answer, image, outputs, api_name="answer", show_progress="minimal")
        return page

    def _about(self) -> str:
        names = self.classifier.classes
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
        what = f"{self.classifier.row.title}, {len(names):,} {self.classifier.label_type.noun}: {shown}"
        return f"{what}. Nothing you drop leaves this computer."

    def launch(self, *, host: str, port: int) -> tuple[Any, str]:
        """Starts the server in the background and returns it and its address; `close()` ends it.

        Raises UsageError where the port is taken.
        """
        page = self.page()
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=MAX_UPLOAD,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                footer_links=[],
                run_history=False,
            )
        except OSError as error:
            raise UsageError(
                f"there is no page on {host}:{port}: {' '.join(str(error).split())[:200]}",
                hint="Another port may be free: --port 7861",
            ) from error
        return page, address


def serve_demo(model: str, *, host: str, port: int, quiet: bool = False) -> None:
    """The page of `model`, a run or a backbone, until Ctrl-C."""
    from finetune.cli.showing import imagenet_beside
    from finetune.models import load_classifier
    from finetune.utils import Terminal

    screen = Terminal(quiet=quiet)
    classifier = load_classifier(model)
    imagenet = None if classifier.spec.pretrained else imagenet_beside(classifier)
    with tempfile.TemporaryDirectory(prefix="finetune-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        demo = Demo(classifier, imagenet, example_images(Path(model)))
        _warm_up(demo)
        page, address = demo.launch(host=host, port=port)
        screen.head(f"{address}   Ctrl-C ends it")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            page.close()


def example_images(run: Path, count: int = EXAMPLES) -> list[str]:
    """Paths of some test images of a run, the classes in turn; none for anything but a run, or if they have gone."""
    from finetune.config import load_config
    from finetune.data import list_source, read_splits

    if not (run / "splits.csv").is_file():
        return []
    try:
        described = load_config(run / "config.yaml").data
        root, labels = list_source(described).root, label_type(described.multi_label)
        dataset = read_splits(run / "splits.csv", run / "classes.txt", root, labels)
    except FinetuneError:
        return []
    turn: Counter[int] = Counter()
    places = []
    groups = labels.group_ids(dataset.labels)
    for index in dataset.indices("test").tolist():
        label = int(groups[index])
        places.append((turn[label], label, index))
        turn[label] += 1
    paths = [dataset.path(index) for *_, index in sorted(places)[:count]]
    return [path for path in paths if Path(path).is_file()]


def _bars(predictions: Sequence[Any]) -> Bars:
    return {one.name: one.probability for one in predictions}


def _warm_up(demo: Demo) -> None:
    """The first image builds the graphs, which takes seconds; nobody should wait for it."""
    from PIL import Image

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.new("RGB", (64, 64)).save(file, "PNG")
        file.flush()
        demo.answer(file.name)


def _quiet_gradio() -> None:
    """Before its import: no reports, no look for newer versions."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

"""The page of `finetune demo`: drop an image or use the camera, see the predicted classes and where they were seen.

    server, address = DemoPage(classifier, imagenet, examples).launch(host="127.0.0.1", port=7860)

Nothing leaves the machine: the page loads nothing from elsewhere and reports to nobody.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from finetune.utils import FinetuneError, UsageError

if TYPE_CHECKING:
    from finetune.models import Classifier, ClassScore

MAX_UPLOAD = "25mb"
EXAMPLES = 12
TOP = 5
TICK = "\u2713 "  # before a label over its threshold
LISTED_CLASSES = 8


@dataclass(frozen=True)
class DemoPrediction:
    """What the page shows for an image, or the message alone if the image cannot be used."""

    message: str = ""
    classes: dict[str, float] | None = None  # name -> probability
    heatmap: np.ndarray | None = None  # (H, W, 3) uint8: the whole image under the Grad-CAM of the likeliest class
    imagenet: dict[str, float] | None = None


class DemoPage:
    """The page of a classifier. `imagenet` predicts 1000 classes beside it; None if the classifier does that itself."""

    def __init__(self, classifier: "Classifier", imagenet: "Classifier | None", examples: Sequence[str]) -> None:
        self.classifier = classifier
        self.imagenet = imagenet
        self.examples = list(examples)

    def predict(self, path: str | None) -> DemoPrediction:
        """What to show for the image in `path`; never raises for anything that a file can hold."""
        from finetune.evaluation import explain_image, explained_photo

        if not path:
            return DemoPrediction()
        try:
            explanation = explain_image(self.classifier, path, top=TOP)
            _, overlay = explained_photo(path, explanation, self.classifier.transform)
            imagenet = self.imagenet.predict(path, top=TOP)[0].predictions if self.imagenet else None
        except FinetuneError as error:
            return DemoPrediction(message=f"This image cannot be used: {error.message}.")
        labels = {self.classifier.classes[index] for index in explanation.labels}
        probabilities = _probabilities(explanation.predictions)
        return DemoPrediction(
            classes={f"{TICK}{name}" if name in labels else name: value for name, value in probabilities.items()},
            heatmap=overlay,
            imagenet=_probabilities(imagenet) if imagenet else None,
        )

    def warm_up(self) -> None:
        """Predict a black image: the first prediction builds the graphs, which takes seconds."""
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            Image.new("RGB", (64, 64)).save(file, "PNG")
            file.flush()
            self.predict(file.name)

    def build(self) -> Any:
        """The page as gradio Blocks."""
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import of gradio: no reports, no look for updates
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import gradio

        with gradio.Blocks(title=f"finetune: {self.classifier.name}", analytics_enabled=False) as page:
            gradio.Markdown(f"## {self.classifier.name}\n{self._about()}")
            with gradio.Row():
                with gradio.Column():
                    sources: list[Any] = ["upload", "webcam", "clipboard"]
                    image = gradio.Image(label="An image", sources=sources, type="filepath", height=360)
                    # gradio would decode the file by its own rules; we take it as it is
                    image.preprocess = lambda payload: payload and payload.path
                    message = gradio.Markdown(visible=False)
                    if self.examples:
                        rows, label = [[path] for path in self.examples], "From the test split"
                        gradio.Examples(rows, image, examples_per_page=EXAMPLES, label=label)
                with gradio.Column():
                    classes = gradio.Label(label="Prediction", num_top_classes=TOP)
                    heatmap = gradio.Image(label="Where (Grad-CAM)", interactive=False, height=280, buttons=[])
                    imagenet = gradio.Label(label="Of the 1000 ImageNet classes", visible=self.imagenet is not None)

            def show(path: str | None) -> list[Any]:
                shown = self.predict(path)
                text = gradio.Markdown(shown.message, visible=bool(shown.message))
                return [text, shown.classes, shown.heatmap, shown.imagenet]

            outputs = [message, classes, heatmap, imagenet]
            image.change(show, image, outputs, api_name="predict", show_progress="minimal")
        return page

    def _about(self) -> str:
        names = self.classifier.classes
        listed = ", ".join(names[:LISTED_CLASSES])
        if len(names) > LISTED_CLASSES:
            listed += f" and {len(names) - LISTED_CLASSES:,} more"
        noun = self.classifier.label_type.noun
        return f"{self.classifier.row.title}, {len(names):,} {noun}: {listed}. Nothing you drop leaves this computer."

    def launch(self, *, host: str, port: int) -> tuple[Any, str]:
        """Start the server in the background and return it and its address; `close()` ends it.

        Raises UsageError if the port is taken.
        """
        page = self.build()
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
                f"the page cannot be served on {host}:{port}: {' '.join(str(error).split())[:200]}",
                hint="Another port may be free: --port 7861",
            ) from error
        return page, address


def _probabilities(scores: "Sequence[ClassScore]") -> dict[str, float]:
    return {score.name: score.probability for score in scores}


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

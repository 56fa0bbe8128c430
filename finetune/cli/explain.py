"""`finetune explain`: where in an image a classifier saw a class (Grad-CAM)."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.options import IMAGE_INPUTS, add_figure, add_model, add_output, add_overwrite, positive_int
from finetune.cli.output import FIGURE_IMAGES, raise_for_unreadable, stack_figures
from finetune.utils import (
    ImageError,
    Terminal,
    explain_os_errors,
    printable,
    refuse_existing,
    stop_on_signals,
    write_bytes,
)

if TYPE_CHECKING:
    from finetune.data import Transform
    from finetune.evaluation import Explanation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune explain dog.jpg --class beagle"
    parser.add_argument("inputs", nargs="+", metavar=IMAGE_INPUTS)
    add_model(parser)
    text = "the class, by name or WordNet id (default: the predicted class of each image)"
    parser.add_argument("--class", dest="target", metavar="NAME", help=text)
    methods = ("grad-cam", "grad-cam++", "cam")
    parser.add_argument("--method", choices=methods, default="grad-cam", help="default: %(default)s")
    text = "classes listed beside the image (default: %(default)s)"
    parser.add_argument("--top", type=positive_int, default=5, metavar="K", help=text)
    where = parser.add_mutually_exclusive_group()
    add_figure(where, "all explanations in one file")
    add_output(where, "a folder with one file per image (default: %(default)s)", Path("explanations"))
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.models import find_inputs

    terminal, figure = Terminal(quiet=arguments.quiet), arguments.figure
    paths = find_inputs(arguments.inputs, terminal.warn)  # before TensorFlow: a wrong path is reported at once
    from finetune.evaluation import explain_image, find_class, make_explainer
    from finetune.models import Prediction, load_classifier, read_spec

    refuse_existing(figure, arguments.overwrite)
    spec = read_spec(arguments.model)
    target = None if arguments.target is None else find_class(arguments.target, spec.classes, spec.ids)
    files = file_names(paths, arguments.output, "" if target is None else spec.classes[target])
    for file in () if figure else files:
        refuse_existing(file, arguments.overwrite)
    classifier = load_classifier(arguments.model)
    if classifier.warning:
        terminal.warn(classifier.warning)
    make_explainer(classifier)  # refuses a network without a feature map, before anything is written
    if not figure:
        with explain_os_errors(arguments.output):
            arguments.output.mkdir(parents=True, exist_ok=True)
    problems: list[Prediction] = []
    drawn: list[bytes] = []
    with stop_on_signals() as stop, terminal.stage("Explaining") as update:
        for number, (path, file) in enumerate(zip(paths, files, strict=True), 1):
            update(number - 1, len(paths))
            if stop.requested:
                break
            is_drawn = not figure or len(drawn) < FIGURE_IMAGES
            try:
                explanation = explain_image(classifier, path, target=target, method=arguments.method, top=arguments.top)
                png = draw(path, explanation, classifier.transform) if is_drawn else b""
            except ImageError as error:
                problems.append(Prediction(path, error=error.message))
                continue
            line = f"{printable(path)}  {printable(explanation.target.name)} {explanation.target.probability:.1%}"
            if not figure:
                write_bytes(file, png)
                line = f"{line}  -> {printable(str(file))}"
            elif is_drawn:
                drawn.append(png)
            print(line)
    if drawn:
        write_bytes(figure, stack_figures(drawn))
        terminal.say(f"Wrote {figure}")
    raise_for_unreadable(problems, len(paths))


def draw(path: str, explanation: "Explanation", transform: "Transform") -> bytes:
    """The PNG of one explanation: image, heatmap over the image, and the predictions with the explained one marked."""
    from finetune.data import read_image
    from finetune.evaluation import PHOTO_SIDE, draw_explanation, overlay_photo

    photo = read_image(path, near=PHOTO_SIDE)

    predictions = list(explanation.predictions)
    if explanation.target not in predictions:
        predictions.append(explanation.target)
    return draw_explanation(
        photo,
        overlay_photo(photo, explanation, transform),
        [(prediction.name, prediction.probability) for prediction in predictions],
        marked=predictions.index(explanation.target),
        title=f"{Path(path).name}: evidence for {explanation.target.name} ({explanation.method})",
        note="" if explanation.heat.any() else "nothing in this image is evidence for this class",
    )


def file_names(paths: Sequence[str], folder: Path, class_name: str) -> list[Path]:
    """A PNG in `folder` for each of `paths`, no two the same: `dog.png`, or `dog-beagle.png` for a named class."""
    suffix = f"-{''.join(c if c.isalnum() else '_' for c in class_name)}" if class_name else ""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = name = Path(path).stem + suffix
        number = 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
        taken.add(name)
    return [folder / f"{name}.png" for name in names]

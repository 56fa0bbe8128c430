"""Results for people and programs, on standard output: tables, JSON, CSV, and the picture with its answers."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune import drawing, files, images, prediction, signals
from finetune.classifier import Classifier, load
from finetune.errors import DataError, PartlyDone, UsageError
from finetune.evaluation import Metrics, Proportion
from finetune.prediction import Answer
from finetune.terminal import Terminal

FIGURE_PICTURES = 12  # more would make a sheet that nobody can read
IMAGENET = "efficientnet_lite0"  # what `--imagenet` asks when the run's own backbone has no 1000-class weights

Sink = Callable[[Answer], object]


def predict(
    paths: Sequence[str],
    *,
    model: str,
    top: int = 5,
    imagenet: bool = False,
    as_json: bool = False,
    csv_file: Path | None = None,
    figure: Path | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    terminal: Terminal | None = None,
) -> None:
    """Answers for `paths`, shown and written as they come, in constant memory.

    Raises PartlyDone when some pictures could not be read, DataError when none could, Stopped on Ctrl-C; what was
    answered until then is kept.
    """
    terminal = terminal or Terminal()
    for target in (csv_file, figure):
        _refuse_existing(target, overwrite)
    classifiers = _classifiers(model, imagenet)
    for warning in filter(None, [one.warning for one in classifiers]):
        terminal.warn(warning)
    problems: list[Answer] = []

    def run(csv_target: Path | None) -> None:
        sinks: list[Sink] = [lambda answer: problems.append(answer) if answer.error else None]
        closing: list[Callable[[], object]] = []
        if csv_target:
            stream = csv_target.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            sinks.append(prediction.CsvTable(stream, top * len(classifiers)).write)
            closing.append(stream.close)
        if figure:
            drawn: list[Answer] = []
            sinks.append(lambda answer: drawn.append(answer) if len(drawn) < FIGURE_PICTURES else None)
            closing.append(lambda: files.write_bytes(figure, draw(drawn)))
        if as_json:
            array = prediction.JsonArray(sys.stdout)
            sinks.append(array.write)
            closing.append(array.close)
        elif not csv_target:
            sinks.append(_Lines(detailed=len(paths) == 1).write)
        try:
            for answer in _answers(classifiers, paths, top, batch_size, terminal):
                for sink in sinks:
                    sink(answer)
        finally:
            for close in closing:
                close()

    if csv_file:
        files.commit(csv_file, run)
    else:
        run(None)
    for target in (csv_file, figure):
        if target:
            terminal.say(f"Wrote {target}")
    _judge(problems, len(paths))


def _answers(
    classifiers: Sequence[Classifier], paths: Sequence[str], top: int, batch_size: int, terminal: Terminal
) -> Iterator[Answer]:
    """One answer a picture, those of several classifiers joined; ends early, and whole, when asked to stop."""
    with signals.graceful() as stop, terminal.stage("Predicting") as update:
        streams = [
            prediction.predict(one, paths, top=top, batch_size=batch_size, progress=None if number else update)
            for number, one in enumerate(classifiers)
        ]
        for together in zip(*streams, strict=True):
            yield together[0].joined(together[1:])
            if stop.requested:
                return


def _classifiers(model: str, imagenet: bool) -> list[Classifier]:
    asked = load(model)
    return [asked, _imagenet(asked)] if imagenet and not asked.spec.pretrained else [asked]


def _imagenet(classifier: Classifier) -> Classifier:
    """The 1000-class network on the same backbone, or on the default one where it has no such weights at hand."""
    from finetune.errors import WeightsError

    try:
        return load(classifier.spec.backbone)
    except WeightsError:
        return load(IMAGENET)


def _refuse_existing(target: Path | None, overwrite: bool) -> None:
    if target and target.is_dir():
        raise UsageError(f"{target} is a folder.", remedy="Give the name of a file.")
    if target and target.exists() and not overwrite:
        raise UsageError(f"{target} exists already.", remedy="Give another name, or add --overwrite.")


def _judge(problems: Sequence[Answer], count: int) -> None:
    if not problems:
        return
    shown = "\n".join(f"  {images.escape(one.path)}: {one.error}" for one in problems[:20])
    more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
    if len(problems) == count:
        raise DataError(f"none of the {count} pictures could be read:\n{shown}{more}")
    raise PartlyDone(f"{count - len(problems)} of {count} pictures answered; these could not be read:\n{shown}{more}")


class _Lines:
    """A table for one picture, a line each for many."""

    def __init__(self, *, detailed: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.detailed = detailed

    def write(self, answer: Answer) -> None:
        name = escape(images.escape(answer.path))
        if answer.error:
            if not self.detailed:
                self.console.print(f"{name}  [yellow]{escape(answer.error)}[/]")
            return
        if not self.detailed:
            best = ", ".join(f"{escape(one.name)} {one.probability:.1%}" for one in answer.predictions[:3])
            self.console.print(f"{name}  {best}")
            return
        table = Table("class", "id", "probability", title=name, title_justify="left", box=None, header_style="dim")
        for one in answer.predictions:
            table.add_row(escape(one.name), one.id, f"{one.probability:7.2%}  {'█' * round(one.probability * 30)}")
        self.console.print(table)


def draw(answers: Sequence[Answer]) -> bytes:
    """The pictures with their answers as bars, one below the other, as PNG."""
    parts = []
    for answer in answers:
        if not answer.error:
            picture = images.read(answer.path, near=512)
            rows = [(one.name, one.probability) for one in answer.predictions]
            parts.append(drawing.prediction_figure(picture, rows, Path(answer.path).name))
    return _stacked(parts)


def _stacked(pngs: Sequence[bytes]) -> bytes:
    from PIL import Image

    if not pngs:
        raise DataError("there is no readable picture to draw.")
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    width, height = max(one.width for one in pictures), sum(one.height for one in pictures)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    target = io.BytesIO()
    whole.save(target, "PNG")
    return target.getvalue()


def metrics(measured: Metrics, *, console: Console | None = None) -> None:
    """The numbers of an evaluation as tables."""
    console = console or Console(highlight=False, soft_wrap=True)
    facts = Table(box=None, show_header=False)
    facts.add_row("pictures", f"{measured.n:,}")
    facts.add_row("accuracy", interval(measured.accuracy))
    if measured.top5:
        facts.add_row("top-5 accuracy", interval(measured.top5))
    facts.add_row("balanced accuracy", f"{measured.balanced_accuracy:.1%}")
    facts.add_row("log loss", f"{measured.log_loss:.4f}")
    facts.add_row("calibration error", f"{measured.calibration_error:.4f}")
    console.print(facts)
    console.print()
    table = Table("class", box=None, header_style="dim")
    for title in ("n", "precision", "recall", "F1"):
        table.add_column(title, justify="right")
    for one in measured.per_class[:200]:
        if one.n or len(measured.per_class) <= 50:
            recall = one.recall.value if one.recall else None
            table.add_row(escape(one.name), str(one.n), _share(one.precision), _share(recall), _share(one.f1))
    console.print(table)
    pairs = measured.confused_pairs(5)
    if pairs:
        text = "; ".join(f"{count} x {true} called {predicted}" for true, predicted, count in pairs)
        console.print(escape(f"\nmost confused: {text}"))


def interval(share: Proportion) -> str:
    """`94.3 % (91.4 to 96.2)`: the value with its 95 % interval."""
    return f"{share.value:.1%} (95 % interval {share.low:.1%} to {share.high:.1%})"


def _share(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.1%}"

"""Results for people and programs, on standard output: tables, JSON, CSV, and the image with its answers."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.backbones import levels_sentence, require_imagenet_ids
from finetune.cli.ray import RayRequest, ray_predictions, require_ray
from finetune.data import NO_LABEL, read_image
from finetune.evaluation import (
    Metrics,
    Proportion,
    draw_explanation,
    draw_prediction,
    threshold_for_precision,
)
from finetune.models import (
    PREDICT_BATCH,
    UNKNOWN,
    Classifier,
    JsonWriter,
    PartialTable,
    Prediction,
    load_classifier,
    open_table,
    partial_path,
    predict_images,
    read_partial,
)
from finetune.utils import (
    DataError,
    ImageError,
    PartlyDone,
    Terminal,
    UsageError,
    csv_cell,
    explain_os_errors,
    format_interval,
    format_percent,
    printable,
    refuse_existing,
    stop_on_signals,
    write_bytes,
)

if TYPE_CHECKING:
    from finetune.evaluation import Explanation
    from finetune.export import ExportResult, Parity

FIGURE_IMAGES = 12  # more would make a sheet that nobody can read
IMAGENET = "efficientnet_lite0"  # what `--imagenet` asks when the run's own backbone has no 1000-class weights

Sink = Callable[[Prediction], object]


def show_predictions(
    paths: Sequence[str],
    *,
    model: str,
    top: int = 5,
    imagenet: bool = False,
    level: bool = False,
    precision: float | None = None,
    as_json: bool = False,
    csv_file: Path | None = None,
    figure: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    batch_size: int = PREDICT_BATCH,
    engine: str = "local",
    terminal: Terminal | None = None,
) -> None:
    """Answers for `paths`, shown and written as they come, in constant memory.

    Raises PartlyDone when some images could not be read, DataError when none could, Stopped on Ctrl-C; what was
    answered until then is kept, and with `resume` the table `csv_file` goes on where it ended. With `precision` (0..1),
    answers are withheld ("unknown") that are less sure than those which were right so often on validation. The `engine`
    is `local` (this process) or `ray` (a cluster).
    """
    terminal = terminal or Terminal()
    if resume and (csv_file is None or as_json or figure or overwrite):
        raise UsageError("--resume goes on with a table: give --csv FILE, and none of --json, --figure, --overwrite.")
    if engine == "ray":
        require_ray()
    refuse_existing(figure, overwrite)
    refuse_existing(csv_file, overwrite or resume)
    _refuse_begun(csv_file, overwrite or resume)
    networks = load_classifiers(model, imagenet)
    if level:
        require_imagenet_ids(networks[0].ids)
    reject = 0.0 if precision is None else _reject_below(networks[0], precision, terminal)
    for warning in filter(None, [one.warning for one in networks]):
        terminal.warn(warning)
    begun, labelled = PartialTable(), networks[0].spec.multi_label
    if csv_file and resume:
        begun = read_partial(csv_file, top * len(networks), labelled)
        _refuse_other_model(begun, networks[0])
        terminal.say(f"{len(begun.paths):,} of {len(paths):,} images have their row already")
    problems = begun.problems
    left = [path for path in paths if not begun.answered(path)] if begun.paths else paths
    with ExitStack() as closing:  # everything is closed, though one of them fail
        sinks: list[Sink] = [lambda answer: problems.append(answer) if answer.error else None]
        if csv_file:
            table = open_table(csv_file, top * len(networks), begun, labelled)
            sinks.append(closing.enter_context(table).write)
        if figure:
            drawn: list[Prediction] = []
            sinks.append(lambda answer: None if answer.error or len(drawn) >= FIGURE_IMAGES else drawn.append(answer))
            closing.callback(lambda: write_bytes(figure, draw_predictions(drawn)))
        if as_json:
            array = JsonWriter(sys.stdout)
            sinks.append(array.write)
            closing.callback(array.close)
        elif not csv_file:
            sinks.append(_Lines(detailed=len(paths) == 1).write)
        hint = f"Go on with the same command and --resume: {partial_path(csv_file)}" if csv_file else ""
        if engine == "ray":
            asked = RayRequest(model, top, imagenet, level, reject, batch_size)
            stream = ray_predictions(left, asked)
        else:
            stream = joint_predictions(networks, left, top, level, reject, batch_size)
        for answer in _watched(stream, len(left), terminal, hint):
            for sink in sinks:
                sink(answer)
    for target in (csv_file, figure):
        if target:
            terminal.say(f"Wrote {target}")
    _judge(problems, len(paths))


def joint_predictions(
    networks: Sequence[Classifier], paths: Sequence[str], top: int, level: bool, reject: float, batch_size: int
) -> Iterator[Prediction]:
    """One answer an image, in order, those of several classifiers joined; `level` and `reject` are for the first."""
    streams = [
        predict_images(
            one,
            paths,
            top=top,
            level=level and number == 0,
            reject=0.0 if number else reject,
            batch_size=batch_size,
        )
        for number, one in enumerate(networks)
    ]
    for together in zip(*streams, strict=True):
        yield together[0].joined(together[1:])


def _watched(answers: Iterator[Prediction], count: int, terminal: Terminal, hint: str) -> Iterator[Prediction]:
    """Shows how far the answers are; raises Stopped, after a whole one, when asked to."""
    with stop_on_signals() as stop, terminal.stage("Predicting") as update:
        for number, answer in enumerate(answers, start=1):
            yield answer
            update(number, count)
            stop.check(hint)


def _reject_below(classifier: Classifier, precision: float, terminal: Terminal) -> float:
    """The probability below which an answer is withheld, so that those given are right as often as is wished."""
    table = classifier.spec.confidences
    if classifier.spec.multi_label:
        raise UsageError(
            f"{classifier.name} gives an image any number of labels, each from a threshold of its own on.",
            hint="--precision is for one class an image. --json has the probabilities, to set other thresholds.",
        )
    if not table:
        raise UsageError(
            f"{classifier.name} does not know how sure is how right.",
            hint="--precision needs a run that was trained with calibrate: true (the default).",
        )
    row = threshold_for_precision(table, precision)
    if row is None:
        best = max(right for _, right, _ in table)
        raise UsageError(
            f"{classifier.name} was never right {precision:.1%} of the time on validation, at best {best:.1%}.",
            hint="Ask for less, or train with more images.",
        )
    threshold, right, covered = row
    terminal.say(
        f"Answers below {threshold:.3f} are {UNKNOWN}: on validation {covered:.1%} of the images were "
        f"answered, {right:.1%} of those right"
    )
    return threshold


def _refuse_other_model(begun: PartialTable, classifier: Classifier) -> None:
    if strange := begun.classes - {UNKNOWN, *map(csv_cell, classifier.classes)}:
        raise UsageError(
            f"{begun.file} was answered by another model: {classifier.name} has no class {min(strange)!r}.",
            hint="Give the --model of then, or start anew with --overwrite.",
        )


def load_classifiers(model: str, imagenet: bool) -> list[Classifier]:
    """The one that is asked, and with `imagenet` the 1000-class one beside it."""
    asked = load_classifier(model)
    return [asked, imagenet_beside(asked)] if imagenet and not asked.spec.pretrained else [asked]


def imagenet_beside(classifier: Classifier) -> Classifier:
    """The 1000-class network on the same backbone, or on the default one where it has no such weights at hand."""
    from finetune.utils import WeightsError

    try:
        return load_classifier(classifier.spec.backbone)
    except WeightsError:
        return load_classifier(IMAGENET)


def _refuse_begun(table: Path | None, allowed: bool) -> None:
    if table and partial_path(table).exists() and not allowed:
        raise UsageError(
            f"{partial_path(table)} has the rows of an interrupted predict.",
            hint="Go on with --resume, or start anew with --overwrite.",
        )


def _judge(problems: Sequence[Prediction], count: int) -> None:
    if not problems:
        return
    shown = "\n".join(f"  {printable(one.path)}: {one.error}" for one in problems[:20])
    more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
    if len(problems) == count:
        raise DataError(f"none of the {count} images could be read:\n{shown}{more}")
    raise PartlyDone(f"{count - len(problems)} of {count} images answered; these could not be read:\n{shown}{more}")


class _Lines:
    """A table for one image, a line each for many."""

    def __init__(self, *, detailed: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.detailed = detailed

    def write(self, answer: Prediction) -> None:
        name = escape(printable(answer.path))
        if answer.error:
            if not self.detailed:
                self.console.print(f"{name}  [yellow]{escape(answer.error)}[/]")
            return
        if not self.detailed:
            chosen = answer.predictions[:3] if answer.labels is None else answer.labels
            best = ", ".join(f"{escape(one.name)} {one.probability:.1%}" for one in chosen) or NO_LABEL
            self.console.print(f"{name}  {escape(levels_sentence(answer.levels)) or best}")
            return
        table = Table("class", "id", "probability", title=name, title_justify="left", box=None, header_style="dim")
        for one in answer.predictions:
            table.add_row(escape(one.name), one.id, f"{one.probability:7.2%}  {'█' * round(one.probability * 30)}")
        self.console.print(table)
        if answer.levels:
            self.console.print(escape(levels_sentence(answer.levels)))
        if answer.labels is not None:
            names = ", ".join(one.name for one in answer.labels) or NO_LABEL
            self.console.print(f"labels: [bold]{escape(names)}[/]")


def show_explanations(
    paths: Sequence[str],
    *,
    model: str,
    target: str | None = None,
    method: str = "grad-cam",
    top: int = 5,
    figure: Path | None = None,
    output: Path = Path("explanations"),
    overwrite: bool = False,
    terminal: Terminal | None = None,
) -> None:
    """An image of what the model looked at for each of `paths`: all in one `figure`, or one file each in `output`.

    Raises UsageError for a class or method that there is not and for files that exist, PartlyDone and DataError for
    images that cannot be read.
    """
    from finetune.evaluation import find_class, make_explainer

    terminal = terminal or Terminal()
    refuse_existing(figure, overwrite)
    classifier = load_classifier(model)
    if classifier.warning:
        terminal.warn(classifier.warning)
    number = None if target is None else find_class(target, classifier.classes, classifier.ids)
    explainer = make_explainer(classifier)
    places = _explanation_names(paths, output, "" if number is None else classifier.classes[number])
    for place in places if figure is None else ():
        refuse_existing(place, overwrite)
    if figure is None:
        with explain_os_errors(output):
            output.mkdir(parents=True, exist_ok=True)
    problems: list[Prediction] = []
    drawn: list[bytes] = []
    with stop_on_signals() as stop, terminal.stage("Explaining") as update:
        for done, (path, place) in enumerate(zip(paths, places, strict=True), 1):
            if stop.requested:
                break
            try:
                found = explainer.explain(path, target=number, method=method, top=top)
            except ImageError as problem:
                problems.append(Prediction(path, error=problem.message))
                continue
            if figure is None or len(drawn) < FIGURE_IMAGES:
                drawn.append(_explanation(found, Path(path).name))
            if figure is None:
                write_bytes(place, drawn.pop())
            print(_explanation_line(path, found, None if figure else place))
            update(done, len(paths))
    if figure and drawn:
        write_bytes(figure, _stacked(drawn))
        terminal.say(f"Wrote {figure}")
    _judge(problems, len(paths))


def _explanation(found: "Explanation", name: str) -> bytes:
    """The PNG of one map: image, overlay, and the answers with the one that is explained."""
    from finetune.evaluation import overlay_heatmap

    answers = list(found.predictions)
    if found.target not in answers:
        answers.append(found.target)
    return draw_explanation(
        found.image,
        overlay_heatmap(found.image, found.heat),
        [(one.name, one.probability) for one in answers],
        marked=answers.index(found.target),
        title=f"{name}: what speaks for {found.target.name} ({found.method})",
        note="nothing here speaks for this class" if found.blank else "",
    )


def _explanation_line(path: str, found: "Explanation", place: Path | None) -> str:
    answer = f"{printable(path)}  {printable(found.target.name)} {found.target.probability:.1%}"
    return answer if place is None else f"{answer}  -> {printable(str(place))}"


def _explanation_names(paths: Sequence[str], output: Path, target: str) -> list[Path]:
    """A PNG in `output` for each of `paths`, no two the same: `dog.png`, or `dog-beagle.png` if that was asked for."""
    suffix = "-" + "".join(c if c.isalnum() else "_" for c in target) if target else ""
    names: dict[str, None] = {}
    for path in paths:
        stem = name = Path(path).stem + suffix
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names[name] = None
    return [output / f"{name}.png" for name in names]


def draw_predictions(answers: Sequence[Prediction]) -> bytes:
    """The images with their answers as bars, one below the other, as PNG."""
    parts = []
    for answer in answers:
        if not answer.error:
            image = read_image(answer.path, near=512)
            rows = [(one.name, one.probability) for one in answer.predictions]
            parts.append(draw_prediction(image, rows, Path(answer.path).name))
    return _stacked(parts)


def _stacked(pngs: Sequence[bytes]) -> bytes:
    from PIL import Image

    if not pngs:
        raise DataError("there is no readable image to draw.")
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    width, height = max(one.width for one in images), sum(one.height for one in images)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    target = io.BytesIO()
    whole.save(target, "PNG")
    return target.getvalue()


def print_metrics(measured: Metrics, *, console: Console | None = None) -> None:
    """The numbers of an evaluation as tables."""
    console = console or Console(highlight=False, soft_wrap=True)
    facts = Table(box=None, show_header=False)
    facts.add_row("pictures", f"{measured.n:,}")
    for name, value in measured.summary().items():
        facts.add_row(name, format_interval(value) if isinstance(value, Proportion) else f"{value:.4f}")
    console.print(facts)
    console.print()
    table = Table("class", box=None, header_style="dim")
    ranked = any(one.average_precision for one in measured.per_class)
    for title in ("n", "precision", "recall", "F1", *(("average precision", "threshold") if ranked else ())):
        table.add_column(title, justify="right")
    for one in measured.per_class[:200]:
        if one.n or len(measured.per_class) <= 50:
            recall, average = (share.value if share else None for share in (one.recall, one.average_precision))
            more = (format_percent(average), f"{one.threshold:.2f}") if ranked else ()
            cells = (format_percent(one.precision), format_percent(recall), format_percent(one.f1), *more)
            table.add_row(escape(one.name), str(one.n), *cells)
    console.print(table)
    pairs = measured.confused_pairs(5)
    if pairs:
        text = "; ".join(f"{count} x {true} called {predicted}" for true, predicted, count in pairs)
        console.print(escape(f"\nmost confused: {text}"))


def print_export(made: "ExportResult") -> None:
    """Where an export is, how it compares with its classifier, and how accurate it is."""
    facts = made.facts
    size = sum(one["bytes"] for one in facts["files"].values()) / 1e6
    quantized = f", {facts['quantize']}" if facts["quantize"] else ""
    rows = {
        "compared on": f"{made.parity.n:,} images ({facts['pictures']}) in {facts['runtime']}",
        "same answer": _parity(made.parity),
        "from file bytes": made.bytes_parity and _parity(made.bytes_parity),
        "accuracy before": made.before and format_interval(made.before),
        "accuracy after": made.after and format_interval(made.after),
        "calibrated on": facts["calibration"],
        "how to use it": made.folder / "README.md",
    }
    print(f"{made.format.title}{quantized}: {made.folder} ({size:.1f} MB, {facts['seconds']:.0f} s)")
    for name, value in rows.items():
        if value:
            print(f"  {name:<16} {printable(str(value))}")


def _parity(parity: "Parity") -> str:
    lost = f"; {parity.undecodable:,} files not decoded" if parity.undecodable else ""
    return f"{parity.agreement:.1%} (largest difference of a probability {parity.largest_difference:.2g}){lost}"

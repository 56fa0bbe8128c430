"""What `finetune check` prints in the terminal: facts, warnings, and what to do next."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape

from finetune.data import SPLITS, Dataset
from finetune.training import CheckResult
from finetune.utils import format_bytes, format_duration, printable, result_console, shell_command

if TYPE_CHECKING:
    from finetune.training import DryRun  # its import starts TensorFlow, which a wrong data set must not wait for

LISTED_PAIRS = 5
LISTED_CLASSES = 40
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 30  # characters


def print_check(result: CheckResult, words: Sequence[str]) -> None:
    """`words` are the config and its overrides, as they were typed."""
    console = result_console()
    for title, lines in _sections(result):
        for number, line in enumerate(lines):
            console.print(f"[dim]{title if number == 0 else '':<10}[/] {escape(line)}")
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    if not result.problems:
        console.print(f"\nNo problems. Train it: {escape(shell_command('finetune', 'train', *words))}")
    elif len(result.problems) > 1:
        console.print(f"\n{len(result.problems)} problems, listed below.")


def _sections(result: CheckResult) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) of what the check noticed."""
    if result.dataset:
        yield "data", list(_data_lines(result, result.dataset))
        yield "images", list(_image_lines(result, result.dataset))
    if result.recipe:
        yield "recipe", [str(decision) for decision in result.recipe]
    if result.weights:
        yield "weights", [str(result.weights.path)]
    if not result.dry_run:
        yield "steps", ["not tried: fix the problems below first"]
        return
    yield "steps", list(_step_lines(result.dry_run))
    yield "rate", list(_rate_lines(result.dry_run))
    yield "memory", [_memory_line(result.dry_run)]
    yield "disk", [_disk_line(result.dry_run)]
    yield "time", list(_time_lines(result, result.dry_run))


def _data_lines(result: CheckResult, dataset: Dataset) -> Iterator[str]:
    splits = ", ".join(f"{len(dataset.indices(split)):,} {split}" for split in SPLITS)
    yield f"{dataset.name}: {len(dataset):,} images, {len(dataset.classes)} {dataset.label_type.noun} ({splits})"
    rows = list(zip(map(printable, dataset.classes), result.counts.tolist(), strict=True))
    rows.sort(key=lambda row: -sum(row[1]))
    hidden = len(rows) - LISTED_CLASSES
    half = LISTED_CLASSES // 2
    listed = rows if hidden <= 0 else [*rows[:half], *rows[-half:]]
    width = max(len(name) for name, _ in listed)
    for number, (name, counts) in enumerate(listed):
        if hidden > 0 and number == half:
            yield f"... {hidden:,} classes between these ..."
        yield f"{name:<{width}} " + " ".join(f"{count:>7,}" for count in counts)


def _image_lines(result: CheckResult, dataset: Dataset) -> Iterator[str]:
    counts = Counter(image.format for image in result.inspections).most_common()
    formats = ", ".join(f"{count:,} {name}" for name, count in counts)
    width, height = np.median(result.sizes, axis=0).astype(int)
    shorter, longer = result.sizes.min(axis=1).min(), result.sizes.max(axis=1).max()
    yield f"{formats}; median {width} x {height} pixels, shorter side from {shorter}, longer to {longer}"
    similar = result.similar
    part = "" if similar.fraction == 1 else f" (of {similar.fraction:.0%} of the images, test images first)"
    if not similar.pairs:
        yield f"no near-duplicates across splits or classes, by {' and '.join(similar.methods)}{part}"
    for pair in similar.pairs[:LISTED_PAIRS]:
        first, second = (
            f"{printable(dataset.names[index])} ({SPLITS[dataset.splits[index]]})"
            for index in (pair.first, pair.second)
        )
        yield f"{pair.similarity:.2f}  {first} ~ {second}"
    hidden = len(similar.pairs) - LISTED_PAIRS
    if hidden > 0:
        yield f"... {hidden:,} more pairs: --figures DIR draws them, --json lists them{part}"


def _step_lines(dry_run: "DryRun") -> Iterator[str]:
    yield dry_run.device
    for phase in dry_run.phases:
        blocks = f" ({len(phase.blocks)} blocks, from {phase.blocks[0]})" if phase.blocks else ""
        yield (
            f"{phase.name}: {phase.batch_size} images in {phase.step_seconds * 1000:.0f} ms, {phase.steps:,} steps "
            f"per epoch; {phase.parameters:,} trainable parameters{blocks}"
        )


def _rate_lines(dry_run: "DryRun") -> Iterator[str]:
    for phase in dry_run.phases:
        last, largest = phase.rates[-1], max(phase.rates)
        end = f"{last:.2g}" if last > 1e-3 * largest else "0"
        yield f"{phase.name:<12} {sparkline(phase.rates)} {largest:.3g} to {end}, {phase.epochs} epochs"


def _memory_line(dry_run: "DryRun") -> str:
    total = f" of {format_bytes(dry_run.memory)}" if dry_run.memory else " of the GPU"
    in_memory = dry_run.feature_place == "memory"
    features = f", and {format_bytes(dry_run.feature_size)} of features" if in_memory else ""
    return f"at most {format_bytes(dry_run.peak_memory)}{total}{features}"


def _disk_line(dry_run: "DryRun") -> str:
    features = {
        "disk": f"{format_bytes(dry_run.feature_size)} of features in the cache",
        "memory": "features stay in memory",
        "off": "no features are kept",
    }[dry_run.feature_place]
    return f"at most {format_bytes(dry_run.run_size)} for the run; {features}"


def _time_lines(result: CheckResult, dry_run: "DryRun") -> Iterator[str]:
    stages = [f"{name} {format_duration(seconds)}" for name, seconds in result.seconds.items() if seconds >= 0.5]
    yield f"about {format_duration(sum(result.seconds.values()))}: {', '.join(stages)}"
    rates = (
        f"{dry_run.feature_rate:.0f} images per second through the frozen part, {dry_run.reading_rate:.0f} only read"
    )
    if dry_run.feature_place == "off":
        yield f"{rates}; every epoch does that again"
    elif dry_run.missing_features:
        yield f"{rates}; {dry_run.missing_features:,} are not in the cache yet"
    else:
        yield "all features are in the cache already"


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """A curve in one line of text, from 0 to the largest value."""
    chosen = [values[index] for index in np.linspace(0, len(values) - 1, width).round().astype(int)]
    largest = max(chosen) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * value / largest))] for value in chosen)

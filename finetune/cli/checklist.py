"""What `finetune check` found, for people: a list in the terminal, JSON, two figures."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from finetune.config import Config
from finetune.data import SPLITS, SimilarPair, read_image
from finetune.evaluation import Image, draw_schedule, draw_similar_pairs
from finetune.training import CheckResult, check_config, describe_pair
from finetune.utils import (
    FinetuneError,
    Terminal,
    explain_os_errors,
    format_bytes,
    format_duration,
    printable as visible,
    refuse_existing,
    write_bytes,
)

LISTED = 5  # pairs, in the terminal
DRAWN = 12  # pairs, in the figure
SIDE = 128  # of these in pixels, the shorter one, or up to twice that
CLASSES = 40  # listed one by one
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 30  # of a schedule in the terminal, in letters


def show_check(
    config: Config,
    source: str,
    *,
    as_json: bool = False,
    figures: Path | None = None,
    overwrite: bool = False,
    compute_features: bool = False,
    terminal: Terminal | None = None,
) -> None:
    """Prints what `checking.check` found about `config` (from `source`); draws rate and look-alikes into `figures`.

    Raises all problems as one, of the first one's kind, after everything is printed.
    """
    terminal = terminal or Terminal()
    targets = {name: figures / f"{name}.png" for name in ("learning_rate", "alike")} if figures else {}
    for target in targets.values():
        refuse_existing(target, overwrite)
    found = check_config(config, compute_features=compute_features, terminal=terminal)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _print(found, source, Console(highlight=False, soft_wrap=True))
    if figures:
        with explain_os_errors(figures):
            figures.mkdir(parents=True, exist_ok=True)
    for name, png in _draw(found) if figures else ():
        write_bytes(targets[name], png)
        terminal.say(f"Wrote {targets[name]}")
    if found.problems:
        raise combine_problems(found.problems)


def combine_problems(problems: Sequence[FinetuneError]) -> FinetuneError:
    """All problems in one error, whose exit code is that of the first."""
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, 1))
    return type(problems[0])(f"{len(problems)} problems stand against this training\n{listed}")


# ------------------------------------------------------------------------------------------------------ figures


def _draw(found: CheckResult) -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of what there is to see."""
    if found.trial:
        yield "learning_rate", draw_schedule([(one.name, one.epochs, one.rates) for one in found.trial.phases])
    if found.dataset and found.alike.pairs:
        yield "alike", draw_similar_pairs([_beside(pair, found) for pair in found.alike.pairs[:DRAWN]])


def _beside(pair: SimilarPair, found: CheckResult) -> tuple[str, tuple[Image, str], tuple[Image, str]]:
    assert found.dataset is not None
    facts = describe_pair(pair, found.dataset)
    first, second = (
        (read_image(one["path"], near=SIDE), f"{Path(one['path']).name}\n{one['class']}, {one['split']}")
        for one in facts["pictures"]
    )
    return f"likeness {pair.likeness:.2f}", first, second


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in one line of text, from 0 to the largest value."""
    chosen = [values[at] for at in np.linspace(0, len(values) - 1, width).round().astype(int)]
    most = max(chosen) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * value / most))] for value in chosen)


# --------------------------------------------------------------------------------------------------- the terminal


def _print(found: CheckResult, source: str, console: Console) -> None:
    for title, lines in _facts(found):
        for number, line in enumerate(lines):
            console.print(f"[dim]{'' if number else title:<10}[/] {escape(line)}")
    for warning in found.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    if not found.problems:
        console.print(f"\nNothing stands against it: finetune train {escape(visible(source))}")
    elif len(found.problems) > 1:
        console.print(f"\n{len(found.problems)} problems, listed below.")


def _facts(found: CheckResult) -> Iterator[tuple[str, list[str]]]:
    if found.dataset:
        yield "data", list(_data(found))
        yield "pictures", list(_images(found))
    if found.weights:
        yield "weights", [str(found.weights.path)]
    if not found.trial:
        yield "steps", ["not tried: first mend what is listed below"]
        return
    trial = found.trial
    yield (
        "steps",
        [f"{found.trial.device}{f', tried {trial.at}' if found.remembered else ''}"]
        + [
            f"{one.name}: {one.batch_size} images in {one.step_seconds * 1000:.0f} ms, {one.steps:,} steps an epoch; "
            f"{one.parameters:,} parameters learn"
            + (f" ({len(one.blocks)} blocks, from {one.blocks[0]})" if one.blocks else "")
            for one in trial.phases
        ],
    )
    yield (
        "rate",
        [
            f"{one.name:<12} {sparkline(one.rates)} {max(one.rates):.3g} to {_rate(one.rates)}, {one.epochs} epochs"
            for one in trial.phases
        ],
    )
    yield "memory", [_memory(found)]
    yield "disk", [_disk(found)]
    yield "time", list(_time(found))


def _rate(rates: Sequence[float]) -> str:
    """The last one, where it is not as good as nothing."""
    return f"{rates[-1]:.2g}" if rates[-1] > 1e-3 * max(rates) else "0"


def _data(found: CheckResult) -> Iterator[str]:
    assert found.dataset is not None
    sums = [len(found.dataset.indices(split)) for split in SPLITS]
    parts = ", ".join(f"{count:,} {split}" for split, count in zip(SPLITS, sums, strict=True))
    names = f"{len(found.dataset.classes)} {found.dataset.label_type.noun}"
    yield f"{found.dataset.name}: {len(found.dataset):,} images, {names} ({parts})"
    rows = list(zip(found.dataset.classes, found.counts.tolist(), strict=True))
    rows.sort(key=lambda row: -sum(row[1]))
    left_out = len(rows) - CLASSES
    shown = rows if left_out <= 0 else [*rows[: CLASSES // 2], *rows[-CLASSES // 2 :]]
    width = max(len(visible(name)) for name, _ in shown)
    for number, (name, counts) in enumerate(shown):
        if left_out > 0 and number == CLASSES // 2:
            yield f"... {left_out:,} classes between these ..."
        yield f"{visible(name):<{width}} " + " ".join(f"{count:>7,}" for count in counts)


def _images(found: CheckResult) -> Iterator[str]:
    width, height = np.median(found.sizes, axis=0).astype(int) if len(found.sizes) else (0, 0)
    shorter, longer = found.sizes.min(axis=1), found.sizes.max(axis=1)
    formats = ", ".join(f"{count:,} {name}" for name, count in Counter(one.format for one in found.looks).most_common())
    yield f"{formats}; median {width} x {height} pixels, shorter side from {shorter.min()}, longer to {longer.max()}"
    share = "" if found.alike.share == 1 else f" (of {found.alike.share:.0%} of the images, test images first)"
    if not found.alike.pairs:
        yield f"none look alike across splits or classes, by {' and '.join(found.alike.by)}{share}"
        return
    assert found.dataset is not None
    for pair in found.alike.pairs[:LISTED]:
        both = (
            f"{visible(found.dataset.names[at])} ({SPLITS[found.dataset.splits[at]]})"
            for at in (pair.first, pair.second)
        )
        yield f"{pair.likeness:.2f}  {' ~ '.join(both)}"
    if len(found.alike.pairs) > LISTED:
        yield f"... {len(found.alike.pairs) - LISTED:,} more pairs: --figures DIR draws them, --json lists them{share}"


def _memory(found: CheckResult) -> str:
    trial = found.trial
    assert trial is not None
    there = f" of {format_bytes(trial.memory)}" if trial.memory else " of the GPU"
    held = f", and {format_bytes(trial.feature_size)} of features" if trial.feature_place == "memory" else ""
    return f"{format_bytes(trial.peak_memory)}{there} at the most{held}"


def _disk(found: CheckResult) -> str:
    trial = found.trial
    assert trial is not None
    where = {
        "disk": f"{format_bytes(trial.feature_size)} of features in the cache",
        "memory": "features stay in memory",
        "off": "no features are kept",
    }[trial.feature_place]
    return f"{format_bytes(trial.run_size)} at most for the run; {where}"


def _time(found: CheckResult) -> Iterator[str]:
    trial = found.trial
    assert trial is not None
    stages = ", ".join(
        f"{name} {format_duration(seconds)}" for name, seconds in found.seconds.items() if seconds >= 0.5
    )
    yield f"about {format_duration(sum(found.seconds.values()))}: {stages}"
    missing = trial.missing_features
    through = f"{trial.feature_rate:.0f} images a second through the frozen part, {trial.reading_rate:.0f} only read"
    if trial.feature_place == "off":
        yield f"{through}; every epoch does that anew"
    else:
        yield f"{through}; {missing:,} have to" if missing else "all features are in the cache already"

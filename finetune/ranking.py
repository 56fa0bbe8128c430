"""Which network to take: those whose weights are at hand, by speed on this machine and by accuracy on one's own folder.

    for one in rank(Path("photos")):
        one.name, one.rate, one.accuracy

Speed is the frozen pass, which is what head training and prediction cost. Accuracy is that of a probe: logistic
regression on pooled features, cross-validated on the same few hundred pictures for every network. A head that is
trained on all pictures does better, and fine-tuning better still; the order is what is asked for.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from finetune import catalog, classifier, features, images, probe, sources, weights
from finetune.catalog import Backbone
from finetune.classifier import Classifier
from finetune.config import Augment, Data, Model
from finetune.data import Dataset
from finetune.device import describe, keras
from finetune.errors import DataError, WeightsError
from finetune.evaluation import Proportion, wilson
from finetune.scan import scan
from finetune.terminal import Terminal

PICTURES = 500  # of a folder, all classes together
PROBE_SECONDS = 60.0  # for the features of one network; a slow one gets fewer pictures
TIMED_SECONDS = 1.0
LEAST = 5  # pictures of each class, below which nothing is said of the accuracy


@dataclass(frozen=True)
class Ranked:
    """One network: pictures a second through its frozen part in batches of 32, and its probe on `n` pictures."""

    name: str
    size: int
    parameters: int  # without the 1000-class head
    top1: float | None  # percent, on ImageNet
    rate: float
    accuracy: Proportion | None
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rank(folder: Path | None = None, *, seed: int = 0, terminal: Terminal | None = None) -> list[Ranked]:
    """The networks whose weights are on this machine: the most accurate on `folder` first, without one the fastest.

    Raises DataError for a folder without class folders or with too few pictures, before anything is timed.
    """
    terminal = terminal or Terminal(quiet=True)
    dataset = _sample(folder, seed, terminal) if folder else None
    found = []
    for row in at_hand():
        with terminal.stage(row.name) as update:
            try:
                network = classifier.build(Model(backbone=row.name), ["a", "b"], seed=seed)
            except WeightsError as error:
                terminal.warn(f"{row.name} is left out: {error}")
                continue
            rate = _rate(network)
            accuracy, n = _probe(network, dataset, rate, seed, update) if dataset else (None, 0)
            found.append(Ranked(row.name, row.size, row.backbone_parameters, row.top1, rate, accuracy, n))
        keras.backend.clear_session()
    return sorted(found, key=lambda one: (-(one.accuracy.value if one.accuracy else 0), -one.rate))


def at_hand() -> Iterator[Backbone]:
    """The networks whose ImageNet weights are on this machine."""
    names = {stored.backbone for stored in weights.listing() if stored.path}
    return (row for row in catalog.BACKBONES.values() if row.name in names)


def _rate(network: Classifier) -> float:
    """Pictures a second through the frozen part, reading not counted."""
    extract = features.Extractor(network, [network.head_input])
    side = network.spec.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (features.BATCH, side, side, 3)).astype(np.uint8)
    extract(pictures)  # compiled
    started, batches = time.monotonic(), 0
    while time.monotonic() - started < TIMED_SECONDS:
        extract(pictures)
        batches += 1
    return batches * features.BATCH / (time.monotonic() - started)


def _sample(folder: Path, seed: int, terminal: Terminal) -> Dataset:
    """Up to PICTURES readable pictures of `folder`, the classes taking turns, so that any first part is even."""
    listing = sources.find(Data(folder=folder.absolute()))
    if len(listing.classes) < 2:
        raise DataError(f"{folder}: only one class folder.", remedy="Two at least are needed to tell apart.")
    chosen = probe.sample(listing.labels, max(LEAST, PICTURES // len(listing.classes)), seed)
    turn = np.concatenate([np.arange(count) for count in np.bincount(listing.labels[chosen])])
    chosen = chosen[np.argsort(turn, kind="stable")]
    paths = [str(Path(listing.root, listing.names[at])) for at in chosen]
    looks = list(scan(paths, cache=weights.cache_folder() / "scan.sqlite"))
    for look in looks:
        if look.reason:
            terminal.warn(f"{images.escape(look.path)} is left out: {look.reason}")
    good = np.array([at for at, look in zip(chosen, looks, strict=True) if look.ok], int)
    counts = np.bincount(listing.labels[good], minlength=len(listing.classes))
    if counts.min() < LEAST:
        poor = listing.classes[int(counts.argmin())]
        raise DataError(
            f"{folder}: {counts.min()} readable pictures of {images.escape(poor)}.",
            remedy=f"{LEAST} of each class are the least that a probe needs; some dozens are better.",
        )
    return Dataset(
        name=listing.name,
        root=listing.root,
        classes=listing.classes,
        names=tuple(listing.names[at] for at in good),
        labels=listing.labels[good],
        splits=np.zeros(len(good), np.int8),
        hashes=tuple(look.sha256 for look in looks if look.ok),
    )


def _probe(
    network: Classifier, dataset: Dataset, rate: float, seed: int, update: features.Progress
) -> tuple[Proportion | None, int]:
    """Accuracy of the probe and on how many pictures; None for a network that is too slow for enough of them."""
    count = min(len(dataset), int(rate * PROBE_SECONDS))
    labels = dataset.labels[:count].astype(np.int64)
    if np.bincount(labels, minlength=len(dataset.classes)).min() < LEAST:
        return None, count
    part = replace(
        dataset, names=dataset.names[:count], labels=dataset.labels[:count], splits=dataset.splits[:count],
        hashes=dataset.hashes[:count],
    )  # fmt: skip
    (source,) = features.prepare(network, part, [network.head_input], augment=Augment(), seed=seed, progress=update)
    rows = np.concatenate(list(source.batches(np.arange(count), None, features.BATCH)))
    right = probe.cross_validate(labels, probe.folds(labels, seed), lambda *fold: probe.fit(rows, labels, *fold))
    return wilson(int(right.sum()), count), count


# ------------------------------------------------------------------------------------------------------ showing


def show(folder: Path | None, *, as_json: bool = False, terminal: Terminal | None = None) -> None:
    """Prints the ranking."""
    terminal = terminal or Terminal()
    found = rank(folder, terminal=terminal)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=1))
        return
    table = Table(box=None, header_style="dim")
    table.add_column("network", no_wrap=True)
    titles = ["pictures a second", "input", "parameters", "ImageNet top-1"]
    for title in [*(["accuracy here", "95 % interval", "n"] if folder else []), *titles]:
        table.add_column(title, justify="right")
    for one in found:
        table.add_row(one.name, *(_accuracy(one) if folder else ()), f"{one.rate:.1f}" if one.rate < 10 else
                      f"{one.rate:.0f}", f"{one.size} px", f"{one.parameters / 1e6:.1f} M",
                      "-" if one.top1 is None else f"{one.top1:.1f} %")  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n[dim]Speed: the frozen part on {describe()}, 32 pictures at a time, reading not counted.[/]")
    if folder:
        console.print("[dim]Accuracy: logistic regression on frozen features, cross-validated on the same pictures.[/]")
    console.print("[dim]finetune weights fetch NAME brings another network here.[/]")


def _accuracy(one: Ranked) -> tuple[str, str, str]:
    if one.accuracy is None:
        return "too slow", "-", f"{one.n:,}"
    return f"{one.accuracy.value:.1%}", f"{one.accuracy.low:.1%} to {one.accuracy.high:.1%}", f"{one.n:,}"

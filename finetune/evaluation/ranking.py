"""Which backbone to take: those whose weights are on this machine, by speed here and by accuracy on a folder of images.

    for row in rank_backbones(Path("photos")):
        row.name, row.rate, row.accuracy

Speed is that of the frozen part, which is what head training and prediction cost. Accuracy is that of a linear probe
on pooled features, cross-validated on the same few hundred images for every network. A head trained on all images is
better, and fine-tuning better still; what matters here is the order.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backbones import BACKBONES, Backbone, list_weights
from finetune.config import AugmentConfig, DataConfig, ModelConfig
from finetune.data import Dataset, list_source, scan_images
from finetune.evaluation.linear_probe import cross_validate_probe, sample_per_class
from finetune.evaluation.metrics import Proportion, wilson_interval
from finetune.models import (
    FEATURE_BATCH,
    Classifier,
    FeatureExtractor,
    FeatureRequest,
    build_classifier,
    prepare_features,
)
from finetune.utils import DataError, ProgressCallback, Terminal, WeightsError, keras, printable

IMAGES = 500  # of a folder, all classes together
PROBE_SECONDS = 60.0  # for the features of one network; a slow one gets fewer images
TIMED_SECONDS = 1.0
MIN_PER_CLASS = 5  # images of each class that an accuracy needs


@dataclass(frozen=True)
class Ranked:
    """One network: images per second through its frozen part in batches of 32, and its probe on `n` images."""

    name: str
    size: int
    parameters: int  # without the 1000-class head
    top1: float | None  # percent, on ImageNet
    rate: float
    accuracy: Proportion | None  # None without a folder, and for a network too slow to be measured on it
    n: int

    def to_json(self) -> dict[str, Any]:
        """Names and numbers only, for `json.dump`."""
        return asdict(self)


def rank_backbones(folder: Path | None = None, *, seed: int = 0, terminal: Terminal | None = None) -> list[Ranked]:
    """The networks whose weights are on this machine: the most accurate on `folder` first, without one the fastest.

    Raises DataError for a folder without class folders or with too few images, before anything is timed.
    """
    terminal = terminal or Terminal(quiet=True)
    dataset = sample_folder(folder, seed, terminal) if folder else None
    ranking = []
    for row in available_backbones():
        with terminal.stage(row.name) as update:
            try:
                network = build_classifier(ModelConfig(backbone=row.name), ["a", "b"], seed=seed)
            except WeightsError as error:
                terminal.warn(f"{row.name} is left out: {error}")
                continue
            rate = images_per_second(network)
            accuracy, n = _probe_accuracy(network, dataset, rate, seed, update) if dataset else (None, 0)
            ranking.append(Ranked(row.name, row.size, row.backbone_parameters, row.top1, rate, accuracy, n))
        keras.backend.clear_session()
    return sorted(ranking, key=lambda row: (-(row.accuracy.value if row.accuracy else 0), -row.rate))


def available_backbones() -> Iterator[Backbone]:
    """The networks whose ImageNet weights are on this machine."""
    names = {stored.backbone for stored in list_weights() if stored.path}
    return (row for row in BACKBONES.values() if row.name in names)


def images_per_second(network: Classifier) -> float:
    """The speed of the frozen part of `network` in batches of 32, without reading images."""
    extract = FeatureExtractor(network, [network.head_input])
    side = network.spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (FEATURE_BATCH, side, side, 3)).astype(np.uint8)
    extract(images)  # compiles
    started, batches = time.monotonic(), 0
    while time.monotonic() - started < TIMED_SECONDS:
        extract(images)
        batches += 1
    return batches * FEATURE_BATCH / (time.monotonic() - started)


def sample_folder(folder: Path, seed: int, terminal: Terminal) -> Dataset:
    """Up to IMAGES readable images of `folder`, the classes in turn, so that its first images are balanced too.

    Unreadable images are named in a warning. DataError if there are too few of a class.
    """
    listing = list_source(DataConfig(folder=folder.absolute()))
    if len(listing.classes) < 2:
        raise DataError(f"{folder}: only one class folder.", hint="At least two are needed.")
    for warning in listing.warnings:
        terminal.warn(warning)
    chosen = sample_per_class(listing.labels, max(MIN_PER_CLASS, IMAGES // len(listing.classes)), seed)
    turn = np.concatenate([np.arange(count) for count in np.bincount(listing.labels[chosen])])
    chosen = chosen[np.argsort(turn, kind="stable")]
    paths = [str(Path(listing.root, listing.names[index])) for index in chosen]
    inspections = list(scan_images(paths))
    for inspection in inspections:
        if inspection.reason:
            terminal.warn(f"{printable(inspection.path)} is left out: {inspection.reason}")
    readable = chosen[[inspection.ok for inspection in inspections]]
    counts = np.bincount(listing.labels[readable], minlength=len(listing.classes))
    if counts.min() < MIN_PER_CLASS:
        rarest = listing.classes[int(counts.argmin())]
        raise DataError(
            f"{folder}: {counts.min()} readable images of {printable(rarest)}.",
            hint=f"A linear probe needs at least {MIN_PER_CLASS} images of each class; some dozens are better.",
        )
    return Dataset(
        name=listing.name,
        root=listing.root,
        classes=listing.classes,
        names=tuple(listing.names[index] for index in readable),
        labels=listing.labels[readable],
        splits=np.zeros(len(readable), np.int8),
        hashes=tuple(inspection.sha256 for inspection in inspections if inspection.ok),
    )


def _probe_accuracy(
    network: Classifier, dataset: Dataset, rate: float, seed: int, update: ProgressCallback
) -> tuple[Proportion | None, int]:
    """Accuracy of a linear probe and on how many images; None for a network that is too slow for enough of them."""
    count = min(len(dataset), int(rate * PROBE_SECONDS))
    labels = dataset.labels[:count].astype(np.int64)
    if np.bincount(labels, minlength=len(dataset.classes)).min() < MIN_PER_CLASS:
        return None, count
    columns = {name: getattr(dataset, name)[:count] for name in ("names", "labels", "splits", "hashes")}
    part = replace(dataset, **columns)
    request = FeatureRequest(network, part, [network.head_input], AugmentConfig(), seed)
    (source,) = prepare_features(request, progress=update)
    features = np.concatenate(list(source.batches(np.arange(count), None, FEATURE_BATCH)))
    correct = cross_validate_probe(features, labels, seed=seed)
    return wilson_interval(int(correct.sum()), count), count

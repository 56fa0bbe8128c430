"""One training step of every phase, on real images: does it work, how long does it take, how much memory and disk?

    found = run(config, dataset)
    found.phases[0].step_seconds

Everything is measured with the code that trains: the features of one batch, then steps of the asked batch size, the
first of which (it is compiled) is not timed. The weights that change are thrown away.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from finetune.config import Config
from finetune.data import Dataset, image_batches, image_reader
from finetune.models import (
    FEATURE_BATCH,
    CachedFeatures,
    Classifier,
    FeatureExtractor,
    build_classifier,
    plan_features,
    prepare_features,
    refuse_unreadable,
)
from finetune.training.dry_run_result import DryRun, PhaseDryRun
from finetune.training.experiment import refuse_infinite, run_folder_size
from finetune.training.trainer import Phase, Trainer, TrainingState, plan_phases, refuse_undistributable
from finetune.utils import ProgressCallback, ResourceError, describe_device, peak_memory_mb, tf, visible_gpus

POINTS = 61  # at which the learning rate is noted
TIMED_SECONDS = 0.3  # of steps, and one step at least
FORWARD = 1 / 3  # of a step: what goes back through a network costs twice what goes forth


def dry_run(config: Config, dataset: Dataset, *, progress: ProgressCallback = lambda done, total: None) -> DryRun:
    """One step of every phase of `config` at its batch size.

    Raises what a training would raise: ConfigError, WeightsError, TrainingDiverged; ResourceError out of memory.
    """
    total = 3 + len(config.fine_tune)
    started = time.monotonic()
    classifier, phases = build_and_plan(config, dataset.classes)
    refuse_undistributable(phases, classifier, config, len(dataset.indices("train")))
    # Before any step: features are filed under the weights that they were made with.
    outlook = plan_features(
        classifier, dataset, [phase.cut for phase in phases], augment=config.augment, seed=config.seed,
        policy=config.cache,
    )  # fmt: skip
    progress(1, total)
    with _explained("the frozen part of the network", "model.image_size"):
        reading_rate, feature_rate, inputs = _measure_features(classifier, dataset, phases)
    progress(2, total)
    tried = []
    for phase, rows in zip(phases, inputs, strict=True):
        with _explained(phase.name, "head.batch_size" if phase.index == 0 else "fine_tune.batch_size"):
            tried.append(_try_phase(phase, rows, classifier, dataset, config))
        progress(3 + phase.index, total)
    return DryRun(
        at=datetime.now().astimezone().isoformat(timespec="seconds"),
        device=describe_device(),
        weights=classifier.weights_hash,
        warning=classifier.warning,
        start_seconds=time.monotonic() - started,
        reading_rate=reading_rate,
        feature_rate=feature_rate,
        peak_memory=_peak_memory(),
        memory=None if visible_gpus() else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        run_size=run_folder_size(classifier, phases),
        feature_place=outlook.place,
        feature_size=outlook.size,
        feature_pictures=outlook.images,
        feature_files=tuple(tuple(map(str, row)) for row in outlook.files),
        phases=tuple(tried),
    )


def build_and_plan(config: Config, classes: Sequence[str]) -> tuple[Classifier, list[Phase]]:
    """The network and the phases of `config`. Raises ConfigError and WeightsError."""
    classifier = build_classifier(config.model, classes, seed=config.seed, multi_label=config.data.multi_label)
    return classifier, plan_phases(config, classifier)


def _measure_features(
    classifier: Classifier, dataset: Dataset, phases: Sequence[Phase]
) -> tuple[float, float, list[np.ndarray]]:
    """Images a second when only read, and through the frozen part; and one batch of features for every phase."""
    chosen = np.resize(dataset.indices("train"), FEATURE_BATCH)
    read = image_reader(dataset.paths(np.arange(len(dataset))), classifier.transform)
    started = time.monotonic()
    (batch,) = image_batches(read, chosen, FEATURE_BATCH)
    reading = (time.monotonic() - started) / FEATURE_BATCH
    refuse_unreadable(batch, dataset.paths(np.arange(len(dataset))))
    extract = FeatureExtractor(classifier, [phase.cut for phase in phases])
    rows = extract(batch.images)  # compiled
    for one in rows:
        refuse_infinite(classifier, one)
    network = _seconds(lambda: extract(batch.images)) / FEATURE_BATCH
    # A GPU computes while the processor reads; else both want the same cores.
    together = max(reading, network) if visible_gpus() else reading + network
    return 1 / reading, 1 / together, rows


def _try_phase(phase: Phase, rows: np.ndarray, classifier: Classifier, dataset: Dataset, config: Config) -> PhaseDryRun:
    if phase.settings.learning_rate == "auto":  # found by a trial before the phase; any rate will do for timing
        phase = replace(phase, settings=phase.settings.model_copy(update={"learning_rate": 1e-3}))
    trainer = Trainer(
        phase,
        classifier,
        CachedFeatures((rows,), np.arange(len(rows))),
        dataset,
        config=config,
        progress=TrainingState(),
    )
    size = min(phase.settings.batch_size, len(trainer.train_indices))
    inputs = np.resize(rows, (size, *rows.shape[1:]))
    labels = dataset.labels[np.resize(trainer.train_indices[:FEATURE_BATCH], size)]
    trainer.train_batch(inputs, labels)  # compiled
    step = _seconds(lambda: trainer.train_batch(inputs, labels))
    validation = FORWARD * step * len(trainer.validation_indices) / size
    return PhaseDryRun(
        name=phase.name,
        epochs=phase.settings.epochs,
        steps=trainer.steps_per_epoch,
        batch_size=size,
        blocks=phase.blocks,
        parameters=sum(int(np.prod(variable.shape)) for variable in trainer.above.trainable_variables),
        step_seconds=step,
        epoch_seconds=trainer.steps_per_epoch * step + validation,
        rates=tuple(_rates(trainer)),
    )


def _seconds(work: Callable[[], object]) -> float:
    """How long `work` takes: the mean of some times."""
    started, times = time.monotonic(), 0
    while not times or time.monotonic() - started < TIMED_SECONDS:
        work()
        times += 1
    return (time.monotonic() - started) / times


def _rates(trainer: Trainer) -> Iterator[float]:
    """The learning rate as the optimizer itself has it, from the first step to the last."""
    last = max(0, trainer.settings.epochs * trainer.steps_per_epoch - 1)
    for step in np.linspace(0, last, POINTS).round().astype(int):
        trainer.optimizer.iterations.assign(step)
        yield trainer.learning_rate


def _peak_memory() -> int:
    if visible_gpus():
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return peak_memory_mb() * 2**20


class _explained:
    """`with _explained("head", "head.batch_size"):` makes running out of memory one clear message."""

    def __init__(self, what: str, key: str) -> None:
        self.what, self.key = what, key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            raise ResourceError(
                f"Out of memory in {self.what}: {' '.join(str(error).split())[:200]}", hint=f"Halve {self.key}."
            ) from error


def compute_all_features(config: Config, dataset: Dataset, *, progress: ProgressCallback) -> None:
    """The features that a training of `config` begins with, kept where it looks for them."""
    classifier, phases = build_and_plan(config, dataset.classes)
    prepare_features(
        classifier, dataset, [phase.cut for phase in phases], augment=config.augment, seed=config.seed,
        policy=config.cache, progress=progress,
    )  # fmt: skip

"""One training step of every phase, on real pictures: does it work, how long does it take, how much memory and disk?

    found = run(config, dataset)
    found.phases[0].step_seconds

Everything is measured with the code that trains: the features of one batch, then steps of the asked batch size, the
first of which (it is compiled) is not timed. The weights that change are thrown away.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from finetune import classifier as classifiers
from finetune import device, experiment, features, pipeline, training
from finetune.classifier import Classifier
from finetune.config import Config
from finetune.data import Dataset
from finetune.device import tf
from finetune.errors import ResourceError
from finetune.trial import PhaseTrial, Trial

POINTS = 61  # at which the learning rate is noted
TIMED_BATCHES = 2  # of features
TIMED_SECONDS = 0.3  # of steps, and one step at least
Progress = Callable[[int, int], None]


def run(config: Config, dataset: Dataset, *, progress: Progress = lambda done, total: None) -> Trial:
    """One step of every phase of `config` at its batch size.

    Raises what a training would raise: ConfigError, WeightsError, TrainingDiverged; ResourceError out of memory.
    """
    total = 3 + len(config.fine_tune)
    started = time.monotonic()
    classifier, phases = plan(config, dataset.classes)
    progress(1, total)
    with _explained("the frozen part of the network", "model.image_size"):
        experiment.try_one_batch(classifier, dataset, config.head.batch_size)
        reading_rate, feature_rate, inputs = _measure_features(classifier, dataset, phases)
    progress(2, total)
    tried = []
    for phase, rows in zip(phases, inputs, strict=True):
        with _explained(phase.name, "head.batch_size" if phase.index == 0 else "fine_tune.batch_size"):
            tried.append(_try_phase(phase, rows, classifier, dataset, config))
        progress(3 + phase.index, total)
    timed = TIMED_BATCHES * features.BATCH / feature_rate
    outlook = features.outlook(
        classifier, dataset, [phase.cut for phase in phases], augment=config.augment, seed=config.seed,
        policy=config.cache,
    )  # fmt: skip
    return Trial(
        at=datetime.now().astimezone().isoformat(timespec="seconds"),
        device=device.describe(),
        weights=classifier.weights_hash,
        warning=classifier.warning,
        start_seconds=time.monotonic() - started - timed,
        reading_rate=reading_rate,
        feature_rate=feature_rate,
        peak_memory=_peak_memory(),
        memory=None if device.GPUS else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        run_size=experiment.space(classifier, phases),
        feature_place=outlook.place,
        feature_size=outlook.size,
        feature_pictures=outlook.pictures,
        feature_files=tuple(tuple(map(str, row)) for row in outlook.files),
        phases=tuple(tried),
    )


def plan(config: Config, classes: Sequence[str]) -> tuple[Classifier, list[training.Phase]]:
    """The network and the phases of `config`. Raises ConfigError and WeightsError."""
    classifier = classifiers.build(config.model, classes, seed=config.seed)
    return classifier, training.plan(config, classifier)


def _measure_features(
    classifier: Classifier, dataset: Dataset, phases: Sequence[training.Phase]
) -> tuple[float, float, list[np.ndarray]]:
    """Pictures a second when only read, and through the frozen part; and one batch of features for every phase."""
    train = dataset.indices("train")
    indices = np.resize(train, (1 + TIMED_BATCHES) * features.BATCH)
    read = pipeline.reader(dataset.paths(np.arange(len(dataset))), classifier.transform)
    started = time.monotonic()
    for _ in pipeline.batches(read, indices[features.BATCH :], features.BATCH):
        pass
    reading = time.monotonic() - started
    extract = features.Extractor(classifier, [phase.cut for phase in phases])
    first: list[np.ndarray] = []
    for batch in pipeline.batches(read, indices, features.BATCH):
        outputs = extract(batch.images)
        if not first:  # the compiled one
            first, started = outputs, time.monotonic()
    count = TIMED_BATCHES * features.BATCH
    return count / reading, count / (time.monotonic() - started), first


def _try_phase(
    phase: training.Phase, rows: np.ndarray, classifier: Classifier, dataset: Dataset, config: Config
) -> PhaseTrial:
    trainer = training.PhaseTraining(
        phase,
        classifier,
        _Repeated(rows),
        dataset,
        seed=config.seed,
        batch_norm=config.model.batch_norm,
        progress=training.Progress(),
    )
    size = min(phase.settings.batch_size, len(trainer.train_indices))
    inputs = np.resize(rows, (size, *rows.shape[1:]))
    labels = np.resize(dataset.labels[trainer.train_indices[: features.BATCH]], size)
    step = _seconds(lambda: trainer.train_batch(inputs, labels))
    held_out = trainer.validation_indices[: training.VALIDATION_BATCH]
    validation = _seconds(lambda: trainer.logits(held_out)) / len(held_out)
    return PhaseTrial(
        name=phase.name,
        epochs=phase.settings.epochs,
        steps=trainer.steps_per_epoch,
        batch_size=size,
        blocks=phase.blocks,
        parameters=sum(int(np.prod(variable.shape)) for variable in trainer.above.trainable_variables),
        step_seconds=step,
        epoch_seconds=trainer.steps_per_epoch * step + len(trainer.validation_indices) * validation,
        rates=tuple(_rates(trainer)),
    )


class _Repeated:
    """A source (see `features.Source`) with the same few rows for whatever is asked."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0
    ) -> Iterator[np.ndarray]:
        for start in range(skip * batch_size, len(indices), batch_size):
            yield np.resize(self.rows, (len(indices[start : start + batch_size]), *self.rows.shape[1:]))


def _seconds(work: Callable[[], object]) -> float:
    """How long `work` takes once it is compiled: the mean of some."""
    work()
    started, times = time.monotonic(), 0
    while not times or time.monotonic() - started < TIMED_SECONDS:
        work()
        times += 1
    return (time.monotonic() - started) / times


def _rates(trainer: training.PhaseTraining) -> Iterator[float]:
    """The learning rate as the optimizer itself has it, from the first step to the last."""
    last = max(0, trainer.settings.epochs * trainer.steps_per_epoch - 1)
    for step in np.linspace(0, last, POINTS).round().astype(int):
        trainer.optimizer.iterations.assign(step)
        yield trainer.learning_rate


def _peak_memory() -> int:
    if device.GPUS:
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return device.peak_memory_mb() * 2**20


class _explained:
    """`with _explained("head", "head.batch_size"):` makes running out of memory one clear message."""

    def __init__(self, what: str, key: str) -> None:
        self.what, self.key = what, key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            raise ResourceError(
                f"Out of memory in {self.what}: {' '.join(str(error).split())[:200]}", remedy=f"Halve {self.key}."
            ) from error


def compute_features(config: Config, dataset: Dataset, *, progress: Progress) -> None:
    """The features that a training of `config` begins with, kept where it looks for them."""
    classifier, phases = plan(config, dataset.classes)
    features.prepare(
        classifier, dataset, [phase.cut for phase in phases], augment=config.augment, seed=config.seed,
        policy=config.cache, progress=progress,
    )  # fmt: skip

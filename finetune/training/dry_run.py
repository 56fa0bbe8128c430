"""A dry run: one training step of every phase on real images. Does it work, and what will the training cost?

    result = dry_run(config, dataset)
    result.phases[0].step_seconds

Everything is measured with the code that trains: the features of one batch, then steps of the configured batch size.
The first step of a phase compiles it and is not timed. The weights that change are thrown away.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
    FeatureRequest,
    build_classifier,
    plan_features,
    prepare_features,
    refuse_unreadable,
)
from finetune.training.distributed.group import process_group, use_devices
from finetune.training.loop import Trainer
from finetune.training.optimizers import learning_rate_schedule
from finetune.training.phases import Phase, plan_phases
from finetune.training.start_checks import (
    refuse_endless_accumulation,
    refuse_infinite,
    refuse_undistributable,
    run_folder_size,
)
from finetune.utils import ProgressCallback, ResourceError, describe_device, peak_memory_mb, tf, visible_gpus

RATE_POINTS = 61  # steps at which the learning rate is noted
TIMED_SECONDS = 0.3  # steps are timed for so long, and one step at least
FORWARD = 1 / 3  # of the time of a step: the backward pass costs twice the forward pass


@dataclass(frozen=True)
class PhaseDryRun:
    """What a step of one phase costs, in seconds on this machine as busy as it is now."""

    name: str
    epochs: int
    steps: int  # per epoch
    batch_size: int
    blocks: tuple[str, ...]  # unfrozen ones
    parameters: int  # trainable ones
    step_seconds: float
    epoch_seconds: float  # all steps and the validation, on cached features
    rates: tuple[float, ...]  # the learning rate at `RATE_POINTS` steps, evenly from the first to the last


@dataclass(frozen=True)
class DryRun:
    """What a dry run showed. Sizes in bytes, rates in images per second."""

    at: str  # date and time, ISO 8601
    device: str
    weights: str | None  # SHA-256 of the file
    warning: str
    start_seconds: float  # to build the network and to compile every phase
    reading_rate: float
    feature_rate: float  # reading and the whole frozen part
    image_size: int  # of the input, in pixels
    peak_memory: int  # of this process, or of the GPU where there is one
    memory: int | None  # of this machine; None where there is a GPU
    run_size: int  # upper bound of the size of the run folder
    feature_place: str  # disk, memory or off
    feature_size: int
    feature_pictures: tuple[int, ...]  # images of each view; named as in the JSON
    feature_files: tuple[tuple[str, ...], ...]  # by cut (the head's first) and view
    phases: tuple[PhaseDryRun, ...]

    @property
    def missing_by_view(self) -> tuple[int, ...]:
        """Images of each view that still have to go through the frozen part before the first epoch."""
        if self.feature_place == "off":
            return (0,) * len(self.feature_pictures)
        if not self.feature_files:  # kept in memory
            return self.feature_pictures
        views = zip(self.feature_pictures, zip(*self.feature_files, strict=True), strict=True)
        return tuple(0 if all(map(os.path.exists, files)) else images for images, files in views)

    @property
    def missing_features(self) -> int:
        """All of these, an image counted once per view."""
        return sum(self.missing_by_view)

    @property
    def pooled_features(self) -> np.ndarray | None:
        """The pooled features of the frozen backbone for every image, (N, channels); None unless they are cached."""
        try:
            return np.asarray(np.load(self.feature_files[0][0], mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError, IndexError):
            return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def dry_run(config: Config, dataset: Dataset, *, progress: ProgressCallback = lambda done, total: None) -> DryRun:
    """Run one step of every phase of `config` at its batch size.

    Raises what a training would raise: ConfigError, WeightsError, TrainingDiverged; ResourceError out of memory.
    """
    with use_devices(config.device):
        total = 3 + len(config.fine_tune)
        started = time.monotonic()
        classifier, phases = build_and_plan(config, dataset.classes)
        refuse_endless_accumulation(phases, dataset, config)
        refuse_undistributable(phases, classifier, config, len(dataset.indices("train")))
        # Before any step: the cache key of features holds the weights that they were made with.
        plan = plan_features(_features_of(classifier, dataset, phases, config), policy=config.cache)
        progress(1, total)
        with _explain_out_of_memory("the frozen part of the network", "model.image_size"):
            reading_rate, feature_rate, features = _measure_features(classifier, dataset, phases)
        progress(2, total)
        phase_results = []
        for phase, rows in zip(phases, features, strict=True):
            with _explain_out_of_memory(phase.name, "head.batch_size" if phase.index == 0 else "fine_tune.batch_size"):
                phase_results.append(_run_steps(phase, rows, classifier, dataset, config))
            progress(3 + phase.index, total)
        gpu = bool(visible_gpus())
        return DryRun(
            at=datetime.now().astimezone().isoformat(timespec="seconds"),
            device=describe_device(),
            weights=classifier.weights_hash,
            warning=classifier.warning,
            start_seconds=time.monotonic() - started,
            reading_rate=reading_rate,
            feature_rate=feature_rate,
            image_size=classifier.spec.image_size,
            peak_memory=tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpu else peak_memory_mb() * 2**20,
            memory=None if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            run_size=run_folder_size(classifier, phases),
            feature_place=plan.place,
            feature_size=plan.size,
            feature_pictures=plan.images,
            feature_files=tuple(tuple(map(str, row)) for row in plan.paths),
            phases=tuple(phase_results),
        )


def build_and_plan(config: Config, classes: Sequence[str]) -> tuple[Classifier, list[Phase]]:
    """Build the network and the phases of `config`. Raises ConfigError and WeightsError."""
    classifier = build_classifier(config.model, classes, seed=config.seed, multi_label=config.data.multi_label)
    return classifier, plan_phases(config, classifier)


def compute_all_features(config: Config, dataset: Dataset, *, progress: ProgressCallback) -> None:
    """Compute and cache the features that a training of `config` begins with; the training will find them."""
    with use_devices(config.device):
        classifier, phases = build_and_plan(config, dataset.classes)
        prepare_features(_features_of(classifier, dataset, phases, config), policy=config.cache, progress=progress)


def _features_of(classifier: Classifier, dataset: Dataset, phases: Sequence[Phase], config: Config) -> FeatureRequest:
    return FeatureRequest(classifier, dataset, [phase.cut for phase in phases], config.augment, config.seed)


def _measure_features(
    classifier: Classifier, dataset: Dataset, phases: Sequence[Phase]
) -> tuple[float, float, list[np.ndarray]]:
    """Images per second when only read, and through the frozen part; and one batch of features for every phase."""
    paths = dataset.paths(np.arange(len(dataset)))
    chosen = np.resize(dataset.indices("train"), FEATURE_BATCH)
    started = time.monotonic()
    (batch,) = image_batches(image_reader(paths, classifier.transform), chosen, FEATURE_BATCH)
    reading = (time.monotonic() - started) / FEATURE_BATCH
    refuse_unreadable(batch, paths)
    extract = FeatureExtractor(classifier, [phase.cut for phase in phases])
    features = extract(batch.images)  # compiles
    for rows in features:
        refuse_infinite(classifier, rows)
    network = _mean_seconds(lambda: extract(batch.images)) / FEATURE_BATCH
    # A GPU computes while the processor reads; without one, both need the same cores.
    both = max(reading, network) if visible_gpus() else reading + network
    return 1 / reading, 1 / both, features


def _run_steps(phase: Phase, rows: np.ndarray, classifier: Classifier, dataset: Dataset, config: Config) -> PhaseDryRun:
    if phase.settings.learning_rate == "auto":  # it is chosen before the phase begins; any rate will do for timing
        phase = replace(phase, settings=phase.settings.model_copy(update={"learning_rate": 1e-3}))
    source = CachedFeatures((rows,), np.arange(len(rows)))
    trainer = Trainer(phase, classifier, source, dataset, config=config)
    size = min(phase.settings.batch_size, len(trainer.train_indices))
    inputs = np.resize(rows, (size, *rows.shape[1:]))
    labels = dataset.labels[np.resize(trainer.train_indices[:FEATURE_BATCH], size)]
    trainer.train_batch(inputs, labels)  # compiles
    step = _mean_seconds(lambda: trainer.train_batch(inputs, labels))
    validation = FORWARD * step * len(trainer.validation_indices) / size
    total = trainer.settings.epochs * trainer.steps_per_epoch
    schedule = learning_rate_schedule(trainer.settings, total)
    points = np.linspace(0, max(0, total - 1), RATE_POINTS).round()
    return PhaseDryRun(
        name=phase.name,
        epochs=phase.settings.epochs,
        steps=trainer.steps_per_epoch,
        batch_size=size,
        blocks=phase.blocks,
        parameters=sum(int(np.prod(variable.shape)) for variable in trainer.above.trainable_variables),
        step_seconds=step,
        epoch_seconds=trainer.steps_per_epoch * step + validation,
        rates=tuple(float(schedule(point)) if callable(schedule) else schedule for point in points),
    )


def _mean_seconds(work: Callable[[], object]) -> float:
    """The mean time of `work`, over `TIMED_SECONDS`; processes that train together do it equally often."""
    started, times = time.monotonic(), 0
    while not times or process_group().broadcast(time.monotonic() - started < TIMED_SECONDS):
        work()
        times += 1
    return (time.monotonic() - started) / times


@contextmanager
def _explain_out_of_memory(part: str, key: str) -> Iterator[None]:
    """Turn running out of memory in `part` of the work into a ResourceError that says to halve `key`."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise ResourceError(
            f"Out of memory in {part}: {' '.join(str(error).split())[:200]}", hint=f"Halve {key}."
        ) from error

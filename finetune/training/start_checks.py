"""What cannot work fails before the long part: weights, disk space, one batch, and what several devices cannot do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import finetune
from finetune.config import Config, dump_config
from finetune.data import Dataset, balanced_epoch_order, image_batches, image_reader
from finetune.models import FEATURE_BATCH, Classifier
from finetune.runs import Checkpoint, Run
from finetune.training.distributed.group import ProcessGroup, process_group
from finetune.training.phases import Phase, all_layers, freeze_below
from finetune.training.run_journal import read_run_facts, write_run_facts
from finetune.utils import ConfigError, DataError, UsageError, WeightsError, keras, library_versions, sha256_of

LOG_BYTES = 20_000_000  # for TensorBoard, report and tables


def refuse_other_weights(run: Run, classifier: Classifier) -> None:
    """Note the weights that the run begins with; WeightsError where a resumed run finds others."""
    before = read_run_facts(run).get("weights")
    if before and before != classifier.weights_hash:
        raise WeightsError(
            f"{run.path} began with other weights: SHA-256 {before}, now {classifier.weights_hash}.",
            hint="Bring the file of config.yaml's model.weights back, or start a new run.",
        )
    write_run_facts(run, weights=classifier.weights_hash)


def run_folder_size(classifier: Classifier, phases: Sequence[Phase]) -> int:
    """Bytes that the run folder may come to: the model, the logs, and three checkpoints of the deepest phase.

    A checkpoint has the weights of now, of the best epoch and of the beginning, and Adam's two moments; two are kept
    while a third is written.
    """
    deepest = max(keras.Model(phase.cut, classifier.model.output).count_params() for phase in phases)
    return int(4 * (3 * 5 * deepest + classifier.model.count_params())) + LOG_BYTES


def refuse_endless_accumulation(phases: Sequence[Phase], dataset: Dataset, config: Config) -> None:
    """ConfigError if an epoch of a phase has fewer batches than make a step (`accumulate`)."""
    labels = dataset.labels[dataset.indices("train")]
    if config.imbalance == "oversample":
        labels = labels[balanced_epoch_order(labels, seed=0, epoch=0)]
    for phase in phases:
        batches, needed = -(-len(labels) // phase.settings.batch_size), phase.settings.accumulate
        if needed > batches:
            raise ConfigError(
                f"{phase.name}: {needed} batches make a step (accumulate), and an epoch has only {batches} of "
                f"{phase.settings.batch_size} images: it would end without a step.",
                hint=f"Choose accumulate={batches} or less, or a smaller batch_size.",
            )


def try_one_batch(classifier: Classifier, dataset: Dataset, batch_size: int) -> None:
    """WeightsError unless the whole model gives finite scores for one batch of training images."""
    paths = dataset.paths(dataset.indices("train")[: min(batch_size, FEATURE_BATCH)])
    batch = next(image_batches(image_reader(paths, classifier.transform), np.arange(len(paths)), len(paths)))
    scores = classifier.model(batch.images.astype("float32"), training=False)
    refuse_infinite(classifier, keras.ops.convert_to_numpy(scores))


def refuse_infinite(classifier: Classifier, values: np.ndarray) -> None:
    """WeightsError unless all `values`, which came out of `classifier`, are finite numbers."""
    if not np.isfinite(values).all():
        raise WeightsError(
            f"{classifier.spec.backbone} gives NaN or infinity for the first images.",
            hint="Its weights are damaged: `finetune weights verify` says which file.",
        )


# --------------------------------------------------------------------- several devices and processes


def assert_same_command(group: ProcessGroup, config: Config | None) -> None:
    """UsageError, naming the rank, if one was given another config than rank 0 or is another version.

    `config` is the one of the command line, None without one.
    """
    text = dump_config(config.model_copy(update={"output": Path("runs")})) if config else "none"
    facts = {"config": sha256_of([text.encode()]), "finetune": finetune.__version__, **library_versions()}
    group.assert_same_on_all_ranks(facts, UsageError, hint="Start all with the same command, files and installation.")


def assert_same_start(
    group: ProcessGroup, dataset: Dataset, classifier: Classifier, checkpoint: Checkpoint | None
) -> None:
    """DataError or WeightsError, naming the rank, if one has other images, weights or checkpoint than rank 0."""
    if group.world_size == 1:
        return
    rows = zip(dataset.names, dataset.hashes, dataset.labels.tolist(), dataset.splits.tolist(), strict=True)
    group.assert_same_on_all_ranks({"images": sha256_of(repr(row).encode() for row in rows)}, DataError)
    weights = sha256_of(variable.numpy().tobytes() for variable in classifier.model.variables)
    group.assert_same_on_all_ranks(
        {"weights": weights, "checkpoint": checkpoint.name if checkpoint else "none"},
        WeightsError,
        hint="All must read the same weight file, and the run folder must be on storage that all can reach.",
    )


def refuse_undistributable(phases: Sequence[Phase], classifier: Classifier, config: Config, images: int) -> None:
    """ConfigError if several devices cannot train any of `phases` as one would; `images`: to train on."""
    group = process_group()
    if group.is_single_device:
        return
    for phase in phases:
        above = freeze_below(classifier, phase.cut, batch_norm=config.model.batch_norm)
        refuse_if_not_exact(group, list(all_layers(above)), phase.settings.batch_size, images)


def refuse_if_not_exact(group: ProcessGroup, layers: Sequence[Any], batch_size: int, images: int) -> None:
    """ConfigError for layers above the cut that would not give the same result as on one device, with the reason."""
    if group.is_single_device:
        return
    where = group.describe()
    training_norms = [
        layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if training_norms and group.num_replicas > group.world_size:
        raise ConfigError(
            f"model.batch_norm=train cannot be used on {where}: the devices of a process use the same statistics.",
            hint="Use batch_norm=frozen or recalibrate, or one process per device: --nproc.",
        )
    if training_norms and 0 < images % batch_size < group.num_replicas:
        raise ConfigError(
            f"model.batch_norm=train on {where}: the last batch of an epoch has {images % batch_size} images, and "
            "a device without any has no statistics.",
            hint=f"Choose another batch_size than {batch_size}.",
        )
    for layer in layers:
        if hasattr(layer, "seed_generator") and type(layer) is not keras.layers.Dropout:
            raise ConfigError(
                f"{type(layer).__name__} ({layer.name}) draws random numbers per batch, which cannot be the same "
                f"on {where} as on one.",
                hint="Use another backbone, or train on one device.",
            )

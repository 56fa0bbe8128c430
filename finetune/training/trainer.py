"""Training, phase by phase: freeze, cut, fit, keep the best weights, prove that what was frozen stayed frozen.

    head        the backbone is frozen; only the new head learns
    fine_tune   the deepest blocks learn too, gently

A phase trains the part above its cut on what comes out below it (see `features`). The loop is written out, in plain
sight: an interrupted run must continue with the same batch, the same random numbers and the same best weights, and
`keras.Model.fit` keeps some of these to itself. A run is a list of finished steps; starting is resuming an empty one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.backbones import select_blocks
from finetune.config import Config, FineTuneConfig, PhaseConfig as Settings
from finetune.data import Dataset, MixUpCutMix, balanced_epoch_order, epoch_order
from finetune.evaluation import ValidationScores, score_logits
from finetune.models import Classifier, FeatureSource, all_rows
from finetune.training.distributed.group import (
    Shard,
    SynchronizedLayers,
    explain_lost_process,
    process_group,
    refuse_if_not_exact,
)
from finetune.training.fast_conv1x1 import fast_conv1x1
from finetune.training.losses import loss_for
from finetune.training.optimizers import build_optimizer, layer_scales, lower_learning_rate, scale_learning_rates
from finetune.utils import FinetuneError, TrainingDiverged, keras, sha256_of, tf, visible_gpus

CHECKPOINT_SECONDS = 60.0  # at most this much work is lost to a kill
VALIDATION_BATCH = 128
BASELINE_SCORES = "mark"  # in a checkpoint: what the validation images scored when the phase began


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one answer to "what is trainable": everything above `cut`."""

    index: int
    name: str
    settings: Settings
    cut: Any
    blocks: tuple[str, ...]  # names of the unfrozen blocks


@dataclass
class TrainingState:
    """Where a phase stands; together with the variables this is all that a resumed run needs."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # over all phases, the axis of TensorBoard
    loss_sum: float = 0.0
    correct: float = 0  # the sum of how right the answers were
    seen: int = 0
    seconds: float = 0.0  # of this epoch
    best: dict[str, float] = field(default_factory=dict)  # {"epoch", "loss", "accuracy"} on validation
    waited: int = 0  # epochs since the best one


@dataclass(frozen=True)
class PhaseResult:
    """What a phase came to; `validation` is measured with the weights that were kept."""

    name: str
    epochs: int
    best_epoch: int  # 0: no epoch beat the weights that the phase began with, and those were kept
    validation: dict[str, float]


class Callback:
    """Is told what happens during training. This one says nothing; the terminal and TensorBoard listen."""

    def phase_started(self, training: "Trainer") -> None: ...

    def step_done(self, training: "Trainer", loss: float, learning_rate: float) -> None: ...

    def epoch_done(self, training: "Trainer", row: Mapping[str, Any]) -> None: ...

    def phase_done(self, training: "Trainer", result: PhaseResult) -> None: ...

    def close(self) -> None:
        """It is over, whether it went well or not."""


def plan_phases(config: Config, classifier: Classifier) -> list[Phase]:
    """The phases that `config` asks for. Raises ConfigError when `unfreeze` names nothing in this backbone."""
    phases = [Phase(0, "head", config.head, classifier.head_input, ())]
    found = classifier.blocks()
    for number, settings in enumerate(config.fine_tune, start=1):
        opened = select_blocks(found, settings.unfreeze)
        name = "fine_tune" if len(config.fine_tune) == 1 else f"fine_tune_{number}"
        phases.append(Phase(number, name, settings, opened[0].input, tuple(block.name for block in opened)))
    return phases


def freeze_below(classifier: Classifier, cut: Any, *, batch_norm: str) -> Any:
    """Makes the layers above `cut` trainable and no others; returns the model above the cut.

    BatchNorm above the cut stays frozen unless `batch_norm` is `train`: with it unfrozen, a few hundred images
    overwrite statistics gathered from a million (Keras' transfer-learning guide; DESIGN, decision 2).
    """
    above = keras.Model(cut, classifier.model.output)
    ours = {id(layer) for layer in above.layers}
    for layer in classifier.model.layers:
        layer.trainable = id(layer) in ours and layer.name != "preprocessing"
    for layer in _all_layers(above):
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm != "train":
            layer.trainable = False
    return above


def refuse_undistributable(phases: Sequence[Phase], classifier: Classifier, config: Config, images: int) -> None:
    """ConfigError if several devices cannot give the same result in any of `phases` as one; `images`: to train on."""
    group = process_group()
    for phase in () if group.alone else phases:
        above = freeze_below(classifier, phase.cut, batch_norm=config.model.batch_norm)
        refuse_if_not_exact(group, list(_all_layers(above)), phase.settings.batch_size, images)


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _all_layers(layer)


# -------------------------------------------------------------------------------------------------- the phase


class Trainer:
    """One phase in progress: the model above the cut, its optimizer, and how far it has come."""

    def __init__(
        self,
        phase: Phase,
        classifier: Classifier,
        source: FeatureSource,
        dataset: Dataset,
        *,
        config: Config,
        progress: TrainingState,
    ) -> None:
        self.phase = phase
        self.settings = phase.settings
        self.classifier = classifier
        self.source = source
        self.dataset = dataset
        self.config = config
        self.seed = config.seed
        self.progress = progress
        self.group = process_group()
        self.above = freeze_below(classifier, phase.cut, batch_norm=config.model.batch_norm)
        self.train_indices = dataset.indices("train")
        self.validation_indices = dataset.indices("validation")
        self.steps_per_epoch = -(-len(self._order()[1]) // self.settings.batch_size)
        self.optimizer = build_optimizer(self.settings, self.settings.epochs * self.steps_per_epoch)
        self.optimizer.build(self.above.trainable_variables)
        if isinstance(self.settings, FineTuneConfig):
            scales = layer_scales(classifier.blocks(), self.above, self.settings.layer_decay)
            scale_learning_rates(self.optimizer, scales)
        self.mark: np.ndarray | None = None  # scores of the validation images when the phase began: what to beat
        self.best_weights: list[np.ndarray] = []
        self._mixer = MixUpCutMix(config.augment, spatial=len(phase.cut.shape) == 4)
        self._step = _compile_step(self)
        self._logits = _compile(self.above)

    @property
    def learning_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    def epoch_batches(self, *, whole: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(features, labels) of what is left of the current epoch, in an order that only seed and epoch decide.

        Labels are those of the whole batch, features those of the rows that this process works on, unless `whole`.
        """
        key, shuffled = self._order()
        size, skip = self.settings.batch_size, self.progress.batch
        labels = self.dataset.labels[shuffled]
        rows = all_rows if whole or self._mixer else self.group.held  # a pair to mix may be divided
        batches = self.source.batches(shuffled, key, size, skip=skip, rows=rows)
        for number, batch in enumerate(batches, start=skip):
            yield batch, labels[number * size : number * size + size]

    def _order(self) -> tuple[int, np.ndarray]:
        """(number of the current epoch among those of all phases, training images in the order of that epoch)."""
        key = self.phase.index * 100_000 + self.progress.epoch
        if self.config.imbalance == "oversample":
            places = balanced_epoch_order(self.dataset.labels[self.train_indices], seed=self.seed, epoch=key)
        else:
            places = epoch_order(len(self.train_indices), seed=self.seed, epoch=key)
        return key, self.train_indices[places]

    def train_batch(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """One optimizer step: its loss and learning rate.

        Raises TrainingDiverged, with the weights of the step before still in place.
        """
        loss, rate, correct, finite = self.try_step(inputs, labels)
        if not finite:
            raise self.group.everywhere(self._diverged())
        self.progress.batch += 1
        self.progress.step += 1
        self.progress.loss_sum += loss * len(labels)
        self.progress.correct += correct
        self.progress.seen += len(labels)
        return float(loss), float(rate)

    def try_step(self, inputs: np.ndarray, labels: np.ndarray) -> list[float]:
        """[loss, learning rate, correct answers, 1 if all is finite]; counts nothing."""
        if self._mixer:
            self._mixer.reseed((self.seed, self.phase.index, self.progress.step))
        asked = tf.constant(float(self.group.asked()))
        with explain_lost_process():
            outcome = self._step(tf.convert_to_tensor(inputs), tf.convert_to_tensor(labels), asked)
            *values, asked_of_all = outcome.numpy().tolist()
        self.group.stopping |= asked_of_all > 0
        return list(values)

    def _diverged(self) -> TrainingDiverged:
        _, shuffled = self._order()
        first = self.progress.batch * self.settings.batch_size
        names = [self.dataset.names[index] for index in shuffled[first : first + self.settings.batch_size]]
        return TrainingDiverged(
            f"{self.phase.name}, epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}: the loss, a "
            f"gradient or a weight is no longer a finite number. The last good checkpoint is kept.",
            hint=f"Try learning_rate={float(self.settings.learning_rate) / 10:g} for {self.phase.name}. "
            f"The images of this batch: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        )

    def logits(self, indices: np.ndarray) -> np.ndarray:
        """Class scores (n, classes) of undisturbed images, with the weights as they are now; by this process."""
        return _scores(self._logits, self.source, indices, len(self.classifier.classes))

    def validate(self) -> ValidationScores:
        """Measures the weights as they are now; with `ema`, their moving average. Each process measures its share."""
        count = len(self.validation_indices)
        share = self.group.share(count, VALIDATION_BATCH)
        mine = self.validation_indices[share]
        found = score_logits(self.logits(mine), self.dataset.labels[mine])
        join = self.group.joined
        return ValidationScores(join(found.losses, share, count), join(found.correct.astype(np.float64), share, count))

    def set_mark(self) -> None:
        """What the phase begins with is kept unless an epoch beats it by more than noise (see `keep_if_better`)."""
        found = self.validate()
        self.mark = found.scores(self.settings.monitor)
        self._keep(found)

    def keep_if_better(self, found: ValidationScores) -> bool:
        """Keeps the present weights if they are the best of the phase, and clearly better than its beginning."""
        best, monitor = self.progress.best, self.settings.monitor
        if self.mark is not None and best["epoch"] == 0:
            better = improves_significantly(found.scores(monitor), self.mark)
        else:
            better = not best or _is_better(found, best, monitor)
        if better:
            self._keep(found)
        else:
            self.progress.waited += 1
        return better

    def _keep(self, found: ValidationScores) -> None:
        self.progress.best = {"epoch": self.progress.epoch, **found.means}
        self.progress.waited = 0
        self.best_weights = [variable.numpy() for variable in self.above.variables]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the trainable weights are their moving averages, if the config asks for `ema`."""
        if self.settings.ema is None:
            yield
            return
        variables = self.above.trainable_variables
        with weights_kept(variables):
            self.optimizer.finalize_variable_values(variables)
            yield

    def agree(self) -> None:
        """FinetuneError if the processes of this training have come to different weights."""
        if self.group.size > 1:
            weights = sha256_of(variable.numpy().tobytes() for variable in self.above.variables)
            self.group.agree({f"weights of {self.phase.name}, epoch {self.progress.epoch}": weights})

    def restore_best(self) -> None:
        _put(self.above.variables, self.best_weights)

    @property
    def finished(self) -> bool:
        patience = self.settings.patience
        enough = patience is not None and self.progress.waited >= patience
        return self.progress.epoch >= self.settings.epochs or enough

    # --- what a checkpoint holds

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a resumed phase needs."""
        held = self.trained_arrays()
        held |= {f"optimizer/{at}": variable.numpy() for at, variable in enumerate(self.optimizer.variables)}
        held |= {f"best/{at}": value for at, value in enumerate(self.best_weights)}
        return held if self.mark is None else held | {BASELINE_SCORES: self.mark}

    def trained_arrays(self) -> dict[str, np.ndarray]:
        """Every variable that this phase or one before it may have changed, by its place in the model."""
        return {f"model/{at}": self._model_variables[at].numpy() for at in self._trained_positions()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        for at, variable in enumerate(self.optimizer.variables):
            variable.assign(arrays[f"optimizer/{at}"])
        self.mark = arrays.get(BASELINE_SCORES)
        self.best_weights = [arrays[f"best/{at}"] for at in range(sum(key.startswith("best/") for key in arrays))]

    @property
    def _model_variables(self) -> list[Any]:
        return list(self.classifier.model.variables)

    def _trained_positions(self) -> list[int]:
        touched = {id(variable) for variable in self.above.variables}
        changed = self.classifier.changed | touched
        return [at for at, variable in enumerate(self._model_variables) if id(variable) in changed]


def logits_above(classifier: Classifier, phase: Phase, source: FeatureSource, indices: np.ndarray) -> np.ndarray:
    """Class scores (n, classes) of undisturbed images, from what comes out at the cut of `phase`."""
    above = keras.Model(phase.cut, classifier.model.output)
    return _scores(_compile(above), source, indices, len(classifier.classes))


def _compile(above: Any) -> Any:
    return tf.function(lambda x: above(x, training=False), autograph=False, reduce_retracing=True)


def _scores(forward: Any, source: FeatureSource, indices: np.ndarray, classes: int) -> np.ndarray:
    parts = [forward(tf.convert_to_tensor(x)).numpy() for x in source.batches(indices, None, VALIDATION_BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, classes), np.float32)


@contextmanager
def weights_kept(variables: Sequence[Any]) -> Iterator[None]:
    """Whatever the block does to `variables` is undone at its end."""
    kept = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        _put(variables, kept)


def _put(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def restore_model(classifier: Classifier, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts the model's part of a checkpoint back."""
    variables = list(classifier.model.variables)
    for key, value in arrays.items():
        kind, _, at = key.partition("/")
        if kind == "model":
            variables[int(at)].assign(value)
            classifier.changed.add(id(variables[int(at)]))


def run_phase(
    training: Trainer,
    *,
    has_start: bool,
    watcher: Callback,
    commit: Callable[[Trainer], None],
    record: Callable[[Mapping[str, Any]], None],
    check_stop: Callable[[], None],
) -> PhaseResult:
    """Trains until the phase is done; the model ends with the best weights, by validation, of the phase.

    `has_start` says that the weights are worth something already (an earlier phase, or a regression): then they stay
    unless an epoch beats them by more than noise. `commit` saves a checkpoint, `record` a row of the history;
    `check_stop` raises Stopped when the user or the system asked to stop, and then the last batch is committed first.
    """
    progress, phase = training.progress, training.phase
    frozen = frozen_digest(training)
    watcher.phase_started(training)
    if has_start and not training.best_weights:
        training.set_mark()
    committed = time.monotonic()
    while not training.finished:
        started = time.monotonic() - progress.seconds
        for inputs, labels in training.epoch_batches():
            loss, rate = training.train_batch(inputs, labels)
            progress.seconds = time.monotonic() - started
            watcher.step_done(training, loss, rate)
            if time.monotonic() - committed > CHECKPOINT_SECONDS:
                commit(training)
                committed = time.monotonic()
            _stop_cleanly(check_stop, commit, training)
        row = _finish_epoch(training, time.monotonic() - started)
        training.agree()
        record(row)
        watcher.epoch_done(training, row)
        if time.monotonic() - committed > 1.0:  # epochs of milliseconds need no checkpoint each
            commit(training)
            committed = time.monotonic()
        _stop_cleanly(check_stop, commit, training)
    if training.best_weights:
        training.restore_best()
    audit(training, frozen)
    if training.config.model.batch_norm == "recalibrate":
        _recalibrate(training)
        audit(training, frozen)
    training.classifier.changed |= {id(variable) for variable in training.above.variables}
    best = dict(progress.best)
    result = PhaseResult(phase.name, progress.epoch, int(best.pop("epoch", 0)), best)
    watcher.phase_done(training, result)
    return result


def _stop_cleanly(check_stop: Callable[[], None], commit: Callable[[Trainer], None], training: Trainer) -> None:
    try:
        check_stop()
    except FinetuneError:
        commit(training)
        raise


def _finish_epoch(training: Trainer, seconds: float) -> dict[str, Any]:
    """Validates, keeps the weights if they are the best so far, and moves on to the next epoch."""
    progress = training.progress
    with training.averaged():
        found = training.validate()
        row = {
            "phase": training.phase.name,
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / progress.seen,
            "accuracy": progress.correct / progress.seen,
            "validation_loss": found.loss,
            "validation_accuracy": found.accuracy,
            "learning_rate": training.learning_rate,
            "step": progress.step,
            "seconds": round(seconds, 3),
        }
        progress.epoch += 1
        progress.batch = progress.correct = progress.seen = 0
        progress.loss_sum = progress.seconds = 0.0
        training.keep_if_better(found)
    if training.settings.schedule == "plateau":
        lower_learning_rate(training.optimizer, progress.waited)
    return row


def improves_significantly(new: np.ndarray, old: np.ndarray) -> bool:
    """Whether scores (n,) of the same images rose by more than one standard error of the sum of their differences.

    The one-standard-error rule (Breiman et al. 1984) on pairs, the error being that of no true change: what rose by
    less may be chance, and then the simpler model stays.
    """
    gain = new - old
    return bool(gain.sum() > np.sqrt(np.square(gain).sum()))


def _is_better(new: ValidationScores, best: Mapping[str, float], monitor: str) -> bool:
    """By accuracy, the loss deciding between equals; or by loss alone."""
    if monitor == "accuracy" and new.accuracy != best["accuracy"]:
        return new.accuracy > best["accuracy"]
    return new.loss < best["loss"]


def _recalibrate(training: Trainer) -> None:
    """Statistics of the unfrozen BatchNorm layers, gathered anew from the training images with the weights as they
    are now (precise statistics, Wu & Johnson 2021); put back if validation says that the old ones were better."""
    layers = [layer for layer in _all_layers(training.above) if isinstance(layer, keras.layers.BatchNormalization)]
    if not layers or training.phase.index == 0:
        return
    before, kept = training.validate(), [variable.numpy() for variable in training.above.variables]
    momenta, share = [layer.momentum for layer in layers], tf.Variable(0.0, dtype=keras.config.floatx())
    for layer in layers:
        layer.trainable, layer.momentum = True, share
    forward = tf.function(lambda x: training.above(x, training=True), autograph=False, reduce_retracing=True)
    for number, (inputs, _) in enumerate(training.epoch_batches(whole=True)):  # each process gathers all of it
        share.assign(number / (number + 1))  # a plain mean over all batches
        forward(tf.convert_to_tensor(inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.trainable, layer.momentum = False, momentum
    after, monitor = training.validate(), training.settings.monitor
    if _is_better(after, before.means, monitor):
        training.progress.best |= after.means
    else:
        _put(training.above.variables, kept)


# ------------------------------------------------------------------------------------------------ one step


def _compile_step(training: Trainer) -> Any:
    """`(inputs, labels, asked) -> [loss, learning rate, correct, finite, asked]`; `asked`: to stop.

    A step that is not finite changes no weight. Each device does its part of the batch, and the sums of what they
    found decide on all of them.
    """
    above, optimizer, mixer, group = training.above, training.optimizer, training._mixer, training.group
    classes, task_loss = len(training.classifier.classes), loss_for(training.dataset.label_type)
    real, loss_of = tf.as_dtype(keras.config.floatx()), task_loss.total(training.settings.label_smoothing)
    trainable = above.trainable_variables
    layers = list(_all_layers(above))
    joint = SynchronizedLayers(group, layers)
    weights, offsets = _against_imbalance(training)

    def slopes_of(part: Shard, inputs: Any, wanted: Any, labels: Any, asked: Any) -> list[Any]:
        with tf.GradientTape() as tape, fast_conv1x1([] if visible_gpus() else layers), joint.on(part):
            logits = tf.cast(above(inputs, training=True), real)
            loss = part.weight * loss_of(wanted, logits + offsets, weights) / tf.cast(part.count, real)
            total = tf.add_n([loss, *(own / group.parts for own in above.losses)])
        correct = part.weight * tf.cast(task_loss.correct(logits, labels), real)
        return [total, loss, correct, tf.cast(asked, real), *tape.gradient(total, trainable)]

    @tf.function(autograph=False, reduce_retracing=True)
    def step(inputs: Any, labels: Any, asked: Any) -> Any:
        wanted = task_loss.encode(labels, classes)  # (N, classes)
        if mixer:
            inputs, wanted = mixer(inputs, wanted)
        joint.draw()
        total, loss, correct, asked, *slopes = group.total_of_parts(
            lambda part: slopes_of(part, part.held(inputs), part.rows(wanted), part.rows(labels), asked),
            count=tf.shape(labels)[0],
            held=tf.shape(inputs)[0],
        )
        rate = tf.cast(optimizer.learning_rate, real)
        good = tf.math.is_finite(total) & tf.math.is_finite(tf.linalg.global_norm(slopes))
        tf.cond(good, lambda: _apply(optimizer, slopes, trainable), lambda: tf.constant(False))
        # A ReLU that oneDNN has fused turns NaN into 0, so a healthy loss proves nothing about the weights.
        good &= tf.math.is_finite(tf.linalg.global_norm([variable.value for variable in trainable]))
        return tf.stack([loss, rate, correct, tf.cast(good, real), asked])

    return step


def _against_imbalance(training: Trainer) -> tuple[Any, Any]:
    """(weight of an image of each class in the loss, what is added to the logits while training), both (classes,).

    `weights`: see `losses`. `logit_adjust`: the logarithm of how common it is,
    so that the logits themselves learn to do without it (Menon et al. 2021).
    """
    common = class_frequencies(training)
    weights, offsets = np.ones(len(common)), np.zeros(len(common))
    if training.config.imbalance == "weights":
        weights = loss_for(training.dataset.label_type).class_weights(common)
    if training.config.imbalance == "logit_adjust":
        offsets = np.log(common)
    real = keras.config.floatx()
    return tf.constant(weights, real), tf.constant(offsets, real)


def class_frequencies(training: Trainer) -> np.ndarray:
    """How common each class is among the training images (classes,), in 0..1; above 0 for all."""
    labels = training.dataset.labels[training.train_indices]
    counts = training.dataset.label_type.counts(labels, len(training.classifier.classes))
    return np.asarray(np.maximum(counts, 1) / max(1, len(labels)))


def _apply(optimizer: Any, slopes: Any, variables: Any) -> Any:
    optimizer.apply(slopes, variables)
    return tf.constant(True)


# ------------------------------------------------------------------------------------------------- the audit


def frozen_digest(training: Trainer) -> str:
    """SHA-256 of everything that this phase must not change: weights below the cut and frozen BatchNorm above it."""
    learning = {id(variable) for variable in training.above.trainable_variables}
    for layer in _all_layers(training.above):
        moves = layer.trainable or training.config.model.batch_norm == "recalibrate"
        if isinstance(layer, keras.layers.BatchNormalization) and moves:
            learning |= {id(layer.moving_mean), id(layer.moving_variance)}  # its statistics may move
    frozen = [weight for weight in training.classifier.model.weights if id(weight) not in learning]
    return sha256_of(np.ascontiguousarray(weight.numpy()).data for weight in frozen)


def audit(training: Trainer, before: str) -> None:
    """Raises if a frozen weight or BatchNorm statistic has moved by a single bit during the phase."""
    if frozen_digest(training) != before:
        raise FinetuneError(
            f"{training.phase.name}: weights that were frozen have changed. This is a fault of finetune or Keras "
            f"{keras.__version__}, not of yours; the result must not be trusted.",
            hint="Please report it, with the file config.yaml of the run.",
        )

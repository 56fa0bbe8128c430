"""Training, phase by phase: freeze, cut, fit, keep the best weights, prove that what was frozen stayed frozen.

    head        the backbone is frozen; only the new head learns
    fine_tune   the deepest blocks learn too, gently

A phase trains the part above its cut on what comes out below it (see `features`). The loop is written out, in plain
sight: an interrupted run must continue with the same batch, the same random numbers and the same best weights, and
`keras.Model.fit` keeps some of these to itself. A run is a list of finished steps; starting is resuming an empty one.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune import blocks, device, features, gradients, pipeline
from finetune.classifier import Classifier
from finetune.config import Config
from finetune.config import Phase as Settings
from finetune.data import Dataset
from finetune.device import keras, tf
from finetune.errors import FinetuneError, TrainingDiverged

CHECKPOINT_SECONDS = 60.0  # at most this much work is lost to a kill
VALIDATION_BATCH = 128


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one answer to "what is trainable": everything above `cut`."""

    index: int
    name: str
    settings: Settings
    cut: Any
    blocks: tuple[str, ...]  # names of the unfrozen blocks


@dataclass
class Progress:
    """Where a phase stands; together with the variables this is all that a resumed run needs."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # over all phases, the axis of TensorBoard
    loss_sum: float = 0.0
    correct: int = 0
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


class Watcher:
    """Is told what happens during training. This one says nothing; the terminal and TensorBoard listen."""

    def phase_started(self, training: "PhaseTraining") -> None: ...

    def step_done(self, training: "PhaseTraining", loss: float, learning_rate: float) -> None: ...

    def epoch_done(self, training: "PhaseTraining", row: Mapping[str, Any]) -> None: ...

    def phase_done(self, training: "PhaseTraining", result: PhaseResult) -> None: ...

    def close(self) -> None:
        """It is over, whether it went well or not."""


def plan(config: Config, classifier: Classifier) -> list[Phase]:
    """The phases that `config` asks for. Raises ConfigError when `unfreeze` names nothing in this backbone."""
    phases = [Phase(0, "head", config.head, classifier.head_input, ())]
    found = classifier.blocks()
    for number, settings in enumerate(config.fine_tune, start=1):
        opened = blocks.to_unfreeze(found, settings.unfreeze)
        name = "fine_tune" if len(config.fine_tune) == 1 else f"fine_tune_{number}"
        phases.append(Phase(number, name, settings, opened[0].input, tuple(block.name for block in opened)))
    return phases


def freeze_below(classifier: Classifier, cut: Any, *, batch_norm: str) -> Any:
    """Makes the layers above `cut` trainable and no others; returns the model above the cut.

    BatchNorm above the cut stays frozen unless `batch_norm` is `train`: with it unfrozen, a few hundred pictures
    overwrite statistics gathered from a million (Keras' transfer-learning guide; DESIGN, decision 2).
    """
    above = keras.Model(cut, classifier.model.output)
    ours = {id(layer) for layer in above.layers}
    for layer in classifier.model.layers:
        layer.trainable = id(layer) in ours and layer.name != "preprocessing"
    for layer in _all_layers(above):
        if isinstance(layer, keras.layers.BatchNormalization) and batch_norm == "frozen":
            layer.trainable = False
    return above


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _all_layers(layer)


# -------------------------------------------------------------------------------------------------- the phase


class PhaseTraining:
    """One phase in progress: the model above the cut, its optimizer, and how far it has come."""

    def __init__(
        self,
        phase: Phase,
        classifier: Classifier,
        source: features.Source,
        dataset: Dataset,
        *,
        seed: int,
        batch_norm: str,
        progress: Progress,
    ) -> None:
        self.phase = phase
        self.settings = phase.settings
        self.classifier = classifier
        self.source = source
        self.dataset = dataset
        self.seed = seed
        self.progress = progress
        self.above = freeze_below(classifier, phase.cut, batch_norm=batch_norm)
        self.train_indices = dataset.indices("train")
        self.validation_indices = dataset.indices("validation")
        self.steps_per_epoch = -(-len(self.train_indices) // self.settings.batch_size)
        self.optimizer = _optimizer(self.settings, self.settings.epochs * self.steps_per_epoch)
        self.optimizer.build(self.above.trainable_variables)
        self.best_weights: list[np.ndarray] = []
        self._step = _compile_step(self.above, self.optimizer, self.settings, len(classifier.classes))
        self._logits = tf.function(lambda x: self.above(x, training=False), autograph=False, reduce_retracing=True)

    @property
    def learning_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    def epoch_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(features, labels) of what is left of the current epoch, in an order that only seed and epoch decide."""
        key, shuffled = self._order()
        size, skip = self.settings.batch_size, self.progress.batch
        labels = self.dataset.labels[shuffled]
        batches = self.source.batches(shuffled, key, size, skip=skip)
        for number, batch in enumerate(batches, start=skip):
            yield batch, labels[number * size : number * size + size]

    def _order(self) -> tuple[int, np.ndarray]:
        """(number of the current epoch among those of all phases, training pictures in the order of that epoch)."""
        key = self.phase.index * 100_000 + self.progress.epoch
        return key, self.train_indices[pipeline.order(len(self.train_indices), seed=self.seed, epoch=key)]

    def train_batch(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """One optimizer step: its loss and learning rate.

        Raises TrainingDiverged, with the weights of the step before still in place.
        """
        outcome = self._step(tf.convert_to_tensor(inputs), tf.convert_to_tensor(labels))
        loss, rate, correct, finite = outcome.numpy().tolist()
        if not finite:
            raise self._diverged()
        self.progress.batch += 1
        self.progress.step += 1
        self.progress.loss_sum += loss * len(labels)
        self.progress.correct += int(correct)
        self.progress.seen += len(labels)
        return float(loss), float(rate)

    def _diverged(self) -> TrainingDiverged:
        _, shuffled = self._order()
        first = self.progress.batch * self.settings.batch_size
        names = [self.dataset.names[index] for index in shuffled[first : first + self.settings.batch_size]]
        return TrainingDiverged(
            f"{self.phase.name}, epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}: the loss, a "
            f"gradient or a weight is no longer a finite number. The last good checkpoint is kept.",
            remedy=f"Try learning_rate={self.settings.learning_rate / 10:g} for {self.phase.name}. "
            f"The pictures of this batch: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        )

    def logits(self, indices: np.ndarray) -> np.ndarray:
        """Class scores (n, classes) of undisturbed pictures, with the weights as they are now."""
        parts = [
            self._logits(tf.convert_to_tensor(x)).numpy() for x in self.source.batches(indices, None, VALIDATION_BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classifier.classes)), np.float32)

    def validate(self) -> dict[str, float]:
        labels = self.dataset.labels[self.validation_indices]
        return loss_and_accuracy(self.logits(self.validation_indices), labels)

    def keep_if_better(self, measured: Mapping[str, float]) -> bool:
        better = not self.progress.best or _is_better(measured, self.progress.best, self.settings.monitor)
        if better:
            self.progress.best = {"epoch": self.progress.epoch, **measured}
            self.progress.waited = 0
            self.best_weights = [variable.numpy() for variable in self.above.variables]
        else:
            self.progress.waited += 1
        return better

    def restore_best(self) -> None:
        for variable, value in zip(self.above.variables, self.best_weights, strict=True):
            variable.assign(value)

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
        return held

    def trained_arrays(self) -> dict[str, np.ndarray]:
        """Every variable that this phase or one before it may have changed, by its place in the model."""
        return {f"model/{at}": self._model_variables[at].numpy() for at in self._trained_positions()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        for at, variable in enumerate(self.optimizer.variables):
            variable.assign(arrays[f"optimizer/{at}"])
        self.best_weights = [arrays[f"best/{at}"] for at in range(sum(key.startswith("best/") for key in arrays))]

    @property
    def _model_variables(self) -> list[Any]:
        return list(self.classifier.model.variables)

    def _trained_positions(self) -> list[int]:
        touched = {id(variable) for variable in self.above.variables}
        changed = self.classifier.changed | touched
        return [at for at, variable in enumerate(self._model_variables) if id(variable) in changed]


def restore_model(classifier: Classifier, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts the model's part of a checkpoint back."""
    variables = list(classifier.model.variables)
    for key, value in arrays.items():
        kind, _, at = key.partition("/")
        if kind == "model":
            variables[int(at)].assign(value)
            classifier.changed.add(id(variables[int(at)]))


def run_phase(
    training: PhaseTraining,
    *,
    watcher: Watcher,
    commit: Callable[[PhaseTraining], None],
    record: Callable[[Mapping[str, Any]], None],
    check_stop: Callable[[], None],
) -> PhaseResult:
    """Trains until the phase is done; the model ends with the best weights, by validation, of the phase.

    `commit` saves a checkpoint, `record` a row of the history; `check_stop` raises Stopped when the user or the
    system asked to stop, and then the last batch is committed first.
    """
    progress, phase = training.progress, training.phase
    frozen = frozen_digest(training)
    watcher.phase_started(training)
    if phase.index > 0 and not training.best_weights:  # what came before is the mark to beat
        training.keep_if_better(training.validate())
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
        record(row)
        watcher.epoch_done(training, row)
        if time.monotonic() - committed > 1.0:  # epochs of milliseconds need no checkpoint each
            commit(training)
            committed = time.monotonic()
        _stop_cleanly(check_stop, commit, training)
    if training.best_weights:
        training.restore_best()
    audit(training, frozen)
    training.classifier.changed |= {id(variable) for variable in training.above.variables}
    best = dict(progress.best)
    result = PhaseResult(phase.name, progress.epoch, int(best.pop("epoch", 0)), best)
    watcher.phase_done(training, result)
    return result


def _stop_cleanly(
    check_stop: Callable[[], None], commit: Callable[[PhaseTraining], None], training: PhaseTraining
) -> None:
    try:
        check_stop()
    except FinetuneError:
        commit(training)
        raise


def _finish_epoch(training: PhaseTraining, seconds: float) -> dict[str, Any]:
    """Validates, keeps the weights if they are the best so far, and moves on to the next epoch."""
    progress = training.progress
    measured = training.validate()
    row = {
        "phase": training.phase.name,
        "epoch": progress.epoch + 1,
        "loss": progress.loss_sum / progress.seen,
        "accuracy": progress.correct / progress.seen,
        "validation_loss": measured["loss"],
        "validation_accuracy": measured["accuracy"],
        "learning_rate": training.learning_rate,
        "step": progress.step,
        "seconds": round(seconds, 3),
    }
    progress.epoch += 1
    progress.batch = progress.correct = progress.seen = 0
    progress.loss_sum = progress.seconds = 0.0
    training.keep_if_better(measured)
    return row


def _is_better(new: Mapping[str, float], old: Mapping[str, float], monitor: str) -> bool:
    """By accuracy, the loss deciding between equals; or by loss alone."""
    if monitor == "accuracy" and new["accuracy"] != old["accuracy"]:
        return new["accuracy"] > old["accuracy"]
    return new["loss"] < old["loss"]


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy (nats) and accuracy (0..1) of scores (n, classes)."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    chosen = log_probability[np.arange(len(labels)), labels]
    return {"loss": float(-chosen.mean()), "accuracy": float((logits.argmax(axis=1) == labels).mean())}


# ------------------------------------------------------------------------------------------------ one step


def _optimizer(settings: Settings, total_steps: int) -> Any:
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":  # Loshchilov & Hutter 2017, one cycle without restarts
        warm = round(settings.warmup * total_steps)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warm else settings.learning_rate,
            max(1, total_steps - warm),
            warmup_target=settings.learning_rate if warm else None,
            warmup_steps=warm,
        )
    decay = settings.weight_decay or None
    if settings.optimizer == "sgd":
        made = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
    elif settings.optimizer == "adamw":
        made = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay)
    else:
        made = keras.optimizers.Adam(rate, weight_decay=decay)
    if decay:
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def _compile_step(above: Any, optimizer: Any, settings: Settings, classes: int) -> Any:
    """`(inputs, labels) -> [loss, learning rate, correct, finite]`; a step that is not finite changes no weight."""
    loss_of = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing)
    trainable = above.trainable_variables
    layers = [] if device.GPUS else list(_all_layers(above))

    @tf.function(autograph=False, reduce_retracing=True)
    def step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape, gradients.pointwise(layers):
            logits = tf.cast(above(inputs, training=True), tf.float32)
            loss = loss_of(tf.one_hot(labels, classes), logits)
            total = tf.add_n([loss, *above.losses])
        slopes = tape.gradient(total, trainable)
        rate = tf.cast(optimizer.learning_rate, tf.float32)
        good = tf.math.is_finite(total) & tf.math.is_finite(tf.linalg.global_norm(slopes))
        tf.cond(good, lambda: _apply(optimizer, slopes, trainable), lambda: tf.constant(False))
        # A ReLU that oneDNN has fused turns NaN into 0, so a healthy loss proves nothing about the weights.
        good &= tf.math.is_finite(tf.linalg.global_norm([variable.value for variable in trainable]))
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32))
        return tf.stack([loss, rate, correct, tf.cast(good, tf.float32)])

    return step


def _apply(optimizer: Any, slopes: Any, variables: Any) -> Any:
    optimizer.apply(slopes, variables)
    return tf.constant(True)


# ------------------------------------------------------------------------------------------------- the audit


def frozen_digest(training: PhaseTraining) -> str:
    """SHA-256 of everything that this phase must not change: weights below the cut and frozen BatchNorm above it."""
    learning = {id(variable) for variable in training.above.trainable_variables}
    for layer in _all_layers(training.above):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            learning |= {id(variable) for variable in layer.variables}  # its statistics may move
    frozen = [weight for weight in training.classifier.model.weights if id(weight) not in learning]
    return features.digest(np.ascontiguousarray(weight.numpy()).data for weight in frozen)


def audit(training: PhaseTraining, before: str) -> None:
    """Raises if a frozen weight or BatchNorm statistic has moved by a single bit during the phase."""
    if frozen_digest(training) != before:
        raise FinetuneError(
            f"{training.phase.name}: weights that were frozen have changed. This is a fault of finetune or Keras "
            f"{keras.__version__}, not of yours; the result must not be trusted.",
            remedy="Please report it, with the file config.yaml of the run.",
        )

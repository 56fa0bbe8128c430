"""The loop: epochs of steps, validation, the best weights; phase after phase.

    results = fit_phases(phases, classifier, sources, dataset, config=config)

is a whole training: a trial of a sweep needs no more. A run hands in a `Journal` that keeps checkpoints and history
in its folder, callbacks that show what happens, and `check_stop`, which raises when somebody asked to stop.

The loop is written out, in plain sight: an interrupted run must continue with the same batch, the same random numbers
and the same best weights, and `keras.Model.fit` keeps some of these to itself.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.config import Config, FineTuneConfig
from finetune.data import MixUpCutMix, balanced_epoch_order, epoch_order
from finetune.evaluation import ValidationScores
from finetune.models import FeatureSource, all_rows
from finetune.training.callbacks import Callback, CallbackList
from finetune.training.journal import Journal, PhaseResult, TrainingState
from finetune.training.keras_patches import scale_learning_rates
from finetune.training.losses import against_imbalance, class_frequencies, loss_for
from finetune.training.model_state import Scorer, assign_values, averaged_weights, recalibrate_batch_norm, restore_model
from finetune.training.optimizers import build_optimizer, layer_scales, lower_learning_rate
from finetune.training.phase_start import FitProbe, fit_head_probe, settle_phase, start_head
from finetune.training.phases import FrozenWeights, Phase, batch_norm_layers, freeze_below
from finetune.training.selection import Selection, is_better
from finetune.training.step import StepResult, TrainStep, assert_same_weights
from finetune.utils import FinetuneError, TrainingDiverged, keras

if TYPE_CHECKING:
    from finetune.data import Dataset
    from finetune.models import Classifier

CHECKPOINT_SECONDS = 60.0  # at most this much work is lost to a kill


class Trainer:
    """One phase in progress: the model above the cut, its optimizer, and how far it has come."""

    def __init__(
        self,
        phase: Phase,
        classifier: "Classifier",
        source: FeatureSource,
        dataset: "Dataset",
        *,
        config: Config,
        state: TrainingState | None = None,
    ) -> None:
        self.phase, self.settings = phase, phase.settings
        self.classifier, self.source, self.dataset, self.config = classifier, source, dataset, config
        self.seed = config.seed
        self.state = state or TrainingState(phase=phase.index)
        self.train_indices = dataset.indices("train")
        self.validation_indices = dataset.indices("validation")
        self.above = freeze_below(classifier, phase.cut, batch_norm=config.model.batch_norm)
        self.frozen = FrozenWeights(classifier, self.above, batch_norm=config.model.batch_norm)
        self.steps_per_epoch = -(-len(self._epoch_indices()) // self.settings.batch_size)
        self.optimizer = build_optimizer(self.settings, self.settings.epochs * self.steps_per_epoch)
        self.optimizer.build(self.above.trainable_variables)
        if isinstance(self.settings, FineTuneConfig):
            scales = layer_scales(classifier.blocks(), self.above, self.settings.layer_decay)
            scale_learning_rates(self.optimizer, scales)
        task_loss, classes = loss_for(dataset.label_type), len(classifier.classes)
        self.class_frequencies = class_frequencies(dataset.labels[self.train_indices], dataset.label_type, classes)
        self._step = TrainStep(
            self.above,
            self.optimizer,
            task_loss,
            classes=classes,
            imbalance=against_imbalance(config.imbalance, task_loss, self.class_frequencies),
            label_smoothing=self.settings.label_smoothing,
            mixer=MixUpCutMix(config.augment, spatial=len(phase.cut.shape) == 4),
        )
        self._scorer = Scorer(self.above, source)
        self.selection = Selection(self.above.variables, self.settings, self.state)

    @property
    def learning_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    # --- training

    def epoch_batches(self, *, whole: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(features, labels) of what is left of the current epoch, in an order that only seed and epoch decide.

        Labels are those of the whole batch, features those of the rows that the step needs, unless `whole`.
        """
        indices, size, skip = self._epoch_indices(), self.settings.batch_size, self.state.batch
        labels = self.dataset.labels[indices]
        rows = all_rows if whole else self._step.rows
        batches = self.source.batches(indices, self._epoch_number, size, skip=skip, rows=rows)
        for number, batch in enumerate(batches, start=skip):
            yield batch, labels[number * size : number * size + size]

    @property
    def _epoch_number(self) -> int:
        """The number of the current epoch among those of all phases."""
        return self.phase.index * 100_000 + self.state.epoch

    def _epoch_indices(self) -> np.ndarray:
        """The training images in the order of the current epoch."""
        if self.config.imbalance == "oversample":
            labels = self.dataset.labels[self.train_indices]
            order = balanced_epoch_order(labels, seed=self.seed, epoch=self._epoch_number)
        else:
            order = epoch_order(len(self.train_indices), seed=self.seed, epoch=self._epoch_number)
        return np.asarray(self.train_indices[order])

    def train_batch(self, inputs: np.ndarray, labels: np.ndarray) -> StepResult:
        """One optimizer step, counted in `state`.

        Raises TrainingDiverged, with the weights of the step before still in place.
        """
        result, state = self.try_step(inputs, labels), self.state
        if not result.finite:
            raise self._diverged()
        state.batch += 1
        state.step += 1
        state.loss_sum += result.loss * len(labels)
        state.correct += result.correct
        state.seen += len(labels)
        return result

    def try_step(self, inputs: np.ndarray, labels: np.ndarray) -> StepResult:
        """One optimizer step that is not counted."""
        return self._step(inputs, labels, seed=(self.seed, self.phase.index, self.state.step))

    def _diverged(self) -> TrainingDiverged:
        first = self.state.batch * self.settings.batch_size
        batch = self._epoch_indices()[first : first + self.settings.batch_size]
        names = ", ".join(self.dataset.names[index] for index in batch[:8])
        return TrainingDiverged(
            f"{self.phase.name}, epoch {self.state.epoch + 1}, batch {self.state.batch + 1}: the loss, a "
            f"gradient or a weight is no longer a finite number. The last good checkpoint is kept.",
            hint=f"Try learning_rate={float(self.settings.learning_rate) / 10:g} for {self.phase.name}. "
            f"The images of this batch: {names}{', ...' if len(batch) > 8 else ''}",
        )

    # --- validation

    def logits(self, indices: np.ndarray) -> np.ndarray:
        """Class scores (n, classes) of unaugmented images, with the weights as they are now."""
        return self._scorer.logits(indices)

    def validate(self) -> ValidationScores:
        """Scores of the validation images with the weights as they are now."""
        return self._scorer.validation_scores(self.dataset.labels, self.validation_indices)

    def finish_epoch(self, seconds: float) -> dict[str, Any]:
        """Validate, keep the weights if they are the best so far, and begin the next epoch; the row of history.csv."""
        state = self.state
        with averaged_weights(self.optimizer, self.above.trainable_variables):
            scores = self.validate()
            row = {
                "phase": self.phase.name,
                "epoch": state.epoch + 1,
                "loss": state.loss_sum / state.seen,
                "accuracy": state.correct / state.seen,
                "validation_loss": scores.loss,
                "validation_accuracy": scores.accuracy,
                "learning_rate": self.learning_rate,
                "step": state.step,
                "seconds": round(seconds, 3),
            }
            state.epoch += 1
            state.batch = state.correct = state.seen = 0
            state.loss_sum = state.seconds = 0.0
            self.selection.consider(scores)
        if self.settings.schedule == "plateau":
            lower_learning_rate(self.optimizer, self.settings, state.epoch, state.waited)
        assert_same_weights(self.above.variables, f"{self.phase.name}, epoch {state.epoch}")
        return row

    def finish_phase(self) -> PhaseResult:
        """Select the weights, recalibrate BatchNorm if the config asks for it, and audit what was frozen."""
        self.selection.decide()
        self.frozen.audit(self.phase.name)
        if self.config.model.batch_norm == "recalibrate" and self.phase.index > 0 and batch_norm_layers(self.above):
            old, values = self.validate(), [variable.numpy() for variable in self.above.variables]
            recalibrate_batch_norm(self.above, (inputs for inputs, _ in self.epoch_batches(whole=True)))
            new = self.validate()
            if is_better(new, old.means, self.settings.monitor):
                self.state.best |= new.means
            else:  # the old statistics were better
                assign_values(self.above.variables, values)
            self.frozen.audit(self.phase.name)
        self.classifier.changed |= {id(variable) for variable in self.above.variables}
        validation = {name: value for name, value in self.state.best.items() if name != "epoch"}
        return PhaseResult(self.phase.name, self.state.epoch, int(self.state.best.get("epoch", 0)), validation)

    # --- what a checkpoint holds

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a resumed phase needs, besides `state`."""
        arrays = self.trained_arrays()
        arrays |= {f"optimizer/{at}": variable.numpy() for at, variable in enumerate(self.optimizer.variables)}
        return arrays | self.selection.arrays()

    def trained_arrays(self) -> dict[str, np.ndarray]:
        """Every variable that this phase or one before it may have changed, by its place in the model."""
        changed = self.classifier.changed | {id(variable) for variable in self.above.variables}
        variables = enumerate(self.classifier.model.variables)
        return {f"model/{at}": variable.numpy() for at, variable in variables if id(variable) in changed}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from the `arrays` of a checkpoint, whose model `restore_model` has put back."""
        for at, variable in enumerate(self.optimizer.variables):
            variable.assign(arrays[f"optimizer/{at}"])
        self.selection.restore(arrays)


def fit_phases(
    phases: Sequence[Phase],
    classifier: "Classifier",
    sources: Sequence[FeatureSource],
    dataset: "Dataset",
    *,
    config: Config,
    journal: Journal | None = None,
    callbacks: Sequence[Callback] = (),
    check_stop: Callable[[], None] = lambda: None,
    timer: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    fit_probe: FitProbe = fit_head_probe,
) -> tuple[PhaseResult, ...]:
    """Train all phases, or what is left of them; the classifier ends with the best weights of the last.

    `sources` has the features at the cut of each phase. `check_stop` raises a FinetuneError to stop; the work so far
    is saved first. `timer(stage)` surrounds each phase and the preparations for it. Raises TrainingDiverged.
    """
    journal = journal or Journal()
    state, checkpoint = TrainingState(), journal.checkpoint
    if checkpoint:
        restore_model(classifier, checkpoint.arrays)
        state = TrainingState(**checkpoint.state)
    results: list[PhaseResult] = []
    listeners = CallbackList(callbacks)
    listeners.on_train_begin()
    try:
        for phase in phases[state.phase :]:
            source = sources[phase.index]

            def make_trial(phase: Phase, source: FeatureSource = source) -> Trainer:
                return Trainer(phase, classifier, source, dataset, config=config)

            has_start = phase.index > 0  # the weights of now are worth something, and must be beaten
            if phase.index == 0 and not state.has_begun:
                has_start = start_head(classifier, source, dataset, config, journal, timer, fit_probe)
            phase = settle_phase(phase, len(phases) - phase.index, has_start, make_trial, journal, timer)
            trainer = Trainer(phase, classifier, source, dataset, config=config, state=state)
            if checkpoint and state.has_begun:
                trainer.restore(checkpoint.arrays)
            with timer(phase.name):
                result = fit_phase(trainer, has_start, journal=journal, listeners=listeners, check_stop=check_stop)
                journal.finish_phase(trainer, result)
            results.append(result)
            state = TrainingState(phase=phase.index + 1, step=state.step)
            journal.save_checkpoint(f"{phase.name}-done", trainer.trained_arrays(), asdict(state))
    finally:
        listeners.on_train_end()
    return tuple(results)


def fit_phase(
    trainer: Trainer,
    has_start: bool = False,
    *,
    journal: Journal | None = None,
    listeners: CallbackList | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> PhaseResult:
    """Train until the phase is done; the model ends with the best weights, by validation, of the phase.

    `has_start`: the weights are worth something already (an earlier phase, or a linear probe), and stay unless an
    epoch beats them by more than noise.
    """
    journal, listeners, state = journal or Journal(), listeners or CallbackList(), trainer.state
    last_save = time.monotonic()

    def save() -> None:
        nonlocal last_save
        name = f"{trainer.phase.name}-{state.epoch}-{state.batch}"
        journal.save_checkpoint(name, trainer.arrays(), asdict(state))
        last_save = time.monotonic()

    def stop_if_requested() -> None:
        try:
            check_stop()
        except FinetuneError:
            save()
            raise

    listeners.begin_phase(trainer, save)
    if has_start and not state.baseline:
        trainer.selection.set_baseline(trainer.validate())
    while not trainer.selection.finished:
        started, epoch = time.monotonic() - state.seconds, state.epoch
        for inputs, labels in trainer.epoch_batches():
            result = trainer.train_batch(inputs, labels)
            state.seconds = time.monotonic() - started
            listeners.on_train_batch_end(state.batch - 1, {"loss": result.loss, "learning_rate": result.learning_rate})
            if time.monotonic() - last_save > CHECKPOINT_SECONDS:
                save()
            stop_if_requested()
        row = trainer.finish_epoch(time.monotonic() - started)
        journal.append_history(row)
        listeners.on_epoch_end(epoch, row)
        if time.monotonic() - last_save > 1.0:  # epochs of milliseconds need no checkpoint each
            save()
        stop_if_requested()
    phase_result = trainer.finish_phase()
    listeners.on_phase_end(phase_result)
    return phase_result

"""Who is told about a training. The method names are those of Keras, and `phase` beside them.

    class Printer(Callback):
        def on_epoch_end(self, epoch, logs):
            print(self.trainer.phase.name, epoch, logs["validation_accuracy"])

`trainer` is the phase in progress, as `self.model` is the model in Keras. TensorBoard has a file of its own.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.utils import FinetuneError, ProgressCallback, Terminal, format_duration

if TYPE_CHECKING:
    from finetune.training.journal import PhaseResult
    from finetune.training.loop import Trainer

REFRESH_SECONDS = 0.1  # between two changes of the progress bar


class Callback:
    """Is told what happens during a training; does nothing with it. `batch` and `epoch` count from 0, as in Keras."""

    trainer: "Trainer"  # the phase in progress; set before `on_phase_begin`

    def on_train_begin(self) -> None: ...

    def on_phase_begin(self) -> None: ...

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        """`logs` has `loss` and `learning_rate` of the step."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """`logs` is the row of history.csv."""

    def on_phase_end(self, result: "PhaseResult") -> None: ...

    def on_train_end(self) -> None:
        """It is over, whether it went well or not."""


class CallbackList(Callback):
    """Passes everything on to several callbacks; if one fails, the work so far is saved before its error is raised."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)
        self._save: Callable[[], None] = lambda: None

    def begin_phase(self, trainer: "Trainer", save: Callable[[], None]) -> None:
        """Set the trainer of all callbacks, and what saves its work; then `on_phase_begin`."""
        self._save = save
        for callback in self.callbacks:
            callback.trainer = trainer
        self.on_phase_begin()

    def on_train_begin(self) -> None:
        for callback in self.callbacks:
            callback.on_train_begin()

    def on_phase_begin(self) -> None:
        self._call_all(lambda callback: callback.on_phase_begin())

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        self._call_all(lambda callback: callback.on_train_batch_end(batch, logs))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._call_all(lambda callback: callback.on_epoch_end(epoch, logs))

    def on_phase_end(self, result: "PhaseResult") -> None:
        self._call_all(lambda callback: callback.on_phase_end(result))

    def on_train_end(self) -> None:
        for callback in self.callbacks:
            callback.on_train_end()

    def _call_all(self, call: Callable[[Callback], None]) -> None:
        try:
            for callback in self.callbacks:
                call(callback)
        except Exception:
            with suppress(FinetuneError):  # the disk may be full for it as well; the first error is the one to show
                self._save()
            raise


class ProgressLogger(Callback):
    """One line an epoch, and a bar over all steps of the phase."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._bar = ExitStack()
        self._update: ProgressCallback = lambda done, total: None
        self._updated = 0.0

    def on_phase_begin(self) -> None:
        phase = self.trainer.phase
        self._update = self._bar.enter_context(self.terminal.stage(phase.name))
        trained = f"blocks from {phase.blocks[0]} on" if phase.blocks else "the head alone"
        count = sum(int(np.prod(weight.shape)) for weight in self.trainer.above.trainable_variables)
        self.terminal.head(f"{phase.name}: training {trained}, {count:,} weights")

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        if time.monotonic() - self._updated > REFRESH_SECONDS:
            self._updated = time.monotonic()
            steps, state = self.trainer.steps_per_epoch, self.trainer.state
            self._update(state.epoch * steps + state.batch, steps * self.trainer.settings.epochs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        best = "  best" if self.trainer.state.waited == 0 else ""
        epochs = str(self.trainer.settings.epochs)
        self.terminal.say(  # not more than 80 columns
            f"epoch {logs['epoch']:>{len(epochs)}}/{epochs}  loss {logs['loss']:.3f}  "
            f"validation: loss {logs['validation_loss']:.3f}, accuracy {logs['validation_accuracy']:.2%}  "
            f"{format_duration(logs['seconds'])}{best}"
        )

    def on_phase_end(self, result: "PhaseResult") -> None:
        self._bar.close()
        if result.best_epoch > 0 or not self.trainer.settings.epochs:
            return
        if self.trainer.phase.index == 0:
            self.terminal.say(f"{result.name} stays the logistic regression: no epoch can be told to be better.")
        elif result.epochs:
            self.terminal.warn(
                f"{result.name} did not beat what came before it on the validation images; its changes are undone."
            )
        else:
            self.terminal.warn(
                f"{result.name} is left out: so few validation images are predicted wrongly that no improvement could "
                "be told from chance."
            )

    def on_train_end(self) -> None:
        self._bar.close()

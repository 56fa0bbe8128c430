"""Who listens to a training: the terminal, and TensorBoard.

TensorBoard gets one continuous axis, the optimizer steps of all phases: loss and learning rate at every step,
loss and accuracy of training and validation at every epoch, and at the end of a phase the confusion matrix and a
sheet of validation pictures with what the classifier said. `finetune tensorboard` shows it.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from finetune import drawing, files, images
from finetune.device import tf
from finetune.errors import FinetuneError, ImageProblem
from finetune.terminal import Terminal, Update
from finetune.training import PhaseResult, PhaseTraining, Watcher

SAMPLES = 18


class All(Watcher):
    """Passes everything on to several watchers; if one fails, the work so far is committed before its error goes on."""

    def __init__(self, watchers: Iterable[Watcher], commit: Callable[[PhaseTraining], None] = lambda _: None) -> None:
        self.watchers = tuple(watchers)
        self.commit = commit

    def phase_started(self, training: PhaseTraining) -> None:
        self._tell(training, lambda watcher: watcher.phase_started(training))

    def step_done(self, training: PhaseTraining, loss: float, learning_rate: float) -> None:
        self._tell(training, lambda watcher: watcher.step_done(training, loss, learning_rate))

    def epoch_done(self, training: PhaseTraining, row: Mapping[str, Any]) -> None:
        self._tell(training, lambda watcher: watcher.epoch_done(training, row))

    def phase_done(self, training: PhaseTraining, result: PhaseResult) -> None:
        self._tell(training, lambda watcher: watcher.phase_done(training, result))

    def _tell(self, training: PhaseTraining, tell: Callable[[Watcher], None]) -> None:
        try:
            for watcher in self.watchers:
                tell(watcher)
        except Exception:
            with suppress(FinetuneError):  # the disk may be full for it as well; the first error is the one to show
                self.commit(training)
            raise


class Lines(Watcher):
    """One line an epoch, and a bar over all steps of the phase while `update` is given."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.update: Update = lambda done, total: None
        self._told = 0.0

    def phase_started(self, training: PhaseTraining) -> None:
        phase = training.phase
        opened = f"blocks from {phase.blocks[0]} on" if phase.blocks else "the head alone"
        count = sum(int(np.prod(weight.shape)) for weight in training.above.trainable_variables)
        self.terminal.head(f"{phase.name}: training {opened}, {count:,} weights")

    def step_done(self, training: PhaseTraining, loss: float, learning_rate: float) -> None:
        if time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            per_epoch = training.steps_per_epoch
            done = training.progress.epoch * per_epoch + training.progress.batch
            self.update(done, per_epoch * training.settings.epochs)

    def epoch_done(self, training: PhaseTraining, row: Mapping[str, Any]) -> None:
        best = "  best so far" if training.progress.waited == 0 else ""
        self.terminal.say(
            f"  epoch {row['epoch']:>3}/{training.settings.epochs}   loss {row['loss']:.4f}   "
            f"validation: loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%}   "
            f"{row['seconds']:.1f} s{best}"
        )

    def phase_done(self, training: PhaseTraining, result: PhaseResult) -> None:
        if result.best_epoch == 0 and training.phase.index > 0:
            self.terminal.warn(
                f"{result.name} did not beat what came before it on the validation pictures; its changes are undone."
            )


class TensorBoard(Watcher):
    """Writes event files under `folder`.

    A resumed run repeats the steps after its last checkpoint; `first_step` tells TensorBoard to forget what it knows
    from there on, so that no point is doubled.
    """

    def __init__(self, folder: Path, config_yaml: str, *, first_step: int = 0) -> None:
        self.folder = folder
        with _explained(folder):
            self._open(folder, config_yaml, first_step)

    def _open(self, folder: Path, config_yaml: str, first_step: int) -> None:
        if folder.exists():
            for part in ("train", "validation"):
                _forget_from(folder / part, first_step + 1)
        self.train = tf.summary.create_file_writer(str(folder / "train"))
        self.validation = tf.summary.create_file_writer(str(folder / "validation"))
        with self.train.as_default():
            indented = "\n".join(f"    {line}" for line in config_yaml.splitlines())
            tf.summary.text("config", indented, step=0)

    def close(self) -> None:
        with _explained(self.folder):
            self.train.close()
            self.validation.close()

    def step_done(self, training: PhaseTraining, loss: float, learning_rate: float) -> None:
        with _explained(self.folder), self.train.as_default(step=training.progress.step):
            tf.summary.scalar("step/loss", loss)
            tf.summary.scalar("step/learning_rate", learning_rate)

    def epoch_done(self, training: PhaseTraining, row: Mapping[str, Any]) -> None:
        for writer, prefix in ((self.train, ""), (self.validation, "validation_")):
            with _explained(self.folder), writer.as_default(step=int(row["step"])):
                tf.summary.scalar("epoch/loss", row[f"{prefix}loss"])
                tf.summary.scalar("epoch/accuracy", row[f"{prefix}accuracy"])

    def phase_done(self, training: PhaseTraining, result: PhaseResult) -> None:
        indices, classes = training.validation_indices, training.classifier.classes
        predicted = training.logits(indices).argmax(axis=1)
        truth = training.dataset.labels[indices]
        matrix = np.zeros((len(classes), len(classes)), int)
        np.add.at(matrix, (truth, predicted), 1)
        with _explained(self.folder), self.validation.as_default(step=training.progress.step):
            self._image(f"{result.name}/confusion", drawing.confusion(matrix, classes))
            self._image(f"{result.name}/samples", _sample_sheet(training, indices, predicted))

    @staticmethod
    def _image(name: str, png: bytes) -> None:
        tf.summary.image(name, tf.io.decode_png(png, channels=3)[None])


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """TensorFlow's errors about writing as a ResourceError; it tells the system's reason only in words."""
    with files.explained(folder / "events"):
        try:
            yield
        except tf.errors.OpError as error:
            known = (code for code in errno.errorcode if os.strerror(code) in str(error))
            code = next(known, errno.EIO)
            raise OSError(code, os.strerror(code)) from error


def _forget_from(folder: Path, step: int) -> None:
    """A START event is how TensorBoard learns of a restart: it drops all later steps of the files before.

    The first START that it meets it takes for the beginning, and ignores: hence two. Files are read in the order of
    their names, which begin with the second; `!` sorts before any name of a computer.
    """
    folder.mkdir(exist_ok=True)
    now = time.time()
    version = Event(wall_time=now, file_version="brain.Event:2")
    start = Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START))
    with (folder / f"events.out.tfevents.{int(now):010d}.!restart").open("wb") as file:
        records = RecordWriter(file)
        for event in (version, start, start):
            records.write(event.SerializeToString())


def _sample_sheet(training: PhaseTraining, indices: np.ndarray, predicted: np.ndarray) -> bytes:
    """Validation pictures spread evenly over the classes, each with its answer, and the truth where that was wrong."""
    classes, labels = training.classifier.classes, training.dataset.labels
    chosen = np.linspace(0, len(indices) - 1, min(SAMPLES, len(indices))).astype(int)
    pictures, captions = [], []
    for at in chosen:
        answer, truth = classes[predicted[at]], classes[labels[indices[at]]]
        with suppress(ImageProblem):
            pictures.append(images.read_square(training.dataset.path(int(indices[at])), training.classifier.transform))
            captions.append(answer if answer == truth else f"{answer}\n(is {truth})")
    return drawing.sheet(pictures, captions)

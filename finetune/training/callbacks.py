"""Who listens to a training: the terminal, and TensorBoard.

TensorBoard gets one continuous axis, the optimizer steps of all phases: loss and learning rate at every step; at every
epoch loss and accuracy of training and validation, and a few validation images with the answer and what spoke for it;
at the end of a phase the confusion matrix and the validation images as points (see `projector`); and at the end of
all what HPARAMS compares. When asked (`tensorboard:` in the config), histograms and profiles too.
`finetune tensorboard` shows it.
"""

import errno
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.summary import session_end_pb, session_start_pb
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from finetune.config import Config
from finetune.evaluation import class_figure, task_for
from finetune.training.losses import loss_for
from finetune.training.projector import POINTS, SIDE, add_to_projector
from finetune.training.samples import SampleSheet, spread_over_classes, thumbnails, vectors
from finetune.training.trainer import Callback, PhaseResult, Trainer
from finetune.utils import FinetuneError, ProgressCallback, Terminal, explain_os_errors, tf

HPARAMS = (  # what people vary, and a table can still show
    "seed", "model.backbone", "model.image_size", "model.resize", "model.pooling", "model.dropout", "model.batch_norm",
    "augment.preset", "head.epochs", "head.batch_size", "head.learning_rate", "head.optimizer", "fine_tune.unfreeze",
    "fine_tune.epochs", "fine_tune.batch_size", "fine_tune.learning_rate", "fine_tune.optimizer",
)  # fmt: skip
PROFILED = (3, 8)  # steps of a phase that the profile begins before and ends after; the first ones only warm up


class CallbackList(Callback):
    """Passes everything on to several watchers; if one fails, the work so far is committed before its error goes on."""

    def __init__(self, watchers: Iterable[Callback], commit: Callable[[Trainer], None] = lambda _: None) -> None:
        self.watchers = tuple(watchers)
        self.commit = commit

    def phase_started(self, training: Trainer) -> None:
        self._tell(training, lambda watcher: watcher.phase_started(training))

    def step_done(self, training: Trainer, loss: float, learning_rate: float) -> None:
        self._tell(training, lambda watcher: watcher.step_done(training, loss, learning_rate))

    def epoch_done(self, training: Trainer, row: Mapping[str, Any]) -> None:
        self._tell(training, lambda watcher: watcher.epoch_done(training, row))

    def phase_done(self, training: Trainer, result: PhaseResult) -> None:
        self._tell(training, lambda watcher: watcher.phase_done(training, result))

    def _tell(self, training: Trainer, tell: Callable[[Callback], None]) -> None:
        try:
            for watcher in self.watchers:
                tell(watcher)
        except Exception:
            with suppress(FinetuneError):  # the disk may be full for it as well; the first error is the one to show
                self.commit(training)
            raise

    def close(self) -> None:
        for watcher in self.watchers:
            watcher.close()


class ProgressLogger(Callback):
    """One line an epoch, and a bar over all steps of the phase while `update` is given."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.update: ProgressCallback = lambda done, total: None
        self._told = 0.0

    def phase_started(self, training: Trainer) -> None:
        phase = training.phase
        opened = f"blocks from {phase.blocks[0]} on" if phase.blocks else "the head alone"
        count = sum(int(np.prod(weight.shape)) for weight in training.above.trainable_variables)
        self.terminal.head(f"{phase.name}: training {opened}, {count:,} weights")

    def step_done(self, training: Trainer, loss: float, learning_rate: float) -> None:
        if time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            per_epoch = training.steps_per_epoch
            done = training.progress.epoch * per_epoch + training.progress.batch
            self.update(done, per_epoch * training.settings.epochs)

    def epoch_done(self, training: Trainer, row: Mapping[str, Any]) -> None:
        best = "  best so far" if training.progress.waited == 0 else ""
        self.terminal.say(
            f"  epoch {row['epoch']:>3}/{training.settings.epochs}   loss {row['loss']:.4f}   "
            f"validation: loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%}   "
            f"{row['seconds']:.1f} s{best}"
        )

    def phase_done(self, training: Trainer, result: PhaseResult) -> None:
        if result.best_epoch == 0 and training.phase.index > 0:
            self.terminal.warn(
                f"{result.name} did not beat what came before it on the validation images; its changes are undone."
            )


class TensorBoard(Callback):
    """Writes event files under `folder`.

    A resumed run repeats the steps after its last checkpoint; `first_step` tells TensorBoard to forget what it knows
    from there on, so that no point is doubled.
    """

    def __init__(self, folder: Path, config_yaml: str, *, first_step: int = 0, histograms: bool = False) -> None:
        self.folder = folder
        self.histograms = histograms
        self._samples: SampleSheet | None = None
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

    def phase_started(self, training: Trainer) -> None:
        self._samples = SampleSheet(training)

    def step_done(self, training: Trainer, loss: float, learning_rate: float) -> None:
        with _explained(self.folder), self.train.as_default(step=training.progress.step):
            tf.summary.scalar("step/loss", loss)
            tf.summary.scalar("step/learning_rate", learning_rate)

    def epoch_done(self, training: Trainer, row: Mapping[str, Any]) -> None:
        for writer, prefix in ((self.train, ""), (self.validation, "validation_")):
            with _explained(self.folder), writer.as_default(step=int(row["step"])):
                tf.summary.scalar("epoch/loss", row[f"{prefix}loss"])
                tf.summary.scalar("epoch/accuracy", row[f"{prefix}accuracy"])
        with _explained(self.folder), self.validation.as_default(step=int(row["step"])):
            if self._samples is not None and len(self._samples.indices):
                _image("epoch/samples", self._samples.sheet())
        if self.histograms:
            with _explained(self.folder), self.train.as_default(step=int(row["step"])):
                _histograms(training)

    def phase_done(self, training: Trainer, result: PhaseResult) -> None:
        indices, task = training.validation_indices, task_for(training.dataset.label_type)
        logits, truth = training.logits(indices), training.dataset.labels[indices]
        with _explained(self.folder), self.validation.as_default(step=training.progress.step):
            found = task.metrics(task.probabilities(logits), truth, training.classifier.classes, 0.5)
            for name, png in class_figure(found).items():
                _image(f"{result.name}/{name}", png)
        self._project(
            training,
            result.name,
            dict(zip(indices.tolist(), training.dataset.label_type.decide(logits, 0.0), strict=True)),
        )

    def _project(self, training: Trainer, name: str, answers: Mapping[int, Any]) -> None:
        """Adds the validation images, as the head sees them after this phase, to the projector."""
        dataset, label_type = training.dataset, training.dataset.label_type
        groups = label_type.group_ids(dataset.labels)
        indices = spread_over_classes(training.validation_indices, groups, POINTS, seed=training.seed)
        columns = {
            "class": [label_type.display_text(dataset.labels[index], dataset.classes) for index in indices],
            "answer": [label_type.display_text(answers[index], dataset.classes) for index in indices.tolist()],
            "file": [dataset.names[index] for index in indices],
        }
        points = vectors(training, indices)
        images = thumbnails(training, indices, SIDE)
        add_to_projector(self.folder / "validation", name, points, columns, images)


class Profiler(Callback):
    """Has TensorFlow's profiler watch a few steps of each phase, and tells how to see what it found."""

    def __init__(self, folder: Path, terminal: Terminal) -> None:
        self.folder = folder
        self.terminal = terminal
        self._steps, self._running = 0, False

    def phase_started(self, training: Trainer) -> None:
        self._steps = 0

    def step_done(self, training: Trainer, loss: float, learning_rate: float) -> None:
        self._steps += 1
        if self._steps == PROFILED[0]:
            with _explained(self.folder):
                tf.profiler.experimental.start(str(self.folder))
            self._running = True
        elif self._steps == PROFILED[1]:
            self.close()

    def phase_done(self, training: Trainer, result: PhaseResult) -> None:
        self.close()
        if self._steps < PROFILED[0]:
            self.terminal.warn(f"{result.name} had too few steps for a profile.")

    def close(self) -> None:
        if self._running:
            self._running = False
            with _explained(self.folder):
                tf.profiler.experimental.stop()
            self.terminal.say("  profile written; to see it: pip install xprof, then PROFILE in finetune tensorboard")


def write_hparams(
    folder: Path,
    name: str,
    config: Config,
    accuracies: Mapping[str, float],
    *,
    also: Mapping[str, str] | None = None,
) -> None:
    """For TensorBoard's HPARAMS, which compares runs: the settings of the run `name`, and what came of them.

    `also` are settings beyond those of HPARAMS (a sweep may vary anything). `folder` is for this alone, so that nothing
    else becomes a column; what was in it is replaced.
    """
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer = tf.summary.create_file_writer(str(folder))
        with writer.as_default(step=0):
            start = session_start_pb({**(also or {}), **_hparams(config)}, group_name=name)
            for summary in (start, session_end_pb(STATUS_SUCCESS)):
                tf.summary.experimental.write_raw_pb(summary.SerializeToString())
            for split, accuracy in accuracies.items():
                tf.summary.scalar(f"accuracy/{split}", accuracy)
        writer.close()


def _hparams(config: Config) -> dict[str, Any]:
    """Those of HPARAMS that the config has a value for; of several fine-tune phases, the last."""
    found = {}
    for name in HPARAMS:
        value: Any = config
        for key in name.split("."):
            value = getattr(value, key, None)
            if isinstance(value, tuple):
                value = value[-1] if value else None
        if value is not None:
            found[name] = str(value) if name == "fine_tune.unfreeze" else value  # blocks, a share, or a layer
    return found


def _histograms(training: Trainer) -> None:
    """All that learns in this phase, and the gradients of the loss on a batch, always the same and undisturbed.

    The gradients of a training step would cost that step more; and dropout here would take random numbers from it.
    """
    labels, label_type = training.dataset.labels, training.dataset.label_type
    groups, size = label_type.group_ids(labels), training.settings.batch_size
    indices = spread_over_classes(training.train_indices, groups, size, seed=training.seed)
    variables = training.above.trainable_variables
    (inputs,) = training.source.batches(indices, None, len(indices))
    task_loss = loss_for(label_type)
    wanted = task_loss.encode(labels[indices], len(training.dataset.classes))
    equal = tf.ones(len(training.dataset.classes))
    with tf.GradientTape() as tape:
        logits = tf.cast(training.above(inputs, training=False), tf.float32)
        loss = task_loss.total(0.0)(wanted, logits, equal) / len(indices)
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        tf.summary.histogram(f"weights/{variable.path}", variable)
        tf.summary.histogram(f"gradients/{variable.path}", gradient)


def _image(name: str, content: bytes) -> None:
    """What `tf.summary.image` writes, of a file that is encoded already."""
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    tensor = tf.constant([str(width).encode(), str(height).encode(), content])
    tf.summary.write(name, tensor, metadata=create_summary_metadata(display_name=None, description=None))


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """TensorFlow's errors about writing as a ResourceError; it tells the system's reason only in words."""
    with explain_os_errors(folder / "events"):
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

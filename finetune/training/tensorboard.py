"""What TensorBoard shows of a training, and of what came of it.

A training is one run of TensorBoard: the curves of all its phases lie on one axis, the optimizer steps. Loss and
learning rate at every step; at every epoch accuracy and loss of training and validation (CUSTOM SCALARS lays the two
over each other), and a few validation images with their predictions and what spoke for them; at the end of a phase the
confusion matrix and the validation images as points (see `projector`); at the end of all what HPARAMS compares. When
the config asks for it (`tensorboard:`), histograms and profiles too. `finetune tensorboard` shows it.

The page sorts its charts by name, and these names put curves first: accuracy, loss, step, summary, validation.
"""

import errno
import io
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_SUCCESS,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.image.metadata import create_summary_metadata

from finetune.config import Config
from finetune.evaluation import class_figure, task_for
from finetune.training.callbacks import Callback
from finetune.training.journal import PhaseResult
from finetune.training.loop import Trainer
from finetune.training.losses import loss_for
from finetune.training.projector import POINTS, SIDE, add_to_projector
from finetune.training.samples import SampleSheet, feature_vectors, spread_over_classes, thumbnails
from finetune.utils import Terminal, explain_os_errors, tf

HPARAMS = (  # what people vary, and a table can still show
    "seed", "model.backbone", "model.image_size", "model.resize", "model.pooling", "model.dropout", "model.batch_norm",
    "augment.preset", "head.epochs", "head.batch_size", "head.learning_rate", "head.optimizer", "fine_tune.unfreeze",
    "fine_tune.epochs", "fine_tune.batch_size", "fine_tune.learning_rate", "fine_tune.optimizer",
)  # fmt: skip
VARIED = ("model.backbone", "head.learning_rate", "fine_tune.unfreeze", "fine_tune.learning_rate")  # the first columns
HPARAMS_FILE = ".hparams"  # how the name of the event file ends that `write_hparams` replaces
PROFILED = (3, 8)  # steps of a phase that the profile begins before and ends after; the first ones only warm up


class TensorBoard(Callback):
    """Writes event files under `folder`.

    A resumed run repeats the steps after its last checkpoint; `first_step` tells TensorBoard to forget what it knows
    from there on, so that no point is doubled.
    """

    def __init__(self, folder: Path, config_yaml: str, *, first_step: int = 0, histograms: bool = False) -> None:
        self.folder = folder
        self.histograms = histograms
        self._samples: SampleSheet | None = None
        with _explain_write_errors(folder):
            self._open(folder, config_yaml, first_step)

    def _open(self, folder: Path, config_yaml: str, first_step: int) -> None:
        if folder.exists():
            _forget_from(folder, first_step + 1)
        self._writer = tf.summary.create_file_writer(str(folder))
        with self._writer.as_default(step=0):
            overlaid = [
                Chart(title=name, multiline=MultilineChartContent(tag=[f"{name}/training", f"{name}/validation"]))
                for name in ("accuracy", "loss")
            ]
            layout = Layout(category=[Category(title="training and validation", chart=overlaid)])
            tf.summary.experimental.write_raw_pb(custom_scalar.pb(layout).SerializeToString())
            indented = "\n".join(f"    {line}" for line in config_yaml.splitlines())
            tf.summary.text("config", indented)

    def on_train_end(self) -> None:
        with _explain_write_errors(self.folder):
            self._writer.close()

    def on_phase_begin(self) -> None:
        self._samples = SampleSheet(self.trainer)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        with _explain_write_errors(self.folder), self._writer.as_default(step=self.trainer.state.step):
            tf.summary.scalar("step/loss", logs["loss"])
            tf.summary.scalar("step/learning_rate", logs["learning_rate"])

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        with _explain_write_errors(self.folder), self._writer.as_default(step=int(logs["step"])):
            for name in ("accuracy", "loss"):
                tf.summary.scalar(f"{name}/training", logs[name])
                tf.summary.scalar(f"{name}/validation", logs[f"validation_{name}"])
            if self._samples is not None and len(self._samples.indices):
                _write_image("validation/samples", self._samples.sheet())
            if self.histograms:
                _write_histograms(self.trainer)

    def on_phase_end(self, result: PhaseResult) -> None:
        trainer, label_type = self.trainer, self.trainer.dataset.label_type
        indices, task = trainer.validation_indices, task_for(label_type)
        logits, truth = trainer.logits(indices), trainer.dataset.labels[indices]
        with _explain_write_errors(self.folder), self._writer.as_default(step=trainer.state.step):
            metrics = task.metrics(task.probabilities(logits), truth, trainer.classifier.classes, 0.5)
            for name, png in class_figure(metrics).items():
                _write_image(f"validation/{name}/{result.name}", png)
        predicted = dict(zip(indices.tolist(), label_type.decide(logits, 0.0), strict=True))
        self._add_to_projector(result.name, predicted)

    def _add_to_projector(self, name: str, predicted: Mapping[int, Any]) -> None:
        """Adds the validation images, as the head sees them after this phase, to the projector."""
        trainer, dataset = self.trainer, self.trainer.dataset
        label_type, classes = dataset.label_type, dataset.classes
        groups = label_type.group_ids(dataset.labels)
        indices = spread_over_classes(trainer.validation_indices, groups, POINTS, seed=trainer.seed)
        columns = {
            "class": [label_type.display_text(dataset.labels[index], classes) for index in indices],
            "prediction": [label_type.display_text(predicted[index], classes) for index in indices.tolist()],
            "file": [dataset.names[index] for index in indices],
        }
        images = thumbnails(trainer, indices, SIDE)
        add_to_projector(self.folder, name, feature_vectors(trainer, indices), columns, images)


class Profiler(Callback):
    """Has TensorFlow's profiler record a few steps of each phase, and says how to see them."""

    def __init__(self, folder: Path, terminal: Terminal) -> None:
        self.folder = folder
        self.terminal = terminal
        self._steps, self._running = 0, False

    def on_phase_begin(self) -> None:
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        self._steps += 1
        if self._steps == PROFILED[0]:
            with _explain_write_errors(self.folder):
                tf.profiler.experimental.start(str(self.folder))
            self._running = True
        elif self._steps == PROFILED[1]:
            self._finish()

    def on_phase_end(self, result: PhaseResult) -> None:
        self._finish()
        if self._steps < PROFILED[0]:
            self.terminal.warn(f"{result.name} had too few steps for a profile.")

    def on_train_end(self) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._running:
            self._running = False
            with _explain_write_errors(self.folder):
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

    `also` are settings beyond those of HPARAMS (a sweep may vary anything). `folder` is that of the training; what was
    written there before of this kind is replaced.
    """
    from tensorboard.plugins.hparams.summary import experiment_pb, session_end_pb, session_start_pb  # starts TensorFlow

    with _explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"events.out.tfevents.*{HPARAMS_FILE}"):
            old.unlink()
        values = {**(also or {}), **_hparams(config)}
        writer = tf.summary.create_file_writer(str(folder), filename_suffix=HPARAMS_FILE)
        with writer.as_default(step=0):
            # Without this list of columns, every scalar of the run would be one.
            metrics = [MetricInfo(name=MetricName(tag=f"summary/{split}_accuracy")) for split in ("validation", "test")]
            settings = [
                HParamInfo(name=key, type=_hparam_type(values.get(key)), differs=key in (also or VARIED))
                for key in {**dict.fromkeys(HPARAMS), **values}
            ]
            columns = experiment_pb(settings, metrics)
            for summary in (columns, session_start_pb(values, group_name=name), session_end_pb(STATUS_SUCCESS)):
                tf.summary.experimental.write_raw_pb(summary.SerializeToString())
            for split, accuracy in accuracies.items():
                tf.summary.scalar(f"summary/{split}_accuracy", accuracy)
        writer.close()


def _hparam_type(value: Any) -> Any:
    if isinstance(value, bool):
        return DATA_TYPE_BOOL
    return DATA_TYPE_FLOAT64 if isinstance(value, int | float) else DATA_TYPE_STRING


def _hparams(config: Config) -> dict[str, Any]:
    """Those of HPARAMS that the config has a value for; of several fine-tune phases, the last."""
    values = {}
    for name in HPARAMS:
        value: Any = config
        for key in name.split("."):
            value = getattr(value, key, None)
            if isinstance(value, tuple):
                value = value[-1] if value else None
        if value is not None:
            values[name] = str(value) if name == "fine_tune.unfreeze" else value  # blocks, a fraction, or a layer
    return values


def _write_histograms(trainer: Trainer) -> None:
    """All that learns in this phase, and the gradients of the loss on a batch, always the same and undisturbed.

    The gradients of a training step would cost that step more; and dropout here would take random numbers from it.
    """
    labels, label_type = trainer.dataset.labels, trainer.dataset.label_type
    groups, size = label_type.group_ids(labels), trainer.settings.batch_size
    indices = spread_over_classes(trainer.train_indices, groups, size, seed=trainer.seed)
    variables = trainer.above.trainable_variables
    (inputs,) = trainer.source.batches(indices, None, len(indices))
    task_loss = loss_for(label_type)
    targets = task_loss.encode(labels[indices], len(trainer.dataset.classes))
    equal = tf.ones(len(trainer.dataset.classes))
    with tf.GradientTape() as tape:
        logits = tf.cast(trainer.above(inputs, training=False), tf.float32)
        loss = task_loss.total(0.0)(targets, logits, equal) / len(indices)
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        tf.summary.histogram(f"weights/{variable.path}", variable)
        tf.summary.histogram(f"gradients/{variable.path}", gradient)


def _write_image(name: str, content: bytes) -> None:
    """What `tf.summary.image` writes, of a file that is encoded already."""
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    tensor = tf.constant([str(width).encode(), str(height).encode(), content])
    tf.summary.write(name, tensor, metadata=create_summary_metadata(display_name=None, description=None))


@contextmanager
def _explain_write_errors(folder: Path) -> Iterator[None]:
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
    from tensorboard.summary.writer.record_writer import RecordWriter  # takes 0.3 s, and is for resumed runs alone

    folder.mkdir(exist_ok=True)
    now = time.time()
    version = Event(wall_time=now, file_version="brain.Event:2")
    start = Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START))
    with (folder / f"events.out.tfevents.{int(now):010d}.!restart").open("wb") as file:
        records = RecordWriter(file)
        for event in (version, start, start):
            records.write(event.SerializeToString())

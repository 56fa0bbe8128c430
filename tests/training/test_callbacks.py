"""Who is told about a training: everybody, in order, and without costing work when one of them fails."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from finetune.training.callbacks import Callback, CallbackList, ProgressLogger
from finetune.training.journal import PhaseResult
from finetune.utils import ResourceError, Terminal

EVENTS = ("on_train_begin", "on_phase_begin", "on_train_batch_end", "on_epoch_end", "on_phase_end", "on_train_end")


def test_everything_is_passed_on_to_all():
    heard = []

    class Listener(Callback):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, what):
            if what in EVENTS:
                return lambda *_: heard.append((self.name, what))
            return super().__getattribute__(what)

    callbacks = CallbackList([Listener("a"), Listener("b")])
    callbacks.on_train_begin()
    callbacks.begin_phase("the trainer", lambda: None)
    callbacks.on_train_batch_end(0, {})
    callbacks.on_epoch_end(0, {})
    callbacks.on_phase_end(PhaseResult("head", 1, 1, {}))
    callbacks.on_train_end()
    assert heard == [(name, event) for event in EVENTS for name in ("a", "b")]
    assert [callback.trainer for callback in callbacks.callbacks] == ["the trainer"] * 2


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), ValueError("a bug")])
@pytest.mark.parametrize("disk_is_full", [False, True])
def test_when_a_callback_fails_the_work_is_saved_before_its_error_is_raised(trouble, disk_is_full):
    saved = []

    class Failing(Callback):
        def on_train_batch_end(self, batch, logs):
            raise trouble

    def save():
        saved.append("work")
        if disk_is_full:
            raise ResourceError("nor can this be written")

    callbacks = CallbackList([Callback(), Failing()])
    callbacks.begin_phase("the trainer", save)
    with pytest.raises(type(trouble)) as caught:
        callbacks.on_train_batch_end(0, {})
    assert caught.value is trouble
    assert saved == ["work"]


def test_people_read_a_line_an_epoch_and_what_was_undone():
    log = io.StringIO()
    logger = ProgressLogger(Terminal(file=log))
    logger.trainer = SimpleNamespace(
        phase=SimpleNamespace(name="fine_tune", blocks=("block3",), index=1),
        settings=SimpleNamespace(epochs=4),
        above=SimpleNamespace(trainable_variables=[np.zeros((10, 200))]),
        steps_per_epoch=5,
        state=SimpleNamespace(epoch=0, batch=1, waited=0),
    )
    row = {"epoch": 1, "loss": 0.5, "validation_loss": 0.25, "validation_accuracy": 0.75, "seconds": 1.25}
    logger.on_phase_begin()
    logger.on_train_batch_end(0, {"loss": 0.1, "learning_rate": 0.1})
    logger.on_epoch_end(0, row)
    logger.trainer.state.waited = 1
    logger.on_epoch_end(1, {**row, "epoch": 2})
    logger.on_phase_end(PhaseResult("fine_tune", 2, 0, {}))
    logger.trainer.phase.index = 0
    logger.on_phase_end(PhaseResult("head", 0, 0, {}))
    opening, first, second, undone, kept = log.getvalue().splitlines()
    assert opening == "fine_tune: training blocks from block3 on, 2,000 weights"
    assert " ".join(first.split()) == ("epoch 1/4 loss 0.500 validation: loss 0.250, accuracy 75.00% 1.2 s best")
    assert len(first) <= 80
    assert not second.endswith("best")
    assert undone.startswith("warning: fine_tune did not beat")
    assert kept.startswith("head stays the logistic regression")

"""Who listens to a training: lines for people, and event files without a doubled point after a restart."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from finetune import monitoring
from finetune.errors import ResourceError
from finetune.terminal import Terminal
from finetune.training import PhaseResult, Watcher


def training(step=0, **changes):
    return SimpleNamespace(progress=SimpleNamespace(step=step, epoch=0, batch=1, waited=0), **changes)


def values(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tensors(tag)
    return {event.step: make_ndarray(event.tensor_proto).item() for event in found}, len(found)


def row(step):
    return {"step": step, "loss": step, "accuracy": 0.5, "validation_loss": step, "validation_accuracy": 0.25}


def test_steps_and_epochs_are_written_where_tensorboard_finds_them(tmp_path):
    board = monitoring.TensorBoard(tmp_path / "tensorboard", "name: <b>x</b>\nseed: 1\n")
    for step in (1, 2, 3):
        board.step_done(training(step), loss=step / 10, learning_rate=0.5)
    board.epoch_done(training(3), row(3))
    board.close()
    assert values(tmp_path / "tensorboard" / "train", "step/loss")[0] == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert values(tmp_path / "tensorboard" / "train", "epoch/accuracy")[0] == {3: 0.5}
    assert values(tmp_path / "tensorboard" / "validation", "epoch/accuracy")[0] == {3: 0.25}
    assert b"    seed: 1" in values(tmp_path / "tensorboard" / "train", "config")[0][0]  # indented: shown as it is


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path):
    folder = tmp_path / "tensorboard"
    # The loss tells the session: the first begins, each of the others goes on from a checkpoint after step 3.
    for loss, first_step, steps in ((1, 0, range(1, 6)), (2, 3, range(4, 8)), (3, 3, range(4, 7))):
        old = set(folder.glob("*/*"))
        board = monitoring.TensorBoard(folder, "seed: 1", first_step=first_step)
        for step in steps:
            board.step_done(training(step), loss=loss, learning_rate=0.5)
        board.epoch_done(training(5), row(5))
        board.close()
        for path in set(folder.glob("*/*")) - old:  # files are read in the order of their names: these are of a day
            path.rename(path.with_name(re.sub(r"tfevents\.\d{10}", f"tfevents.170000000{loss}", path.name)))
        points, count = values(folder / "train", "step/loss")
        assert points == {1: 1, 2: 1, 3: 1} | dict.fromkeys(steps, loss)
        assert count == len(points)
        for part in ("train", "validation"):
            assert values(folder / part, "epoch/loss")[1] == 1


def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(ResourceError, match="tensorboard"):
        monitoring.TensorBoard(tmp_path / "tensorboard", "seed: 1")


def test_everything_is_passed_on_to_all():
    heard = []

    class Listener(Watcher):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, what):
            if what in ("phase_started", "step_done", "epoch_done", "phase_done"):
                return lambda *_: heard.append((self.name, what))
            return super().__getattribute__(what)

    everybody = monitoring.All([Listener("a"), Listener("b")])
    everybody.phase_started(None)
    everybody.step_done(None, 1.0, 0.1)
    everybody.epoch_done(None, {})
    everybody.phase_done(None, None)
    events = ("phase_started", "step_done", "epoch_done", "phase_done")
    assert heard == [(name, event) for event in events for name in ("a", "b")]


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), ValueError("a bug")])
@pytest.mark.parametrize("lost", [False, True])
def test_when_a_listener_fails_the_work_is_committed_before_its_error_goes_on(trouble, lost):
    committed = []

    class Failing(Watcher):
        def step_done(self, training, loss, learning_rate):
            raise trouble

    def commit(training):
        committed.append(training)
        if lost:
            raise ResourceError("nor can this be written")

    everybody = monitoring.All([Watcher(), Failing()], commit)
    with pytest.raises(type(trouble)) as caught:
        everybody.step_done("the training", 1.0, 0.1)
    assert caught.value is trouble
    assert committed == ["the training"]


def test_people_read_a_line_an_epoch_and_what_was_undone():
    screen = Terminal()
    screen.console.file = io.StringIO()
    lines = monitoring.Lines(screen)
    bars = []
    lines.update = lambda done, total: bars.append((done, total))
    phase = SimpleNamespace(name="fine_tune", blocks=("block3",), index=1)
    busy = training(
        phase=phase,
        settings=SimpleNamespace(epochs=4),
        above=SimpleNamespace(trainable_variables=[np.zeros((10, 200))]),
        steps_per_epoch=5,
    )
    lines.phase_started(busy)
    lines.step_done(busy, 0.1, 0.1)
    lines.epoch_done(
        busy, {"epoch": 1, "loss": 0.5, "validation_loss": 0.25, "validation_accuracy": 0.75, "seconds": 1.25}
    )
    busy.progress.waited = 1
    lines.epoch_done(
        busy, {"epoch": 2, "loss": 0.5, "validation_loss": 0.3, "validation_accuracy": 0.7, "seconds": 1.25}
    )
    lines.phase_done(busy, PhaseResult("fine_tune", 2, 0, {}))
    opening, first, second, undone = screen.console.file.getvalue().splitlines()
    assert opening == "fine_tune: training blocks from block3 on, 2,000 weights"
    assert " ".join(first.split()) == (
        "epoch 1/4 loss 0.5000 validation: loss 0.2500, accuracy 75.00% 1.2 s best so far"
    )
    assert "best so far" not in second
    assert undone.startswith("warning: fine_tune did not beat")
    assert bars == [(1, 20)]

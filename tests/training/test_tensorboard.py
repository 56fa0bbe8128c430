"""What TensorBoard shows: event files without a doubled point after a restart, and all that a config can ask for."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from drawing import leave_out_drawing
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data, parse_session_start_info_plugin_data
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.util.tensor_util import make_ndarray

from finetune.config import load_config
from finetune.training import train_config
from finetune.training.tensorboard import HPARAMS, TensorBoard, write_hparams
from finetune.utils import ResourceError, Terminal


def at_step(board, step):
    board.trainer = SimpleNamespace(state=SimpleNamespace(step=step))


def values(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tensors(tag)
    return {event.step: make_ndarray(event.tensor_proto).item() for event in found}, len(found)


def row(step):
    return {"step": step, "loss": step, "accuracy": 0.5, "validation_loss": step, "validation_accuracy": 0.25}


def test_steps_and_epochs_are_written_where_tensorboard_finds_them(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard", "name: <b>x</b>\nseed: 1\n")
    for step in (1, 2, 3):
        at_step(board, step)
        board.on_train_batch_end(step - 1, {"loss": step / 10, "learning_rate": 0.5})
    board.on_epoch_end(0, row(3))
    board.on_train_end()
    folder = tmp_path / "tensorboard"
    assert values(folder, "step/loss")[0] == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert values(folder, "accuracy/training")[0] == {3: 0.5}
    assert values(folder, "accuracy/validation")[0] == {3: 0.25}
    assert b"    seed: 1" in values(folder, "config")[0][0]  # indented: shown as it is


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path):
    folder = tmp_path / "tensorboard"
    # The loss tells the session: the first begins, each of the others goes on from a checkpoint after step 3.
    for loss, first_step, steps in ((1, 0, range(1, 6)), (2, 3, range(4, 8)), (3, 3, range(4, 7))):
        old = set(folder.glob("*"))
        board = TensorBoard(folder, "seed: 1", first_step=first_step)
        for step in steps:
            at_step(board, step)
            board.on_train_batch_end(step - 1, {"loss": loss, "learning_rate": 0.5})
        board.on_epoch_end(0, row(5))
        board.on_train_end()
        for path in set(folder.glob("*")) - old:  # files are read in the order of their names: these are of a day
            path.rename(path.with_name(re.sub(r"tfevents\.\d{10}", f"tfevents.170000000{loss}", path.name)))
        points, count = values(folder, "step/loss")
        assert points == {1: 1, 2: 1, 3: 1} | dict.fromkeys(steps, loss)
        assert count == len(points)
        for part in ("training", "validation"):
            assert values(folder, f"loss/{part}")[1] == 1


def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(ResourceError, match="tensorboard"):
        TensorBoard(tmp_path / "tensorboard", "seed: 1")


@pytest.fixture(scope="module")
def watched(images, common_cache, tmp_path_factory):
    """A run with everything that TensorBoard can be asked for, and what the terminal said."""
    folder = tmp_path_factory.mktemp("watched")
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(common_cache))
        leave_out_drawing(patch)
        result = train_config(settings(images, folder, histograms=True, profile=True), terminal=Terminal(file=log))
    return result, log.getvalue()


def settings(images, folder, **options):
    phase = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
    return load_config(
        {
            "name": "colours",
            "recipe": "none",
            "output": str(folder / "runs"),
            "data": {"folder": str(images), "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
            "model": {"backbone": "tiny", "weights": "none"},
            "head": phase | {"start": "random", "learning_rate": 0.001},  # there is something left to learn
            "fine_tune": phase | {"unfreeze": 2},
            "tensorboard": options,
        }
    )


def events_of(run):
    found = EventAccumulator(str(run.tensorboard), size_guidance={"tensors": 0})
    found.Reload()
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("warm_cache", "report_not_drawn")
def test_who_watches_changes_nothing(watched, images, tmp_path):
    plain = train_config(settings(images, tmp_path))
    pairs = zip(plain.classifier.model.get_weights(), watched[0].classifier.model.get_weights(), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)
    tags = events_of(plain.run).Tags()["tensors"]
    assert not [tag for tag in tags if tag.startswith(("weights/", "gradients/"))]
    assert not (plain.run.tensorboard / "plugins").exists()


@pytest.mark.slow
def test_histograms_show_what_learns_and_nothing_that_is_frozen(watched):
    found = events_of(watched[0].run)
    steps = {tag: [event.step for event in found.Tensors(tag)] for tag in found.Tags()["tensors"]}
    for kind in ("weights", "gradients"):
        assert steps[f"{kind}/logits/kernel"] == [6, 12, 18, 24]
        assert steps[f"{kind}/block3_conv/kernel"] == [18, 24]  # the fine-tune phase alone
        assert not [tag for tag in steps if tag.startswith(f"{kind}/block1_")]
    buckets = make_ndarray(found.Tensors("gradients/logits/kernel")[0].tensor_proto)  # (left, right, count)
    assert buckets[:, 2].sum() == 32 * 3
    assert buckets[0, 0] < 0 < buckets[-1, 1]


@pytest.mark.slow
def test_a_profile_of_each_phase_is_left_and_a_message_says_how_to_see_it(watched):
    result, said = watched
    assert len(list(result.run.tensorboard.glob("plugins/profile/*/*.xplane.pb"))) == 2
    assert said.count("pip install xprof") == 2


@pytest.mark.slow
def test_the_projector_finds_a_point_for_every_validation_image(watched):
    run = watched[0].run
    folder = run.tensorboard
    config = ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    assert [embedding.tensor_name for embedding in config.embeddings] == ["head", "fine_tune"]
    rows = [line.split(",") for line in run.splits_csv.read_text().splitlines()]
    expected = sorted((row[1], row[0]) for row in rows if row[2] == "validation")
    for embedding in config.embeddings:
        vectors = np.loadtxt(folder / embedding.tensor_path, delimiter="\t")
        assert vectors.shape == (15, 32)
        head, *points = [line.split("\t") for line in (folder / embedding.metadata_path).read_text().splitlines()]
        assert head == ["class", "prediction", "file"]
        assert sorted((true, file) for true, _, file in points) == expected
        assert {predicted for _, predicted, _ in points} <= {"blue", "green", "red"}
        with Image.open(folder / embedding.sprite.image_path) as sprite:
            assert sprite.size == (4 * 64, 4 * 64)
        assert list(embedding.sprite.single_image_dim) == [64, 64]


@pytest.mark.slow
def test_a_finished_run_is_a_row_of_hparams(watched):
    result = watched[0]
    found = events_of(result.run)
    tags = [tag for tag in found.Tags()["tensors"] if tag.startswith("summary/")]
    accuracies = {tag: make_ndarray(found.Tensors(tag)[0].tensor_proto).item() for tag in tags}
    validation = result.run.phases[-1]["validation"]["accuracy"]
    assert accuracies == pytest.approx(
        {"summary/validation_accuracy": validation, "summary/test_accuracy": result.metrics.accuracy.value}
    )
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = parse_session_start_info_plugin_data(content)
    assert start.group_name == result.run.path.name
    assert start.hparams["model.backbone"].string_value == "tiny"
    assert start.hparams["fine_tune.learning_rate"].number_value == 0.01
    assert start.hparams["fine_tune.unfreeze"].string_value == "2"
    assert "model.image_size" not in start.hparams  # not set: no value


@pytest.mark.slow
def test_a_training_is_one_run_with_curves_before_single_dots(watched):
    run = watched[0].run
    assert {file.parent for file in run.path.rglob("events.out.tfevents.*")} == {run.tensorboard}
    found = events_of(run)
    scalars = ("accuracy/", "loss/", "step/", "summary/")
    counts = [len(found.Tensors(tag)) for tag in sorted(found.Tags()["tensors"]) if tag.startswith(scalars)]
    assert counts == [4, 4, 4, 4, 24, 24, 1, 1]  # the page sorts its charts by their names
    layout = found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"accuracy/training" in layout
    columns = parse_experiment_plugin_data(found.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert [column.name.tag for column in columns.metric_infos] == [
        "summary/validation_accuracy",
        "summary/test_accuracy",
    ]


def test_every_hparam_is_a_key_of_the_config(images, tmp_path):
    write_hparams(tmp_path / "result", "a-1", settings(images, tmp_path), {})
    events = EventAccumulator(str(tmp_path / "result"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert set(HPARAMS) - set(parse_session_start_info_plugin_data(content).hparams) == {"model.image_size"}


def test_a_result_written_twice_counts_once(images, tmp_path):
    for accuracy in (0.5, 0.75):
        write_hparams(tmp_path / "result", "a-1", settings(images, tmp_path), {"test": accuracy})
    assert values(tmp_path / "result", "summary/test_accuracy") == ({0: 0.75}, 1)

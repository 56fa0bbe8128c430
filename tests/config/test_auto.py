"""What `recipe: auto` chooses, and what it leaves alone."""

import pytest

from finetune.config import Config, DataFacts, as_in_run, dump_config, fill_open_keys, load_config

PHOTOS = DataFacts(images=2936, classes=5, size=(320, 240))
DIGITS = DataFacts(images=1400, classes=10, size=(8, 8))


def complete(facts, **given):
    return fill_open_keys(load_config({"data": {"folder": "."}, **given}), facts)


def test_everything_open_is_chosen_with_a_reason():
    chosen, decisions = complete(PHOTOS)
    assert {decision.key for decision in decisions} == {"head", "fine_tune", "augment"}
    assert all(decision.reason for decision in decisions)
    assert chosen.fine_tune
    assert chosen.augment.active
    assert chosen.model.image_size is None  # the network's own


def test_a_chosen_config_can_be_owned(tmp_path):
    """Written out and loaded again it is the same, and there is nothing left to choose."""
    chosen, _ = complete(DIGITS)
    path = tmp_path / "mine.yaml"
    path.write_text(dump_config(chosen))
    again = load_config(path)
    assert again == chosen
    assert fill_open_keys(again, PHOTOS) == (again, ())


@pytest.mark.parametrize("given", [{"head": {"epochs": 3}}, {"fine_tune": {"epochs": 2}}])
def test_phases_that_the_user_wrote_are_his(given):
    """A head without fine_tune means: the head only."""
    chosen, decisions = complete(PHOTOS, **given)
    assert decisions == ()
    assert chosen == load_config({"data": {"folder": "."}, **given})


def test_single_values_are_kept():
    chosen, _ = complete(DIGITS, model={"image_size": 64}, augment="none")
    assert chosen.model.image_size == 64
    assert chosen.model.resize == "squash"
    assert not chosen.augment.active


def test_recipe_none_chooses_nothing():
    chosen, decisions = complete(DIGITS, recipe="none")
    assert decisions == ()
    assert chosen.fine_tune == ()


def test_small_drawings_get_a_small_input_and_are_never_mirrored():
    chosen, _ = complete(DIGITS)
    assert (chosen.model.image_size, chosen.model.resize) == (96, "squash")
    assert chosen.augment.flip == "none"


def test_long_images_are_kept_whole():
    chosen, _ = complete(DataFacts(images=3000, classes=3, size=(900, 300)))
    assert chosen.model.resize == "pad"


@pytest.mark.parametrize(("images", "classes"), [(40, 2), (800, 200)])
def test_very_few_images_train_the_head_alone(images, classes):
    chosen, _ = complete(DataFacts(images, classes, size=(300, 300)))
    assert chosen.fine_tune == ()
    assert chosen.head.epochs > 0


def test_more_images_need_fewer_epochs():
    epochs = [
        complete(DataFacts(n, 10, (300, 300)))[0].fine_tune[0].epochs for n in (200, 1_500, 3_000, 50_000, 500_000)
    ]
    assert epochs == [20, 12, 6, 6, 3]


def test_values_are_legal():
    for facts in (PHOTOS, DIGITS, DataFacts(10, 2), DataFacts(10**6, 1000, (500, 400))):
        chosen, _ = complete(facts)
        assert Config.model_validate(chosen.model_dump()) == chosen


def test_what_a_file_leaves_open_is_as_the_run_began():
    begun, _ = complete(DIGITS)
    again = load_config({"data": {"folder": "."}})
    assert as_in_run(again, begun) == begun
    mine = load_config({"data": {"folder": "."}, "head": {"epochs": 3}})
    assert as_in_run(mine, begun).head.epochs == 3


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "convnext_base"])
def test_networks_without_batch_norm_take_smaller_steps(name):
    rates = [complete(PHOTOS, model={"backbone": each})[0].fine_tune[0].learning_rate for each in (name, "resnet50")]
    assert rates[0] < rates[1]


def test_a_gpu_trains_all_blocks_on_new_views():
    chosen, decisions = complete(DataFacts(2936, 5, (320, 240), gpu=True))
    assert chosen.fine_tune[0].unfreeze == 1.0
    assert chosen.augment.views == "live"
    assert any("GPU" in decision.reason for decision in decisions)

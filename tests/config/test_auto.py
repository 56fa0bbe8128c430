"""What `recipe: auto` chooses, and what it leaves alone."""

import numpy as np
import pytest

from finetune.backbones import registry as catalog
from finetune.config import auto as recipe, schema as config
from finetune.config.auto import DataFacts
from finetune.data import dataset as data
from finetune.models import classifier as classifiers
from finetune.training import trainer as training
from finetune.utils.device import keras

PHOTOS = DataFacts(images=2936, classes=5, size=(320, 240))
DIGITS = DataFacts(images=1400, classes=10, size=(8, 8))


def complete(facts, **given):
    return recipe.fill_open_keys(config.load_config({"data": {"folder": "."}, **given}), facts)


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
    path.write_text(config.dump_config(chosen))
    again = config.load_config(path)
    assert again == chosen
    assert recipe.fill_open_keys(again, PHOTOS) == (again, ())


@pytest.mark.parametrize("given", [{"head": {"epochs": 3}}, {"fine_tune": {"epochs": 2}}])
def test_phases_that_the_user_wrote_are_his(given):
    """A head without fine_tune means: the head only."""
    chosen, decisions = complete(PHOTOS, **given)
    assert decisions == ()
    assert chosen == config.load_config({"data": {"folder": "."}, **given})


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


@pytest.mark.parametrize(("pictures", "classes"), [(40, 2), (800, 200)])
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
        assert config.Config.model_validate(chosen.model_dump()) == chosen


def test_what_a_file_leaves_open_is_as_the_run_began():
    begun, _ = complete(DIGITS)
    again = config.load_config({"data": {"folder": "."}})
    assert recipe.as_in_run(again, begun) == begun
    mine = config.load_config({"data": {"folder": "."}, "head": {"epochs": 3}})
    assert recipe.as_in_run(mine, begun).head.epochs == 3


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "convnext_base"])
def test_networks_without_batch_norm_take_smaller_steps(name):
    rates = [complete(PHOTOS, model={"backbone": each})[0].fine_tune[0].learning_rate for each in (name, "resnet50")]
    assert rates[0] < rates[1]


def test_a_gpu_trains_all_blocks_on_new_views():
    chosen, decisions = complete(DataFacts(2936, 5, (320, 240), gpu=True))
    assert chosen.fine_tune[0].unfreeze == 1.0
    assert chosen.augment.views == "live"
    assert any("GPU" in decision.reason for decision in decisions)


@pytest.mark.parametrize("name", ["efficientnet_v2_b0", "convnext_tiny", "resnet50", "mobilenet_v3_small"])
def test_the_recipe_holds_for_other_networks(name, images):
    """Random weights and numbers, a real step: the promised share of the blocks learns, and nothing else moves."""
    chosen, _ = complete(PHOTOS, model={"backbone": name, "weights": "none", "image_size": 64})
    dataset = data.open_dataset(config.load_config({"data": {"folder": str(images)}}).data, seed=0)
    classifier = classifiers.build_classifier(chosen.model, dataset.classes, seed=0)
    phase = training.plan_phases(chosen, classifier)[1]
    blocks = [block.name for block in catalog.blocks_of(name)]
    assert list(phase.blocks) == blocks[-len(phase.blocks) :]
    assert len(phase.blocks) == pytest.approx(0.4 * len(blocks), abs=1)

    trained = training.Trainer(
        phase, classifier, None, dataset, config=chosen, progress=training.TrainingState(phase=1)
    )
    trained.optimizer.iterations.assign(2)  # in the warm-up the first step of all has a rate of 0
    learning = {variable.path for variable in trained.above.trainable_variables}
    normalised = [layer for layer in trained.above.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert bool(normalised) == catalog.find_backbone(name).batch_norm
    assert learning.isdisjoint(weight.path for layer in normalised for weight in layer.weights)
    before = [weight.numpy() for weight in classifier.model.weights]
    inputs = np.random.default_rng(0).normal(size=(4, *phase.cut.shape[1:])).astype(np.float32)
    trained.train_batch(inputs, np.array([0, 1, 2, 0], np.int32))
    moved = {
        weight.path
        for weight, old in zip(classifier.model.weights, before, strict=True)
        if (weight.numpy() != old).any()
    }
    assert moved <= learning
    assert len(moved) > 0.8 * len(learning)  # some random kernels have slopes too small to move

"""Blocks and cuts, found from the graph."""

import numpy as np
import pytest

from finetune.backbones import blocks
from finetune.utils import ConfigError, keras


def residual_network():
    """stem 3x3, a residual block, an inverted residual without a shortcut, a closing 1x1."""
    kl = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = kl.Conv2D(8, 3, padding="same", name="stem")(image)
    stem = x = kl.ReLU(name="stem_relu")(x)
    x = kl.Conv2D(8, 3, padding="same", name="one_a")(x)
    x = kl.BatchNormalization(name="one_bn")(x)
    x = kl.Conv2D(8, 3, padding="same", name="one_b")(x)
    x = kl.Add(name="one_add")([x, stem])
    x = kl.Conv2D(16, 1, name="two_expand")(x)
    x = kl.DepthwiseConv2D(3, strides=2, padding="same", name="two_depthwise")(x)
    x = kl.Conv2D(12, 1, name="two_project")(x)
    x = kl.Conv2D(32, 1, name="closing")(x)
    return keras.Model(image, kl.ReLU(name="last")(x))


def test_blocks_follow_the_graph_and_never_halve_a_residual():
    found = blocks.find_blocks(residual_network())
    assert [block.name for block in found] == ["stem", "one_a", "two_expand"]
    assert [layer.name for layer in found[1].layers] == ["one_a", "one_bn", "one_b", "one_add"]
    assert found[-1].layers[-1].name == "last"  # the closing 1x1 belongs to the last block


def test_the_two_sides_of_a_cut_compose_to_the_whole_exactly():
    model = residual_network()
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    whole = model(images, training=False).numpy()
    for block in blocks.find_blocks(model)[1:]:
        below = keras.Model(model.inputs[0], block.input)
        above = keras.Model(block.input, model.output)
        np.testing.assert_array_equal(above(below(images, training=False), training=False).numpy(), whole)


def test_every_layer_is_in_one_block():
    model = residual_network()
    listed = [layer.name for block in blocks.find_blocks(model) for layer in block.layers]
    assert sorted(listed) == sorted(layer.name for layer in model.layers if layer.name != "image")


@pytest.mark.parametrize(
    ("wanted", "first"),
    [(1, "two_expand"), (2, "one_a"), (99, "stem"), (0.3, "two_expand"), ("one_bn", "one_a"), ("all", "stem")],
)
def test_unfreeze(wanted, first):
    assert blocks.select_blocks(blocks.find_blocks(residual_network()), wanted)[0].name == first


def test_unfreeze_an_unknown_layer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no layer 'one_bm'. Did you mean .*'one_bn'"):
        blocks.select_blocks(blocks.find_blocks(residual_network()), "one_bm")


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0"])
def test_a_classifier_has_the_blocks_of_the_catalogue(name):
    from finetune import config
    from finetune.models import build_classifier

    built = build_classifier(config.ModelConfig(backbone=name, weights="none"), ["a", "b"])
    assert [block.name for block in built.blocks()] == [block.name for block in blocks.blocks_of(name)]


def test_a_layer_of_the_users_own_may_have_one_number_as_its_kernel_size():
    model, own = residual_network(), residual_network()
    for layer in own.layers:
        if hasattr(layer, "kernel_size"):
            layer.kernel_size = layer.kernel_size[0]
    assert [block.name for block in blocks.find_blocks(own)] == [block.name for block in blocks.find_blocks(model)]

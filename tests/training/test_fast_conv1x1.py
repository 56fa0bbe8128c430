"""The faster way back through 1x1 convolutions gives the same answers and the same gradients."""

import numpy as np
import pytest

from finetune.training import fast_conv1x1 as gradients
from finetune.utils.device import keras, tf


@pytest.fixture
def network() -> keras.Model:
    inputs = keras.Input((9, 9, 6))
    x = keras.layers.Conv2D(8, 1, use_bias=True, name="expand")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Conv2D(4, 1, padding="same", use_bias=False, activation="relu", name="project")(x)
    return keras.Model(inputs, keras.layers.Conv2D(5, 1, strides=2, name="strided")(x))


def _gradients(network: keras.Model, inputs: tf.Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = network(inputs)
        loss = tf.reduce_sum(outputs * tf.sin(tf.range(5.0)))
    wanted = [inputs, *network.trainable_variables]
    return outputs.numpy(), [np.asarray(slope) for slope in tape.gradient(loss, wanted)]


def test_same_answers_and_gradients(network: keras.Model) -> None:
    inputs = tf.random.stateless_normal((3, 9, 9, 6), (1, 2))
    answers, slopes = _gradients(network, inputs)
    with gradients.fast_conv1x1(network.layers):
        fast_answers, fast_slopes = _gradients(network, inputs)
    np.testing.assert_array_equal(fast_answers, answers)
    for fast, slow in zip(fast_slopes, slopes, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


def test_only_while_inside_and_only_where_it_holds(network: keras.Model) -> None:
    with gradients.fast_conv1x1(network.layers):
        swapped = {layer.name for layer in network.layers if "convolution_op" in vars(layer)}
    assert swapped == {"expand", "project"}
    assert not any("convolution_op" in vars(layer) for layer in network.layers)

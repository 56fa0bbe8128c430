"""Replaced methods of Keras do what those of Keras do, and are put back."""

import numpy as np
import pytest

from finetune.training.distributed.group import BatchShard
from finetune.training.keras_patches import fast_conv1x1, layers_see_whole_batch, scale_learning_rates
from finetune.utils import keras, tf


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
    sources = [inputs, *network.trainable_variables]
    return outputs.numpy(), [np.asarray(gradient) for gradient in tape.gradient(loss, sources)]


def test_the_fast_convolution_has_the_same_outputs_and_gradients(network: keras.Model) -> None:
    inputs = tf.random.stateless_normal((3, 9, 9, 6), (1, 2))
    outputs, gradients = _gradients(network, inputs)
    with fast_conv1x1(network.layers):
        fast_outputs, fast_gradients = _gradients(network, inputs)
    np.testing.assert_array_equal(fast_outputs, outputs)
    for fast, slow in zip(fast_gradients, gradients, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-5)


def test_the_fast_convolution_is_used_inside_and_where_it_holds(network: keras.Model) -> None:
    with fast_conv1x1(network.layers):
        swapped = {layer.name for layer in network.layers if "convolution_op" in vars(layer)}
    assert swapped == {"expand", "project"}
    assert not any("convolution_op" in vars(layer) for layer in network.layers)


def test_dropout_of_a_shard_is_its_part_of_the_dropout_of_the_whole() -> None:
    batch = tf.ones((8, 5))
    parts = []
    for first, last in ((0, 3), (3, 8)):
        layer = keras.layers.Dropout(0.5, seed=7)
        patch = layers_see_whole_batch([layer])
        patch.draw_seeds()
        with patch.patched(BatchShard(8, first, last)):
            parts.append(layer(batch[first:last], training=True).numpy())
        assert "call" not in vars(layer)
    whole = keras.layers.Dropout(0.5, seed=7)(batch, training=True).numpy()
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_scaled_learning_rate_scales_the_step() -> None:
    near, far = keras.Variable([1.0]), keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([near, far])
    scale_learning_rates(optimizer, {near.value.ref(): 0.5})
    optimizer.apply([tf.constant([1.0]), tf.constant([1.0])], [near, far])
    assert near.numpy()[0] == pytest.approx(0.95)
    assert far.numpy()[0] == pytest.approx(0.9)

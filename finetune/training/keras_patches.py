"""Methods of Keras' objects that are replaced here, on single instances and for a while; all such patches are here.

| what                          | replaced                                  | tested on     |
|-------------------------------|-------------------------------------------|---------------|
| `scale_learning_rates`        | `optimizer.update_step` and               | Keras 3.15.1  |
|                               | `._apply_weight_decay`, until its end     |               |
| `average_once_per_step`       | `optimizer._update_model_variables_...`   | Keras 3.15.1  |
| `fast_conv1x1`                | `Conv2D.convolution_op`, inside a `with`  | Keras 3.15.1  |
| `layers_see_whole_batch`      | `Dropout.call`, inside a `with`           | Keras 3.15.1  |

The tests of each compare with what Keras does without the patch, so that a version that changes it is noticed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune.utils import keras, tf

if TYPE_CHECKING:
    from finetune.training.distributed.group import BatchShard


def scale_learning_rates(optimizer: Any, scales: Mapping[Any, float]) -> None:
    """Multiply the steps and the weight decay of some variables, by their `ref()`; both are those of the optimizer.

    Keras passes the learning rate to `update_step` for each variable, so this is where it can differ between them.
    keras.optimizers.MultiOptimizer would need one optimizer with a state of its own per block.
    """
    if not scales:
        return
    step, decay, full_decay = optimizer.update_step, optimizer._apply_weight_decay, optimizer.weight_decay

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> Any:
        return step(gradient, variable, learning_rate * scales.get(variable.ref(), 1.0))

    def apply_weight_decay(variables: Sequence[Any]) -> None:
        for variable in variables:
            optimizer.weight_decay = full_decay * scales.get(variable.value.ref(), 1.0)
            decay([variable])
        optimizer.weight_decay = full_decay

    optimizer.update_step = update_step
    if full_decay:
        optimizer._apply_weight_decay = apply_weight_decay


def average_once_per_step(optimizer: Any) -> None:
    """With gradient accumulation, the moving average of the weights moves with each step; Keras' with each batch."""
    update = optimizer._update_model_variables_moving_average

    def update_after_step(variables: Sequence[Any]) -> None:
        is_step = (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0
        keras.ops.cond(is_step, lambda: update(variables), lambda: None)

    if optimizer.gradient_accumulation_steps:
        optimizer._update_model_variables_moving_average = update_after_step


# ------------------------------------------------------------------------------------------- 1x1 convolutions


@contextmanager
def fast_conv1x1(layers: Sequence[Any]) -> Iterator[None]:
    """Inside, the gradient of every 1x1 convolution among `layers` is computed as a forward convolution.

    TensorFlow's CPU kernel for the input gradient of a convolution takes about three times as long as a forward
    convolution of the same size. For 1x1 kernels the input gradient *is* a forward convolution with the kernel
    transposed; written so, a fine-tuning step of MobileNetV2 or EfficientNet-Lite0 is 1.25 to 1.45 times as fast
    (benchmarks/RESULTS.md). The result of the forward pass is the same to the bit.

    Meant to surround the tracing of a training step. It is undone afterwards, because inference wants the plain
    operation, which TensorFlow can fuse with what follows it.
    """
    patched = [layer for layer in layers if _is_conv1x1(layer)]
    convolve = _conv1x1()
    for layer in patched:
        layer.convolution_op = lambda inputs, kernel: convolve(
            tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        )
    try:
        yield
    finally:
        for layer in patched:
            del layer.convolution_op  # the method of the class comes back


def _is_conv1x1(layer: Any) -> bool:
    plain = type(layer) is keras.layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last"
    return plain and layer.kernel_size == (1, 1) and layer.strides == (1, 1)


@cache
def _conv1x1() -> Any:
    """The convolution with its own gradient; made when it is first needed, for it needs TensorFlow."""

    @tf.custom_gradient
    def convolve(inputs: Any, kernel: Any) -> Any:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            of_inputs = tf.nn.conv2d(upstream, tf.transpose(kernel, (0, 1, 3, 2)), 1, "VALID")
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=inputs, filter_sizes=tf.shape(kernel), out_backprop=upstream, strides=[1] * 4, padding="VALID"
            )
            return of_inputs, of_kernel

        return tf.nn.conv2d(inputs, kernel, 1, "VALID"), gradient

    return convolve


# -------------------------------------------------------------------------------------- a batch on several devices


class layers_see_whole_batch:
    """Layers that act on a batch as a whole do so although each device has only its rows of it.

    Dropout (and drop-path) drops what it would drop on one device; BatchNorm that trains uses the statistics of all
    devices (Keras' own `synchronized`).
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._dropouts = [layer for layer in layers if type(layer) is keras.layers.Dropout and layer.rate > 0]
        self._norms = [
            layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        self._seeds: list[Any] = []

    def draw_seeds(self) -> None:
        """Draw the random numbers of a step: once for all devices, outside of what each of them computes."""
        self._seeds = [layer.seed_generator.next() for layer in self._dropouts]

    @contextmanager
    def patched(self, shard: "BatchShard") -> Iterator[None]:
        """Inside, the layers act on the rows of `shard`. Meant to surround the tracing of a step."""
        for layer in self._norms:
            layer.synchronized = True
        for layer, seed in zip(self._dropouts, self._seeds, strict=True):
            layer.call = _dropout_call(layer, shard, seed)
        try:
            yield
        finally:
            for layer in self._norms:
                layer.synchronized = False
            for layer in self._dropouts:
                del layer.call  # the method of the class comes back


def _dropout_call(layer: Any, shard: "BatchShard", seed: Any) -> Callable[..., Any]:
    def call(inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        noise_shape = layer.noise_shape or (None,) * inputs.shape.rank
        own_shape = tf.shape(inputs)
        shape = [own_shape[axis] if side is None else side for axis, side in enumerate(noise_shape)]
        shape[0] = shard.count  # of the whole batch
        int32_seed = tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)  # as Keras does, for equal numbers
        mask = tf.nn.experimental.stateless_dropout(tf.ones(shape, inputs.dtype), layer.rate, int32_seed)
        return inputs * shard.rows(mask)

    return call

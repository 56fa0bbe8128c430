"""One optimizer step, compiled: loss with class imbalance, gradients, a check that all is finite.

    step = TrainStep(above, optimizer, loss_for(dataset.label_type), classes=5)
    result = step(inputs, labels, seed=(0, 0, 17))        # StepResult(loss=0.31, learning_rate=0.001, ...)

This is the only part of the loop that knows of several devices and processes. Each of them computes the gradients of
its rows of the same batch, and all make the same step with the sum (`distributed`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune.data import MixUpCutMix
from finetune.models import all_rows
from finetune.training.distributed.group import BatchShard, explain_lost_process, process_group
from finetune.training.keras_patches import fast_conv1x1, layers_see_whole_batch
from finetune.training.losses import ClassImbalance, TaskLoss
from finetune.training.phases import all_layers
from finetune.utils import keras, sha256_of, tf, visible_gpus


class StepResult(NamedTuple):
    """What one step came to, over all devices."""

    loss: float  # mean over the batch, without regularisation
    learning_rate: float
    correct: float  # how many predictions were correct; in part, where an image has several labels
    finite: bool  # whether the loss, all gradients and all weights are finite


class TrainStep:
    """The compiled step of one phase. A step that is not finite changes no weight."""

    def __init__(
        self,
        above: Any,
        optimizer: Any,
        task_loss: TaskLoss,
        *,
        classes: int,
        imbalance: ClassImbalance,
        label_smoothing: float = 0.0,
        mixer: MixUpCutMix | None = None,
    ) -> None:
        self._group = process_group()
        self._mixer = mixer
        self._compiled = self._compile(above, optimizer, task_loss, classes, imbalance, label_smoothing)

    def rows(self, count: int) -> slice:
        """The rows of a batch of `count` images whose inputs this process must read."""
        if self._mixer:  # an image and its partner may be with different processes
            return all_rows(count)
        return self._group.rows_of_rank(count)

    def __call__(self, inputs: np.ndarray, labels: np.ndarray, seed: Sequence[int]) -> StepResult:
        """One step with the labels of a whole batch and the inputs of its `rows`; `seed` is for MixUp and CutMix."""
        if self._mixer:
            self._mixer.reseed(tuple(seed))
        stop_requested = tf.constant(float(self._group.stop_requested()))
        with explain_lost_process():
            outcome = self._compiled(tf.convert_to_tensor(inputs), tf.convert_to_tensor(labels), stop_requested)
            loss, learning_rate, correct, finite, stop_requests = outcome.numpy().tolist()
        self._group.stopping |= stop_requests > 0
        return StepResult(loss, learning_rate, correct, bool(finite))

    def _compile(
        self,
        above: Any,
        optimizer: Any,
        task_loss: TaskLoss,
        classes: int,
        imbalance: ClassImbalance,
        label_smoothing: float,
    ) -> Any:
        """`(inputs, labels, stop requested) -> [loss, learning rate, correct, finite, requests to stop]`."""
        group, mixer = self._group, self._mixer
        layers, variables = list(all_layers(above)), above.trainable_variables
        dtype, total_loss = tf.as_dtype(keras.config.floatx()), task_loss.total(label_smoothing)
        class_weights, offsets = (tf.constant(array, dtype) for array in imbalance)
        whole_batch = layers_see_whole_batch([] if group.is_single_device else layers)

        def compute_gradients(shard: BatchShard, inputs: Any, targets: Any, labels: Any) -> list[Any]:
            with (
                tf.GradientTape() as tape,
                fast_conv1x1([] if visible_gpus() else layers),
                whole_batch.patched(shard),
            ):
                logits = tf.cast(above(inputs, training=True), dtype)
                loss = shard.weight * total_loss(targets, logits + offsets, class_weights) / tf.cast(shard.count, dtype)
                total = tf.add_n([loss, *(regularisation / group.num_replicas for regularisation in above.losses)])
            correct = shard.weight * tf.cast(task_loss.correct(logits, labels), dtype)
            return [total, loss, correct, *tape.gradient(total, variables)]

        def apply_gradients(gradients: Sequence[Any]) -> Any:
            optimizer.apply(gradients, variables)
            return tf.constant(True)

        @tf.function(autograph=False, reduce_retracing=True)
        def step(inputs: Any, labels: Any, stop_requested: Any) -> Any:
            targets = task_loss.encode(labels, classes)  # (N, classes)
            if mixer:
                inputs, targets = mixer(inputs, targets)
            whole_batch.draw_seeds()

            def compute(shard: BatchShard) -> list[Any]:
                gradients = compute_gradients(shard, shard.held(inputs), shard.rows(targets), shard.rows(labels))
                return [tf.cast(stop_requested, dtype), *gradients]

            sums = group.sum_over_shards(compute, count=tf.shape(labels)[0], held=tf.shape(inputs)[0])
            stop_requests, total, loss, correct, *gradients = sums
            learning_rate = tf.cast(optimizer.learning_rate, dtype)
            finite = tf.math.is_finite(total) & tf.math.is_finite(tf.linalg.global_norm(gradients))
            tf.cond(finite, lambda: apply_gradients(gradients), lambda: tf.constant(False))
            # A ReLU that oneDNN has fused turns NaN into 0, so a finite loss proves nothing about the weights.
            finite &= tf.math.is_finite(tf.linalg.global_norm([variable.value for variable in variables]))
            return tf.stack([loss, learning_rate, correct, tf.cast(finite, dtype), stop_requests])

        return step


def assert_same_weights(variables: Sequence[Any], when: str) -> None:
    """FinetuneError, on all processes, if they have come to different weights."""
    group = process_group()
    if group.world_size > 1:
        digest = sha256_of(variable.numpy().tobytes() for variable in variables)
        group.assert_same_on_all_ranks({f"weights of {when}": digest})

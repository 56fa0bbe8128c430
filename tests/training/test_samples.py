"""The validation images that TensorBoard shows."""

import numpy as np

from finetune.training import samples


def test_samples_take_each_class_before_any_comes_twice():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    indices = np.arange(2, 103)
    chosen = samples.spread_over_classes(indices, labels, 6, seed=1)
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert set(chosen) <= set(indices)
    assert chosen.tolist() == samples.spread_over_classes(indices, labels, 6, seed=1).tolist()
    assert chosen.tolist() != samples.spread_over_classes(indices, labels, 6, seed=2).tolist()
    assert sorted(samples.spread_over_classes(indices[:4], labels, 6, seed=1)) == [2, 3, 4, 5]

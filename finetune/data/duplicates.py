"""Images that look alike though their files differ: copies of another size or quality, frames of one film.

    pairs, share = find(by_fingerprint(fingerprints), dataset.labels, dataset.splits, least=LEAST_FINGERPRINT)
    pairs[0].first, pairs[0].second, pairs[0].likeness

Only pairs in two splits (the test is then no test) or of two classes (one label is wrong) are looked for. Two ways to
describe an image, one way to compare: vectors of length 1, whose product is 1 for what looks the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_FINGERPRINT = 0.87  # at most 8 of the 128 bits differ; with 9, the first two daisies were taken for one
LEAST_FEATURES = 0.88  # of 14 such pairs in flower_photos all were of one scene; from 0.87 down some were not
LEAST_BITS = 12  # an image with fewer is nearly of one colour, and looks like any other such
WORK = 2.5e11  # multiplications: some seconds on two cores
MOST = 1000  # pairs that are kept
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SimilarPair:
    """Two images of a data set, by their positions; `likeness` is 1 for what looks the same."""

    first: int
    second: int
    likeness: float


def fingerprint_vectors(fingerprints: Sequence[str]) -> Floats:
    """Vectors (N, 128) of `images.fingerprint`s; an image without enough structure is 0, like nothing else."""
    bits = np.unpackbits(
        np.array([list(bytes.fromhex(one or "0" * 32)) for one in fingerprints], np.uint8).reshape(-1, 16), axis=1
    )
    vectors: Floats = (bits.astype(np.float32) * 2 - 1) / np.sqrt(np.float32(128))
    vectors[bits.sum(axis=1) < LEAST_BITS] = 0
    return vectors


def feature_vectors(features: npt.ArrayLike) -> Floats:
    """Vectors (N, c) of pooled features less their mean: their product is the cosine of the angle between them.

    Without the mean, which all images share, flowers of one kind are as near to each other as copies are.
    """
    rows = np.asarray(features, np.float32)
    rows = rows - rows.mean(axis=0)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def find_similar(
    vectors: Floats, labels: npt.NDArray[np.integer], splits: npt.NDArray[np.integer], *, least: float
) -> tuple[list[SimilarPair], float]:
    """Pairs with a likeness of `least` or more, the likest first and MOST at most; and the share of images looked at.

    All images are held against all others while that takes seconds; of more than some ten thousand, the test
    images come first, then those of validation.
    """
    count, width = vectors.shape
    rows = np.argsort(-splits.astype(int), kind="stable")[: max(1, int(WORK / max(1, count * width)))]
    found: dict[tuple[int, int], float] = {}
    for chunk in np.array_split(rows, max(1, len(rows) * count // 4_000_000)):
        likeness = vectors[chunk] @ vectors.T
        likeness[(labels[chunk, None] == labels) & (splits[chunk, None] == splits)] = -1
        near = np.flatnonzero(likeness >= least)
        near = near[np.argsort(-likeness.flat[near], kind="stable")[:MOST]]
        for at, other in zip(chunk[near // count].tolist(), (near % count).tolist(), strict=True):
            found[min(at, other), max(at, other)] = float(vectors[at] @ vectors[other])
    pairs = [SimilarPair(first, second, likeness) for (first, second), likeness in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.likeness, pair.first, pair.second))[:MOST], len(rows) / count

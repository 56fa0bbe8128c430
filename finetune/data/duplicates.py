"""Near-duplicates: images that look the same though their files differ, as copies of another size or frames of a film.

    vectors = fingerprint_vectors([inspection.fingerprint for inspection in inspections])
    pairs, fraction = find_near_duplicates(
        vectors, dataset.labels, dataset.splits, min_similarity=MIN_FINGERPRINT_SIMILARITY
    )

Only pairs in two splits, which make a test too easy, or with two labels, one of which is wrong, are looked for. There
are two ways to describe an image, and one to compare: vectors of length 1, whose product is 1 for equal looks.

    distinct_images(hashes, fingerprints, labels)     positions of the images that are left without copies
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_FINGERPRINT_SIMILARITY = 0.87  # at most 8 of the 128 bits differ; with 9, two different daisies were a pair
MIN_FEATURE_SIMILARITY = 0.88  # of 14 such pairs in flower_photos all were of one scene; from 0.87 down some were not
MIN_BITS = 12  # an image with fewer is nearly of one colour, and looks like any other such image
MAX_MULTIPLICATIONS = 2.5e11  # some seconds on two cores
MAX_PAIRS = 1000
CHUNK = 512  # images compared at once
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SimilarPair:
    """Two images of a data set, by their positions; `similarity` is 1 for images that look the same."""

    first: int
    second: int
    similarity: float


def fingerprint_vectors(fingerprints: Sequence[str]) -> Floats:
    """Vectors (n, 128) of fingerprints of `inspect_image`; zeros for an image without enough structure."""
    numbers = [list(bytes.fromhex(fingerprint or "0" * 32)) for fingerprint in fingerprints]
    bits = np.unpackbits(np.array(numbers, np.uint8).reshape(-1, 16), axis=1)
    vectors: Floats = (bits.astype(np.float32) * 2 - 1) / np.sqrt(np.float32(128))
    vectors[bits.sum(axis=1) < MIN_BITS] = 0
    return vectors


def feature_vectors(features: npt.ArrayLike) -> Floats:
    """Vectors (n, channels) of pooled features less their mean: the product of two is the cosine of their angle.

    With the mean, which all images have in common, flowers of one kind would be as near to each other as copies are.
    """
    rows = np.asarray(features, np.float32)
    rows = rows - rows.mean(axis=0)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def find_near_duplicates(
    vectors: Floats, labels: npt.NDArray[np.integer], splits: npt.NDArray[np.integer], *, min_similarity: float
) -> tuple[list[SimilarPair], float]:
    """Pairs of at least `min_similarity`, the most similar first, `MAX_PAIRS` at most; and the fraction compared.

    All images are compared with all others while that takes seconds. Of more than some ten thousand only a fraction
    is compared with all others: the test images first, then those of validation.
    """
    count, width = vectors.shape
    affordable = max(1, int(MAX_MULTIPLICATIONS / max(1, count * width)))
    rows = np.argsort(-splits.astype(int), kind="stable")[:affordable]
    similarity_of: dict[tuple[int, int], float] = {}
    for chunk in np.array_split(rows, max(1, len(rows) * count // 4_000_000)):
        similarity = vectors[chunk] @ vectors.T  # (chunk, n)
        similarity[(labels[chunk, None] == labels) & (splits[chunk, None] == splits)] = -1
        near = np.flatnonzero(similarity >= min_similarity)
        near = near[np.argsort(-similarity.flat[near], kind="stable")[:MAX_PAIRS]]
        for image, other in zip(chunk[near // count].tolist(), (near % count).tolist(), strict=True):
            similarity_of[min(image, other), max(image, other)] = float(vectors[image] @ vectors[other])
    pairs = [SimilarPair(first, second, similarity) for (first, second), similarity in similarity_of.items()]
    pairs.sort(key=lambda pair: (-pair.similarity, pair.first, pair.second))
    return pairs[:MAX_PAIRS], len(rows) / count


def find_copies_in_later_splits(vectors: Floats, splits: npt.NDArray[np.integer]) -> dict[int, int]:
    """The positions of images of train that look like one of validation or test, and of validation like one of test.

    Each is mapped to the position of the image that it is nearest to. Takes as long as it needs.
    """
    copies: dict[int, int] = {}
    for split in np.unique(splits)[:-1]:
        later = np.flatnonzero(splits > split)
        members = np.flatnonzero(splits == split)
        for rows in np.array_split(members, max(1, len(members) * len(later) // 4_000_000)):
            similarity = vectors[rows] @ vectors[later].T
            nearest = similarity.argmax(axis=1)
            near = similarity.max(axis=1) >= MIN_FINGERPRINT_SIMILARITY
            copies.update(zip(rows[near].tolist(), later[nearest[near]].tolist(), strict=True))
    return copies


def distinct_images(
    hashes: Sequence[str], fingerprints: Sequence[str], labels: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Positions, in order, of the images that are left when of equal and of near-equal ones only the first counts.

    `labels` are integers (n,); images with different labels are different. No two of the images that are left have
    fingerprints as near as `MIN_FINGERPRINT_SIMILARITY`. In a class of more than some 40,000 images
    only equal files count as copies.
    """
    first_copies: dict[tuple[str, int], int] = {}
    for position, copy in enumerate(zip(hashes, labels.tolist(), strict=True)):
        first_copies.setdefault(copy, position)
    positions = np.array(list(first_copies.values()), np.int64)
    vectors = fingerprint_vectors(fingerprints)
    kept: list[int] = []
    for label in np.unique(labels):
        members = positions[labels[positions] == label]
        affordable = len(members) ** 2 * vectors.shape[1] <= MAX_MULTIPLICATIONS
        kept += members[_first_looks(vectors[members])].tolist() if affordable else members.tolist()
    return np.array(sorted(kept), np.int64)


def _first_looks(vectors: Floats) -> list[int]:
    """Rows, in order, that are not near to an earlier one of them."""
    kept: list[int] = []
    for start in range(0, len(vectors), CHUNK):
        chunk = vectors[start : start + CHUNK]
        seen = (chunk @ vectors[kept].T >= MIN_FINGERPRINT_SIMILARITY).any(axis=1)
        similar = chunk @ chunk.T >= MIN_FINGERPRINT_SIMILARITY
        new: list[int] = []
        for row in np.flatnonzero(~seen).tolist():
            if not similar[row, new].any():
                new.append(row)
        kept += [start + row for row in new]
    return kept

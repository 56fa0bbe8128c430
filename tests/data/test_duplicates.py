"""Near-duplicates are found, others are not, and every pair once."""

import numpy as np
import pytest
from PIL import Image

from finetune.data import (
    MIN_FINGERPRINT_SIMILARITY,
    distinct_images,
    duplicates,
    feature_vectors,
    find_near_duplicates,
    fingerprint_vectors,
)
from finetune.data.inspection import fingerprint


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """An image with soft shapes, as photos have them."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def similarity(first: Image.Image, second: Image.Image) -> float:
    vector, other = fingerprint_vectors([fingerprint(first), fingerprint(second)])
    return float(vector @ other)


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_of_another_size_quality_or_brightness_is_similar(seed, tmp_path):
    original = photo(seed)
    original.save(tmp_path / "copy.jpg", quality=30)
    with Image.open(tmp_path / "copy.jpg") as poor:
        copies = [original.resize((200, 150)), poor, original.point(lambda value: int(value * 0.8)), photo(seed)]
        assert min(similarity(original, copy) for copy in copies) >= MIN_FINGERPRINT_SIMILARITY
    others = [photo(seed + 100), original.transpose(Image.Transpose.ROTATE_180)]
    assert max(similarity(original, other) for other in others) < 0.7


def test_images_of_one_colour_look_like_nothing_else():
    flat = [Image.new("RGB", (50, 50), colour) for colour in ("white", "black")]
    assert similarity(*flat) == 0
    assert fingerprint_vectors(["", "0" * 32]).tolist() == np.zeros((2, 128)).tolist()


def test_only_pairs_across_splits_or_classes_count_and_each_once():
    rows = np.repeat(np.eye(3, dtype=np.float32), 3, axis=0)  # three groups of three that look the same
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2])
    splits = np.array([0, 0, 2, 0, 0, 0, 1, 1, 1])
    pairs, fraction = find_near_duplicates(rows, labels, splits, min_similarity=0.9)
    assert fraction == 1
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 2), (1, 2), (3, 5), (4, 5)]
    assert all(pair.similarity == pytest.approx(1) for pair in pairs)


def test_the_most_similar_come_first():
    rows = np.array([[1.0, 0.0], [1.0, 0.3], [1.0, 0.1]], np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs, _ = find_near_duplicates(rows, np.arange(3), np.zeros(3, int), min_similarity=0.9)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 2), (1, 2), (0, 1)]
    assert pairs[2].similarity == pytest.approx(1 / np.hypot(1, 0.3))
    assert len(find_near_duplicates(rows, np.arange(3), np.zeros(3, int), min_similarity=0.99)[0]) == 1


def test_features_are_compared_by_what_they_do_not_share():
    rows = 10 + np.random.default_rng(0).normal(size=(50, 20))
    vectors = feature_vectors(rows)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert abs(vectors @ vectors.T - np.eye(50)).max() < 0.9  # with their mean, all would be above 0.98


def test_many_images_cost_no_more_than_some_seconds_and_the_fraction_is_returned(monkeypatch):
    random = np.random.default_rng(0)
    rows = feature_vectors(random.normal(size=(400, 8)))
    rows[399] = rows[0]
    splits = np.array([0] * 390 + [2] * 10)
    monkeypatch.setattr(duplicates, "MAX_MULTIPLICATIONS", 10 * 400 * 8)
    pairs, fraction = find_near_duplicates(rows, np.zeros(400, int), splits, min_similarity=0.9999)
    assert fraction == pytest.approx(10 / 400)
    assert (0, 399) in [(pair.first, pair.second) for pair in pairs]


def test_data_in_which_all_images_are_similar_is_no_flood(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 20)
    rows = np.full((300, 4), 0.5, np.float32)
    pairs, _ = find_near_duplicates(rows, np.arange(300), np.zeros(300, int), min_similarity=0.9)
    assert len(pairs) == 20


def test_of_copies_and_near_copies_only_the_first_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", 2)  # copies lie in other chunks too
    images = [photo(0), photo(1), photo(0).resize((200, 150)), photo(2), photo(1), Image.new("RGB", (50, 50), "white")]
    looks = [fingerprint(image) for image in images] + [fingerprint(Image.new("RGB", (50, 50), "black"))]
    hashes = ["a", "b", "c", "d", "b", "e", "f"]
    assert distinct_images(hashes, looks, np.zeros(7, int)).tolist() == [0, 1, 3, 5, 6]
    assert distinct_images(hashes, [""] * 7, np.zeros(7, int)).tolist() == [0, 1, 2, 3, 5, 6]
    assert distinct_images(hashes, looks, np.array([0, 0, 1, 0, 0, 0, 0])).tolist() == [0, 1, 2, 3, 5, 6]
    monkeypatch.setattr(duplicates, "MAX_MULTIPLICATIONS", 100)
    assert distinct_images(hashes, looks, np.zeros(7, int)).tolist() == [0, 1, 2, 3, 5, 6]


def test_no_two_images_that_are_left_are_near_and_a_slow_change_is_no_single_image():
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, 128)
    film = []
    for frame in range(40):  # each frame differs from the one before in 3 bits more
        film.append(np.packbits(bits).tobytes().hex())
        bits[3 * frame : 3 * frame + 3] ^= 1
    left = distinct_images([str(frame) for frame in range(40)], film, np.zeros(40, int))
    assert left.tolist() == list(range(0, 40, 3))

"""What is kept between runs can be counted, and thrown away kind by kind."""

import pytest

from finetune.utils import CACHE_KINDS, cache_sizes, clear_cache


@pytest.fixture
def filled(private_cache):
    for name, size in (
        ("features/a.npy", 100), ("features/b.npy", 50), ("datasets/digits/x.png", 7), ("weights/w.h5", 11),
        ("hashes/h.json", 13),
        ("scan.sqlite", 3), ("scan.sqlite-wal", 2),
    ):  # fmt: skip
        path = private_cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return private_cache


def test_an_empty_cache_is_empty(private_cache):
    private_cache.rmdir()
    assert cache_sizes() == dict.fromkeys(CACHE_KINDS, (0, 0))
    assert clear_cache("features") == 0


def test_everything_is_counted_once(filled):
    assert cache_sizes() == {
        "features": (2, 150), "datasets": (1, 7), "weights": (1, 11), "scan": (2, 5),
        "hashes": (1, 13),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(CACHE_KINDS))
def test_one_kind_is_cleared_and_the_others_stay(filled, kind):
    before = cache_sizes()
    assert clear_cache(kind) == before[kind][1]
    assert cache_sizes() == {**before, kind: (0, 0)}


def test_what_a_link_points_to_is_not_deleted(filled, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.pdf").write_text("years of work")
    (filled / "features-elsewhere").symlink_to(tmp_path / "mine")
    clear_cache("features")
    assert (tmp_path / "mine" / "thesis.pdf").exists()

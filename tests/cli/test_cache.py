"""`finetune cache`: what is kept is listed, and one kind of it is cleared."""

from finetune.utils import CACHE_KINDS


def test_an_empty_cache_is_listed(typed):
    code, out, _ = typed("cache")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == list(CACHE_KINDS)
    assert {tuple(line[1:3]) for line in lines} == {("0", "files")}


def test_clearing_says_what_it_freed(typed, private_cache):
    (private_cache / "features").mkdir()
    (private_cache / "features" / "x.npy").write_bytes(bytes(2_000_000))
    (private_cache / "weights").mkdir()
    (private_cache / "weights" / "w.h5").write_bytes(b"1")
    code, _, err = typed("cache", "clear")
    assert code == 0
    assert "Freed 2.0 MB" in err
    assert not (private_cache / "features").exists()
    assert (private_cache / "weights" / "w.h5").exists()

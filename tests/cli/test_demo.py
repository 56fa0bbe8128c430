"""The demo page: what it answers, what it says to bad files, and that it works in a browser without a network."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import BROWSER, Tab, wait_for
from PIL import Image

from finetune import config
from finetune.cli import demo_page as demo, main as cli
from finetune.models import build_classifier

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


@pytest.fixture(scope="module")
def page():
    """Colours told apart by an untrained network, which is sure of `red`."""
    made = build_classifier(
        config.ModelConfig(backbone="tiny", weights="none", image_size=64), ["blue", "green", "red"]
    )
    made.model.get_layer("logits").bias.assign([0.0, 1.0, 5.0])
    other = build_classifier(config.ModelConfig(backbone="tiny", weights="none", image_size=64), ["cat", "dog"])
    return demo.DemoPage(made, other, [])


@pytest.fixture
def image(images):
    return str(images / "red" / "00.png")


def test_a_image_gets_answers_a_map_and_the_other_networks_opinion(page, image):
    shown = page.predict(image)
    assert shown.message == ""
    assert list(shown.classes) == ["red", "green", "blue"]
    assert sum(shown.classes.values()) == pytest.approx(1, abs=1e-5)
    assert shown.heatmap.shape == (36, 40, 3)  # the image at its own resolution
    assert shown.heatmap.dtype == np.uint8
    assert set(shown.imagenet) == {"cat", "dog"}


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n half of one"])
def test_a_bad_file_gets_a_message_and_nothing_else(page, tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    shown = page.predict(str(path))
    assert shown.message.startswith("This image cannot be used: ")
    assert shown.classes is shown.heatmap is shown.imagenet is None


def test_no_image_is_no_answer(page):
    assert page.predict(None) == demo.DemoPrediction()


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


def test_without_gradio_its_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'finetune[demo]'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(page, tmp_path_factory):
    """`finetune demo` as it is typed, of a folder with a model; ended by Ctrl-C."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'finetune[demo]'")
    if BROWSER is None:
        pytest.skip("needs chromium")
    folder = tmp_path_factory.mktemp("mine")
    page.classifier.save(folder / "model.keras")
    port = free_port()
    command = [sys.executable, "-m", "finetune.cli", "demo", str(folder), "--port", str(port)]
    with (folder / "stderr").open("wb") as file:
        server = subprocess.Popen(command, stderr=file, env={**os.environ, "FINETUNE_OFFLINE": "1"})
    said = wait_for(lambda: server.poll() is not None or (folder / "stderr").read_text(), seconds=240)
    assert f"http://127.0.0.1:{port}/" in str(said)
    yield f"http://127.0.0.1:{port}/"
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0


@pytest.fixture
def tab(address, tmp_path):
    with Tab(tmp_path) as tab:
        tab.call("Page.navigate", url=address)
        wait_for(lambda: "Nothing you drop leaves this computer" in tab.text())
        yield tab


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_dropped_image_is_answered_in_the_browser(tab, image, tmp_path):
    tab.drop(image)
    said = wait_for(lambda: "%" in tab.text() and tab.text())
    assert said.index("red") < said.rindex("green") or said.count("red") > 1
    assert "Of the 1000 ImageNet classes" in said
    tab.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shown:
        assert shown.width >= 1000
    hosts = {urlsplit(url).hostname for url in tab.requests if url.startswith("http")}
    assert hosts == {"127.0.0.1"}, "the page loads something from elsewhere"


def test_a_bad_file_gets_a_message_on_the_page(tab, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n half of one")
    tab.drop(bad)
    wait_for(lambda: "This image cannot be used" in tab.text())

"""The demo page: what it answers, what it says to bad files, and that it works in a browser without a network."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import closing, contextmanager

import numpy as np
import pytest

from finetune import classifier as classifiers
from finetune import cli, config, demo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page():
    """Colours told apart by an untrained network, which is sure of `red`."""
    made = classifiers.build(config.Model(backbone="tiny", weights="none", image_size=64), ["blue", "green", "red"])
    made.model.get_layer("logits").bias.assign([0.0, 1.0, 5.0])
    other = classifiers.build(config.Model(backbone="tiny", weights="none", image_size=64), ["cat", "dog"])
    return demo.Demo(made, other, [])


@pytest.fixture
def picture(pictures):
    return str(pictures / "red" / "00.png")


def test_a_picture_gets_answers_a_map_and_the_other_networks_opinion(page, picture):
    shown = page.answer(picture)
    assert shown.message == ""
    assert list(shown.answers) == ["red", "green", "blue"]
    assert sum(shown.answers.values()) == pytest.approx(1, abs=1e-5)
    assert shown.seen.shape == (64, 64, 3)
    assert shown.seen.dtype == np.uint8
    assert set(shown.imagenet) == {"cat", "dog"}


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n half of one"])
def test_a_bad_file_gets_a_message_and_nothing_else(page, tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    shown = page.answer(str(path))
    assert shown.message.startswith("This picture cannot be used: ")
    assert shown.answers is shown.seen is shown.imagenet is None


def test_no_picture_is_no_answer(page):
    assert page.answer(None) == demo.Shown()


def test_examples_are_test_pictures_of_every_class(pictures, tmp_path):
    (tmp_path / "config.yaml").write_text(config.dump(config.load({"data": {"folder": str(pictures)}})))
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    rows = [
        f"{name}/{number:02}.png,{name},{'test' if number % 2 else 'train'},x"
        for name in ("blue", "red")
        for number in range(8)
    ]
    (tmp_path / "splits.csv").write_text("\n".join(["path,label,split,sha256", *rows, ""]))
    found = demo.examples(tmp_path, 4)
    expected = [pictures / name / f"{number:02}.png" for number in (1, 3) for name in ("blue", "red")]
    assert found == [str(path) for path in expected]
    assert demo.examples(tmp_path / "absent") == []
    (tmp_path / "splits.csv").write_text("damaged")
    assert demo.examples(tmp_path) == []


def test_without_gradio_its_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'finetune[demo]'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- in a browser


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def launched(page, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    server, address = page.launch(host="127.0.0.1", port=free_port())
    try:
        yield server, address
    finally:
        server.close()


class Tab:
    """A tab of a headless browser, by the DevTools protocol. It cannot reach anything but this machine."""

    def __init__(self, address, folder):
        from websockets.sync.client import connect

        port = free_port()
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--window-size=1200,1000", "--remote-allow-origins=*",
            f"--user-data-dir={folder}", f"--remote-debugging-port={port}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [BROWSER, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.number = 0
        self.requests = []
        url = wait_for(lambda: self._socket(port))
        self.socket = connect(url, max_size=None)
        self.call("Network.enable")
        self.call("Page.enable")
        self.call("Page.reload")

    def _socket(self, port):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                tabs = json.load(answer)
        except OSError:
            return None
        return next((tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"), None)

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == self.number:
                return message.get("result", {})

    def text(self):
        return self.call("Runtime.evaluate", expression="document.body.innerText")["result"].get("value", "")

    def drop(self, path):
        """Puts a file where a person would drop it."""

        def node():
            root = self.call("DOM.getDocument")["root"]["nodeId"]
            return self.call("DOM.querySelector", nodeId=root, selector="input[type=file]").get("nodeId")

        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=wait_for(node))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


@pytest.mark.filterwarnings("ignore")  # of gradio and what it stands on
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_dropped_picture_is_answered_in_the_browser(page, picture, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'finetune[demo]'")
    with launched(page, tmp_path / "uploads", monkeypatch) as (_, address):
        tab = Tab(address, tmp_path / "browser")
        try:
            wait_for(lambda: "tiny" in tab.text())
            tab.drop(picture)
            said = wait_for(lambda: "dog" in tab.text() and tab.text())
            assert said.index("red") < said.rindex("green")
            assert "%" in said
            assert {url.split("/")[2].split(":")[0] for url in tab.requests if url.startswith("http")} == {"127.0.0.1"}
        finally:
            tab.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_bad_file_gets_a_message_on_the_page(page, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'finetune[demo]'")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n half of one")
    with launched(page, tmp_path / "uploads", monkeypatch) as (_, address):
        tab = Tab(address, tmp_path / "browser")
        try:
            wait_for(lambda: "tiny" in tab.text())
            tab.drop(bad)
            wait_for(lambda: "This picture cannot be used" in tab.text())
        finally:
            tab.close()

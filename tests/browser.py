"""A headless browser for tests: what a page shows, at any width, in light and dark. Skips where there is none.

with Tab(tmp_path) as tab:
    tab.open("http://127.0.0.1:7860", width=390, dark=True)
    tab.run("document.documentElement.scrollWidth")
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not come")


class Tab:
    """A tab of a headless browser, by the DevTools protocol over a pipe. It reaches nothing but this machine."""

    def __init__(self, folder: Path) -> None:
        if BROWSER is None:
            pytest.skip("needs chromium")
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,1000",
            f"--user-data-dir={folder / 'browser'}", "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        (to_read, self.to), (self.back, to_write) = os.pipe(), os.pipe()
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'  # the browser talks on descriptors 3 and 4
        self.process = subprocess.Popen(
            ["bash", "-c", shell, BROWSER, *options], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self.number, self.rest, self.session, self.requests = 0, b"", None, []

    def __enter__(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Network.enable")
        return self

    def __exit__(self, *_):
        self.session = None
        self.call("Browser.close")
        self.process.wait(60)
        os.close(self.to)
        os.close(self.back)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        while b"\0" not in self.rest:
            assert select.select([self.back], [], [], 60)[0], "the browser is silent"
            part = os.read(self.back, 1 << 20)
            assert part, "the browser ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, url, *, width=1280, height=844, dark=False):
        """Loads a page in a window of that size, below 600 pixels that of a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.run("document.readyState") == "complete" and self.run("location.href") != "about:blank")

    def run(self, expression):
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def text(self):
        return self.run("document.body ? document.body.innerText : ''")

    def drop(self, path):
        """Puts a file where a person would drop it."""

        def node():
            root = self.call("DOM.getDocument")["root"]["nodeId"]
            return self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]

        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=wait_for(node))

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

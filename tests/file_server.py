"""A web server on this machine that stalls, cuts, lies and dies, for the tests of downloads."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CONTENT = bytes(range(256)) * 4096  # 1 MiB
Answer = Callable[["Server", Any], None]


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; each request first takes the next of `troubles`, if any is left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.troubles: list[Answer] = []
        self.requests: list[str] = []  # the path of each
        self.content = CONTENT
        self.seconds_per_block = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.h5"

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are what this is about


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.troubles:
            self.server.troubles.pop(0)(self.server, self)
        else:
            self.serve()

    def serve(self, stop: int | None = None) -> None:
        """The whole content, or, whatever the header promises, only up to byte `stop`."""
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        end = len(content) if stop is None else stop
        for start in range(0, end, 1 << 16):
            self.wfile.write(content[start : min(start + (1 << 16), end)])
            time.sleep(self.server.seconds_per_block)


def cut(stop: int) -> Answer:
    return lambda server, handler: handler.serve(stop)


def status(code: int, **headers: str) -> Answer:
    def answer(server: Server, handler: Any) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def stall(server: Server, handler: Any) -> None:
    handler.serve(1 << 16)
    time.sleep(0.6)


def login_page(server: Server, handler: Any) -> None:
    page = b"\n<!DOCTYPE html><html><body>Please log in.</body></html>"
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(page)))
    handler.end_headers()
    handler.wfile.write(page)


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that answers from a thread of its own until the block is left."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()

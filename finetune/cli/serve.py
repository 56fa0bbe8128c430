"""`finetune serve`: a classifier behind HTTP, for programs (see `server`)."""

import argparse
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.cli.options import DEFAULT_BACKBONE
from finetune.utils import Terminal, UsageError, require_packages

if TYPE_CHECKING:
    from fastapi import FastAPI

PACKAGES = ("fastapi", "fastapi_offline", "uvicorn", "multipart", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune serve runs/flowers-1, then curl -F file=@rose.jpg http://127.0.0.1:8000/predict"
    text = "a run or the name of a backbone (default: %(default)s)"
    parser.add_argument("model", nargs="?", default=DEFAULT_BACKBONE, metavar="RUN|BACKBONE", help=text)
    text = "0.0.0.0 lets other computers connect (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    require_packages("serve", *PACKAGES, extra="serve")
    from finetune.cli.server import ImageService, make_app
    from finetune.models import load_classifier

    service = ImageService(load_classifier(arguments.model))
    service.warm_up()
    serve(make_app(service), host=arguments.host, port=arguments.port, say=Terminal(quiet=arguments.quiet).head)


def serve(app: "FastAPI", *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until Ctrl-C; `say` is told the address that others can type. Raises UsageError if the port is taken."""
    import uvicorn

    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be served on: {error.strerror or error}.",
            hint=f"Another port may be free: --port {port + 1}",
        ) from error
    with listening:
        say(f"http://{typed_address(host)}:{listening.getsockname()[1]}/   Ctrl-C ends it")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10))
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has ended in good order, and raises it again
            return


def typed_address(host: str) -> str:
    """What others type to reach a server on `host`: for "all addresses", that of this computer in its network."""
    if host not in ("0.0.0.0", "::"):
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the address that it would send from
        except OSError:  # no network at all
            return socket.gethostname()
        return str(probe.getsockname()[0])

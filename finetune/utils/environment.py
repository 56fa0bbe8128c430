"""What this process was given: switches in environment variables, processor cores, memory."""

import hashlib
import os
import socket
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

_YES = ("1", "true", "yes", "on")


def is_offline() -> bool:
    """Whether the user forbids network connections, by `FINETUNE_OFFLINE=1` (or true, yes, on) or `HF_HUB_OFFLINE`."""
    return any(os.environ.get(name, "").strip().lower() in _YES for name in ("FINETUNE_OFFLINE", "HF_HUB_OFFLINE"))


def is_debugging() -> bool:
    """Whether `--debug` asks for TensorFlow's messages and for tracebacks."""
    return os.environ.get("FINETUNE_DEBUG") == "1"


def in_notebook_shell() -> bool:
    """Whether a notebook has started this process (`!finetune`), whose output shows no line being overwritten.

    The shell of Jupyter is a terminal, so that `isatty` cannot tell. Its kernels set this TERM, its servers that id.
    """
    return "JPY_PARENT_PID" in os.environ or os.environ.get("TERM") == "xterm-color"


def available_cores() -> int:
    """The processor cores this process may use; containers and `taskset` often allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_mb() -> int:
    """The most memory that this process has held at once, in MiB."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10  # bytes on macOS, KiB on Linux


def is_running(pid: int) -> bool:
    """Whether a process `pid` is alive in this `process_space`."""
    if os.name == "nt":  # `os.kill` kills there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True


@cache
def process_space() -> str:
    """8 digits for the place where a process id means one process: this computer since it started, or this container.

    Containers on one computer may have its name, and each has a process 1.
    """
    facts = [socket.gethostname()]
    with suppress(OSError):  # not Linux
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]

"""Real signals to real child processes."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.utils import Stopped, stop_on_signals

# Steps of 10 ms; says when it begins, what it did at the end, and ends as the command line would.
WORKER = """
import sys, time
from pathlib import Path
from finetune.utils import FinetuneError, stop_on_signals, survive_closed_output, write_text
folder = Path(sys.argv[1])
try:
    with survive_closed_output(), stop_on_signals() as stop:
        for step in range(1000):
            print("step", step, flush=True)
            time.sleep(0.01)
            write_text(folder / "steps", str(step + 1))
            stop.check("go on with --resume")
except FinetuneError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(99)
"""
# A step that never looks at the flag.
DEAF = """
import sys, time
from finetune.utils import stop_on_signals
try:
    with stop_on_signals():
        print("step", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("leaving", flush=True)
    {last}
    sys.exit(99)
"""


def start(code: str, *args: object, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=before)
    assert process.stdout
    assert process.stdout.readline().startswith("step")
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=10)
    return process.returncode, output


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_first_signal_stops_at_the_next_check(tmp_path: Path, name: str, code: int) -> None:
    worker = start(WORKER, tmp_path)
    time.sleep(0.1)
    worker.send_signal(getattr(signal, name))
    returncode, output = end(worker)
    assert returncode == code
    lines = output.splitlines()
    assert lines[-2:] == [f"stopped by {name}", "  go on with --resume"]
    assert (tmp_path / "steps").read_text() == str(int(lines[-3].split()[1]) + 1)  # the step begun was ended


def test_second_interrupt_stops_without_waiting(tmp_path: Path) -> None:
    worker = start(DEAF.format(last="pass"))
    worker.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert worker.poll() is None
    begin = time.monotonic()
    worker.send_signal(signal.SIGINT)
    assert end(worker) == (99, "leaving\n")
    assert time.monotonic() - begin < 2


def test_third_interrupt_ends_the_process_at_once() -> None:
    # The second arrives within the block and is swallowed by slow work there, as C++ code might do.
    code = DEAF.format(last="pass").replace(
        "time.sleep(60)",
        """
        for _ in range(2):
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                print("slow", flush=True)
""",
    )
    worker = start(code)
    worker.send_signal(signal.SIGINT)
    time.sleep(0.1)
    worker.send_signal(signal.SIGINT)
    assert worker.stdout
    assert worker.stdout.readline() == "slow\n"
    worker.send_signal(signal.SIGINT)
    assert end(worker) == (-signal.SIGINT, "")


def test_a_save_that_is_going_on_ends_whole(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from finetune.utils import atomic_write, stop_on_signals
with stop_on_signals():
    print("step", flush=True)
    atomic_write(Path(sys.argv[1]), lambda new: (time.sleep(0.5), new.write_text("whole")))
"""
    worker = start(code, tmp_path / "target")
    worker.send_signal(signal.SIGTERM)
    end(worker)
    assert (tmp_path / "target").read_text() == "whole"


def test_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    worker = start(WORKER, tmp_path, before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    for _ in range(3):
        worker.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert end(worker)[0] == 143


def test_sleep_and_wake_changes_nothing(tmp_path: Path) -> None:
    worker = start(WORKER, tmp_path)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    worker.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert end(worker)[0] == 143


def test_work_survives_a_closed_pipe(tmp_path: Path) -> None:
    worker = start(WORKER, tmp_path)
    assert worker.stdout
    worker.stdout.close()
    before = int((tmp_path / "steps").read_text()) if (tmp_path / "steps").exists() else 0
    time.sleep(0.5)
    assert worker.poll() is None
    assert int((tmp_path / "steps").read_text()) > before + 5
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 143


def test_work_survives_a_closed_terminal(tmp_path: Path) -> None:
    terminal, worker_end = pty.openpty()
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    worker = subprocess.Popen(command, stdout=worker_end, stderr=worker_end)
    os.close(worker_end)
    assert os.read(terminal, 4).startswith(b"step")
    os.close(terminal)
    time.sleep(0.3)
    before = int((tmp_path / "steps").read_text())
    time.sleep(0.3)
    assert int((tmp_path / "steps").read_text()) > before
    worker.send_signal(signal.SIGHUP)
    assert worker.wait(10) == 143


def test_old_handlers_come_back() -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with stop_on_signals():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, old)


def test_request_inside_a_nested_block_stops_the_outer_one() -> None:
    def work() -> None:
        with stop_on_signals() as outer:
            with stop_on_signals() as inner:
                assert inner is outer
                os.kill(os.getpid(), signal.SIGTERM)
            assert outer.requested == "SIGTERM"
            outer.check()
            pytest.fail("went on")

    with pytest.raises(Stopped) as caught:
        work()
    assert caught.value.exit_code == 143


def test_request_that_nobody_looked_at_is_raised_at_the_end() -> None:
    with pytest.raises(Stopped) as caught, stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_code == 130
    with stop_on_signals() as stop:
        assert stop.requested is None  # the next block starts afresh


def test_does_nothing_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.extend([stop.requested, signal.getsignal(signal.SIGTERM)])
            stop.check()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, before]

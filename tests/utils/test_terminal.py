"""What people see while they wait: in a real terminal, in the shell of a notebook, and in a log file."""

import io
import os
import re
import subprocess
import sys
import threading

import pytest

from finetune.utils import Terminal, terminal

WORK = """
import sys, time
from finetune.utils import Terminal, result_console, show_start
with show_start():
    time.sleep(0.3)
    with Terminal().stage("Predicting") as update:
        for number in range(4):
            result_console().print(f"result {number}")
            print(f"printed {number}")
            update(number + 1, 4)
            time.sleep(0.15)
    Terminal().say("done")
"""


def run_in_terminal(script, **environment):
    """What `script` writes to a terminal of 80 columns that is both its standard output and its standard error."""
    pty = pytest.importorskip("pty", reason="a terminal of Unix")
    controller, screen = pty.openpty()
    variables = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **environment}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=screen, stderr=screen, env=variables)
    os.close(screen)
    written = b""
    try:
        while piece := os.read(controller, 65536):
            written += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(controller)
    assert process.wait() == 0, written
    return written.decode()


def visible_lines(written):
    """The lines that stay: a terminal that knows "erase the line" and "one line up"."""
    lines = [""]
    for piece in re.findall(r"\n|\r|\x1b\[[0-9;?]*[a-zA-Z]|[^\n\r\x1b]+", written):
        if piece == "\n":
            lines.append("")
        elif piece == "\x1b[1A":
            lines.pop()
        elif piece == "\x1b[2K":
            lines[-1] = ""
        elif not piece.startswith(("\r", "\x1b")):
            lines[-1] += piece
    return lines


@pytest.fixture(scope="module")
def written():
    return run_in_terminal(WORK)


def test_in_a_terminal_results_stand_above_the_bar_and_nothing_of_it_stays(written):
    expected = [f"{kind} {number}" for number in range(4) for kind in ("result", "printed")]
    assert [line for line in visible_lines(written) if line] == [*expected, "done"]


def test_the_first_word_comes_at_once_and_the_time_left_is_shown(written):
    assert written.index("Starting") < written.index("Predicting")
    assert re.search(r"3 of 4, [01] s left", re.sub(r"\x1b\[[0-9;?]*m", "", written))


def test_in_the_shell_of_a_notebook_no_bar_is_drawn():
    written = run_in_terminal(WORK, FORCE_COLOR="1", TERM="xterm-color")  # as ipykernel 7.4 sets them
    assert "Predicting" not in written
    assert "\x1b[2K" not in written
    assert written.split() == ["result", "0", "printed", "0", "result", "1", "printed", "1",
                               "result", "2", "printed", "2", "result", "3", "printed", "3", "done"]  # fmt: skip


class Log(io.StringIO):
    """A file that tells when a line is written."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def write(self, text):
        self.written.set()
        return super().write(text)


def test_without_a_terminal_a_line_breaks_a_long_silence_even_if_a_single_step_is_long(monkeypatch):
    monkeypatch.setattr(terminal, "SILENCE", 0.02)
    log = Log()
    screen = Terminal(file=log)
    with screen.stage("Features") as update:
        assert log.written.wait(30)  # nothing has been done yet
        update(1_200, 12_000)
        log.written.clear()
        assert log.written.wait(30)
        log.written.clear()
        assert log.written.wait(30)
    first, *_, last = log.getvalue().splitlines()
    assert first == "Features: 0 s"
    assert last == "Features: 1,200 of 12,000"


def test_without_a_terminal_a_short_stage_says_nothing():
    log = io.StringIO()
    with Terminal(file=log).stage("Features") as update:
        for done in range(100):
            update(done, 100)
    assert log.getvalue() == ""


def test_quiet_is_quiet(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SILENCE", 0.0)
    screen = Terminal(quiet=True)
    with terminal.show_start(quiet=True), screen.stage("Features") as update:
        update(1, 2)
        screen.say("a word")
        screen.warn("a warning")
    assert capsys.readouterr() == ("", "")


def test_the_start_is_over_with_the_first_word(monkeypatch, capsys):
    """Also where that word comes from the thread that breaks the silence."""
    monkeypatch.setattr(terminal, "SILENCE", 0.01)
    with terminal.show_start():
        while "Starting" not in capsys.readouterr().err:
            pass
        Terminal().say("here it is")
        assert [thread.name for thread in threading.enumerate()].count("progress") == 0
    assert capsys.readouterr().err.endswith("here it is\n")

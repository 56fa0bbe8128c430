"""The command line: what must answer at once does so without TensorFlow, and says what it should."""

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from finetune.cli import main as cli
from finetune.utils import errors

CHILD = """
import contextlib, io, json, sys
from finetune.cli import main as cli
answers = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(command)
        except SystemExit as leaving:
            code = leaving.code
    heavy = sorted({"tensorflow", "keras", "matplotlib", "sklearn"} & set(sys.modules))
    answers.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy})
print(json.dumps(answers))
"""
LIGHT = {
    "help": ["--help"],
    "help of a command": ["predict", "--help"],
    "version": ["--version"],
    "backbones": ["backbones"],
    "one backbone": ["backbones", "ResNet-50"],
    "schema": ["schema"],
    "schema for people": ["schema", "--markdown"],
    "format that cannot be quantised": ["export", "x", "--format", "keras", "--quantize", "int8"],
    "export of no images": ["export", "x", "--format", "keras", "--images", "absent.jpg"],
    "cache": ["cache"],
    "weights": ["weights", "list"],
    "path": ["weights", "path", "resnet50"],
    "bad config": ["train", "bad.yaml", "head.epochs=-1"],
    "bad path": ["predict", "absent.jpg"],
    "bad sweep": ["sweep", "digits", "--set", "head.learing_rate=1e-4..1e-2"],
    "training of no images": ["train", "digits", "data.builtin=null", "data.folder=absent"],
    "training without weights": ["train", "digits", "model.weights=absent.h5"],
    "sweep of no images": ["sweep", "digits", "data.builtin=null", "data.folder=absent", "--set", "head.epochs=1,2"],
    "check of no images": ["check", "digits", "data.builtin=null", "data.folder=absent"],
    "no such model": ["evaluate", "runs/absent"],
    "nothing": [],
}


EXIT_CODES = {
    "bad config": 2, "bad path": 3, "bad sweep": 2, "nothing": 2,
    "format that cannot be quantised": 2, "export of no images": 3, "training of no images": 3,
    "training without weights": 4, "sweep of no images": 3, "check of no images": 3, "no such model": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each light command said, all in one process that starts without TensorFlow."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "bad.yaml").write_text("data:\n  folder: nowhere\nmodel:\n  bakbone: resnet50\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(folder / "cache"))
        patch.setenv("FINETUNE_OFFLINE", "1")
        command = [sys.executable, "-W", "error", "-c", CHILD, json.dumps(list(LIGHT.values()))]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(zip(LIGHT, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("what", LIGHT)
def test_it_is_answered_without_tensorflow(answers, what):
    assert answers[what]["heavy"] == []
    assert answers[what]["code"] == EXIT_CODES.get(what, 0)


def test_help_names_every_command_and_shows_how(answers):
    for name in cli.COMMANDS:
        assert re.search(rf"\n    {name}\s", answers["help"]["out"])
    assert "finetune train digits" in answers["help"]["out"]
    assert "example: finetune predict" in answers["help of a command"]["out"]
    assert answers["nothing"]["out"] == answers["help"]["out"]


def help_of(capsys, name):
    with pytest.raises(SystemExit) as leaving:
        cli.main([name, "--help"])
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "--quiet" in out
    return out[out.index("example: ") :]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_file_with_its_options_and_an_example(capsys, name):
    module = import_module(f"finetune.cli.{name}")
    assert module.__doc__.startswith(f"`finetune {name}`")
    assert callable(module.run)
    assert f"finetune {name}" in help_of(capsys, name)


def test_a_config_with_errors_shows_all_of_them_with_their_lines(answers):
    said = answers["bad config"]["err"]
    assert "bad.yaml:4: model.bakbone" in said
    assert "Did you mean 'backbone'" in said
    assert "head.epochs" in said
    assert "Traceback" not in said


def test_the_schema_is_one_for_configs(answers):
    schema = json.loads(answers["schema"]["out"])
    assert {"data", "model", "head", "fine_tune", "augment"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


def test_the_installed_command_runs():
    script = Path(sys.executable).with_name("finetune")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"finetune {version('finetune')}\n", "")


# ----------------------------------------------------------------------------------------------- exit codes


def failing(monkeypatch, error):
    def fail(arguments):
        raise error

    monkeypatch.setattr("finetune.cli.schema.run", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.TrainingDiverged("x"), 2),
        (errors.DataError("x"), 3),
        (errors.ImageError("x"), 3),
        (errors.WeightsError("x"), 4),
        (errors.ResourceError("x"), 5),
        (errors.PartlyDone("x"), 6),
        (errors.CheckFailed("x"), 7),
        (errors.Stopped("x"), 130),
        (errors.Stopped("x", exit_code=143), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_is_one_message(monkeypatch, capsys, error, code):
    failing(monkeypatch, error)
    assert cli.main(["schema"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_a_hint_stands_below_its_error(monkeypatch, capsys):
    failing(monkeypatch, errors.DataError("it is broken", hint="repair it"))
    cli.main(["schema"])
    assert capsys.readouterr().err == "error: it is broken\n  repair it\n"


def test_a_fault_of_ours_is_kept_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failing(monkeypatch, RuntimeError("what nobody foresaw"))
    assert cli.main(["schema"]) == 1
    (report,) = tmp_path.glob("finetune-bug-*.txt")
    assert "Traceback" in report.read_text()
    assert "what nobody foresaw" in report.read_text()
    said = capsys.readouterr().err
    assert "this is a bug in finetune" in said
    assert str(report) in said
    assert "Traceback" not in said


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("FINETUNE_DEBUG", "0")  # so that it is put back
    failing(monkeypatch, errors.DataError("x"))
    with pytest.raises(errors.DataError):
        cli.main(["schema", "--debug"])


@pytest.mark.parametrize("command", [["predict"], ["train", "--top", "3"], ["predict", "x", "--top", "0"], ["fly"]])
def test_a_wrong_command_line_is_exit_code_2(capsys, command):
    with pytest.raises(SystemExit) as leaving:
        cli.main(command)
    assert leaving.value.code == 2
    assert "usage: finetune" in capsys.readouterr().err


def test_values_may_stand_behind_an_option(capsys):
    assert cli.main(["check", "digits", "--json", "head.epochz=5"]) == 2
    assert "head.epochz" in capsys.readouterr().err
    for words in (["train", "digits", "--quite"], ["train", "digits", "--quiet", "more"], ["cache", "a=b"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    assert "unrecognized arguments: more" in capsys.readouterr().err


def test_every_key_of_a_config_is_in_the_docs(answers):
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text("utf-8")
    assert page == answers["schema for people"]["out"], "run: finetune schema --markdown > docs/config.md"

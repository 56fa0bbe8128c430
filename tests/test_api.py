"""`import finetune`: at once, without TensorFlow, with its public names and a version."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import finetune
from finetune.utils import ConfigError, UsageError

CHILD = """
import json, sys
import finetune
heavy = {"tensorflow", "keras", "pydantic", "numpy"} & set(sys.modules)
names = dir(finetune)
try:
    finetune.trian
except AttributeError as error:
    missing = str(error)
assert finetune.__version__
print(json.dumps([sorted(heavy), names, missing, sorted({"tensorflow", "keras"} & set(sys.modules))]))
"""


def test_the_import_is_light():
    done = subprocess.run([sys.executable, "-W", "error", "-c", CHILD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy, names, missing, after = json.loads(done.stdout)
    assert heavy == after == []
    assert names == finetune.__all__
    assert "trian" in missing


def test_the_public_names_are_these():
    assert finetune.__all__ == ["check", "compare", "evaluate", "load", "register_backbone", "train"]
    assert finetune.__version__ == version("finetune")
    for name in finetune.__all__:
        assert callable(getattr(finetune, name))
        assert getattr(finetune, name).__doc__


def test_errors_reach_the_caller_as_they_are():
    from finetune.utils import FinetuneError

    with pytest.raises(ConfigError, match="resnet50") as caught:
        finetune.load("resnet51")
    assert isinstance(caught.value, FinetuneError)
    with pytest.raises(ConfigError, match="epochs"):
        finetune.train({"data": {"builtin": "digits"}}, "head.epoch=3")


def test_every_function_shows_how_it_is_used():
    from finetune import api

    functions = [value for value in vars(api).values() if getattr(value, "__module__", "") == "finetune.api"]
    functions = [function for function in functions if not function.__name__.startswith("_")]
    assert {function.__name__ for function in functions} == set(finetune.__all__) - {"register_backbone"}
    assert all("Example:" in function.__doc__ for function in functions)


def test_what_is_no_run_no_config_and_no_override_is_told():
    with pytest.raises(UsageError, match="dict is no run and no model"):
        finetune.load({})
    with pytest.raises(ConfigError, match="not 5"):
        finetune.train(5)
    with pytest.raises(ConfigError, match="an override is 'key=value' or a mapping"):
        finetune.check("digits", ["head.epochs=5"])


def test_runs_are_compared_by_their_paths(tmp_path):
    with pytest.raises(UsageError, match="two runs"):
        finetune.compare([tmp_path])

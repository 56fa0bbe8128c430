"""Messages of errors: what is wrong, and on a line of its own what to do."""

import pytest

from finetune.utils import ConfigError, Stopped, UsageError, did_you_mean, missing_packages, require_packages


def test_the_hint_is_a_line_of_its_own() -> None:
    assert str(ConfigError("lr: unknown key")) == "lr: unknown key"
    assert str(ConfigError("lr: unknown key", hint="Write learning_rate.")) == "lr: unknown key\n  Write learning_rate."


def test_stopped_has_the_exit_code_of_its_signal() -> None:
    assert (Stopped("stopped").exit_code, Stopped("stopped", exit_code=143).exit_code) == (130, 143)


def test_near_names_are_suggested() -> None:
    assert did_you_mean("Epoch", ["epochs", "batch_size"]) == " Did you mean 'epochs'?"
    assert did_you_mean("xyz", ["epochs"]) == ""
    assert did_you_mean("lr", ["learning_rate", "layer_decay"]) == " Did you mean 'learning_rate'?"  # its initials


def test_packages_that_are_missing_are_named_with_the_command() -> None:
    require_packages("Reports", "json", extra="report")
    assert missing_packages(["json", "no_such_package"]) == ["no_such_package"]
    with pytest.raises(UsageError, match=r"Reports needs no_such_package.*\n.*pip install 'finetune\[report\]'"):
        require_packages("Reports", "json", "no_such_package", extra="report")

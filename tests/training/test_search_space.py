"""What `--set` may say, and that every value is checked before anything is trained."""

import random

import pytest

from finetune import configs
from finetune.cli import main as cli
from finetune.training import search_space as space
from finetune.utils.errors import ConfigError, UsageError


class Trial:
    """What Optuna would give, at random."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def suggest_float(self, key, low, high, log):
        return self.random.uniform(low, high)

    def suggest_int(self, key, low, high, log):
        return self.random.randint(low, high)

    def suggest_categorical(self, key, values):
        return self.random.choice(values)


@pytest.mark.parametrize(
    ("text", "low", "high", "whole", "log"),
    [
        ("1e-4..1e-2", 1e-4, 1e-2, False, True),
        ("0..0.5", 0, 0.5, False, False),
        ("1..9", 1, 9, True, False),
        ("16 .. 512", 16, 512, True, True),
        (".1...5", 0.1, 0.5, False, False),
        ("-5..5", -5, 5, True, False),
    ],
)
def test_a_range_is_whole_or_logarithmic_by_its_ends(text, low, high, whole, log):
    (found,) = space.read_search_space([f"augment.x={text}"])
    assert (found.low, found.high, found.whole, found.log) == (low, high, whole, log)


def test_values_are_written_as_a_config_has_them():
    every = space.read_search_space(
        ["head.learning_rate=1.2345e-4..1e-2", "head.epochs=1..300", "head.optimizer=adam,sgd"]
    )
    for seed in range(200):
        rate, epochs, optimizer = (one.suggest(Trial(seed)) for one in every)
        assert 1.2345e-4 <= float(rate) <= 1e-2
        assert len(rate.replace("0.", "").lstrip("0").split("e")[0]) <= 5
        assert 1 <= int(epochs) <= 300
        assert optimizer in ("adam", "sgd")
    assert every[0].spell(0.00123456) == "0.00123"


def test_commas_in_brackets_divide_nothing():
    (hidden,) = space.read_search_space(["model.hidden=[],[64], [128, 64]"])
    (unfreeze,) = space.read_search_space(["fine_tune.unfreeze=3 blocks,0.4,all"])
    assert hidden.values == ("[]", "[64]", "[128, 64]")
    assert unfreeze.values == ("3 blocks", "0.4", "all")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "something to vary"),
        (["head.epochs"], "expected key=values"),
        (["=1..2"], "expected key=values"),
        (["head.epochs=5"], "only one value"),
        (["head.epochs=5..3"], "to a larger one"),
        (["head.epochs=..3"], "to a larger one"),
        (["head.epochs=few..many"], "must be numbers"),
        (["head.optimizer=adam,adam"], "listed twice"),
        (["head.optimizer=adam,[sgd"], "cannot be read"),
        (["head.epochs=1..3", "head.epochs=4..5"], "given twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        space.read_search_space(options)


def test_all_wrong_values_are_told_at_once():
    wrong = space.read_search_space([
        "head.learing_rate=1e-4..1e-2",
        "head.optimizer=adam,adan",
        "head.epochs=-1..5",
        "data.builtin=digits,letters",
        "augment.rotate=0..10",
    ])  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        space.check_search_space("digits", ["augment.rotate=5", "time_budget=10 min"], wrong)
    said = str(caught.value)
    assert "Did you mean 'learning_rate'" in said
    assert said.count("learing_rate=") == 1
    assert "Did you mean 'adam'" in said
    assert "head.epochs: expected a whole number, at least 0, not -1" in said
    assert "data.builtin: trials that differ in data" in said
    assert "augment.rotate: is both varied" in said
    assert "time_budget=null" in said


def test_the_config_as_it_stands_is_a_point_of_the_space_or_not():
    overrides = ["head.learning_rate=1e-3", "fine_tune.unfreeze=0.4"]
    every = space.read_search_space(
        ["head.optimizer=adam,sgd", "fine_tune.0.unfreeze=0.1..0.9", "fine_tune.learning_rate=1e-5..1e-3"]
    )
    config = space.check_search_space("digits", overrides, every)
    assert isinstance(config, configs.Config)
    found = space.current_point(config, every)
    assert found is not None
    assert found["head.optimizer"] == "adam"
    assert found["fine_tune.0.unfreeze"] == 0.4
    assert space.current_point(config, space.read_search_space(["head.learning_rate=1e-2..1e-1"])) is None


def test_without_optuna_it_is_said_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["sweep", "digits", "--set", "head.epochs=1,2"]) == 2
    assert "pip install 'finetune[sweep]'" in capsys.readouterr().err

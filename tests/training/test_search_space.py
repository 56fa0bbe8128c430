"""What `--set` may say, and that every value is checked before anything is trained."""

import random

import pytest

from finetune.cli import main as cli
from finetune.config import Config
from finetune.training import check_search_space, read_search_space
from finetune.training.search_space import current_point
from finetune.utils import ConfigError, UsageError


class Trial:
    """Suggests what Optuna might, at random."""

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
    (dimension,) = read_search_space([f"augment.x={text}"])
    assert (dimension.low, dimension.high, dimension.whole, dimension.log) == (low, high, whole, log)


def test_values_are_written_as_a_config_has_them():
    space = read_search_space(["head.learning_rate=1.2345e-4..1e-2", "head.epochs=1..300", "head.optimizer=adam,sgd"])
    for seed in range(200):
        rate, epochs, optimizer = (dimension.suggest(Trial(seed)) for dimension in space)
        assert 1.2345e-4 <= float(rate) <= 1e-2
        assert float(rate) in (1.2345e-4, float(f"{float(rate):.3g}"))  # three digits, or an end of the range
        assert 1 <= int(epochs) <= 300
        assert optimizer in ("adam", "sgd")


def test_commas_in_brackets_separate_nothing():
    (hidden,) = read_search_space(["model.hidden=[],[64], [128, 64]"])
    (unfreeze,) = read_search_space(["fine_tune.unfreeze=3 blocks,0.4,all"])
    assert hidden.values == ("[]", "[64]", "[128, 64]")
    assert unfreeze.values == ("3 blocks", "0.4", "all")


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_what_cannot_be_understood_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        read_search_space(options)


def test_all_wrong_values_are_reported_at_once():
    space = read_search_space([
        "head.learing_rate=1e-4..1e-2",
        "head.optimizer=adam,adan",
        "head.epochs=-1..5",
        "data.builtin=digits,letters",
        "augment.rotate=0..10",
    ])  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check_search_space("digits", ["augment.rotate=5", "time_budget=10 min"], space)
    message = str(caught.value)
    assert "Did you mean 'learning_rate'" in message
    assert message.count("learing_rate=") == 1
    assert "Did you mean 'adam'" in message
    assert "head.epochs: expected a whole number, at least 0, not -1" in message
    assert "data.builtin: trials that differ in data" in message
    assert "augment.rotate: is both varied" in message
    assert "time_budget=null" in message


def test_the_config_as_it_is_may_be_a_point_of_the_space():
    overrides = ["head.learning_rate=1e-3", "fine_tune.unfreeze=0.4"]
    space = read_search_space(
        ["head.optimizer=adam,sgd", "fine_tune.0.unfreeze=0.1..0.9", "fine_tune.learning_rate=1e-5..1e-3"]
    )
    config = check_search_space("digits", overrides, space)
    assert isinstance(config, Config)
    point = current_point(config, space)
    assert point is not None
    assert point["head.optimizer"] == "adam"
    assert point["fine_tune.0.unfreeze"] == 0.4
    assert current_point(config, read_search_space(["head.learning_rate=1e-2..1e-1"])) is None


def test_a_message_says_how_to_install_optuna(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["sweep", "digits", "--set", "head.epochs=1,2"]) == 2
    assert "pip install 'finetune[sweep]'" in capsys.readouterr().err

"""Trials share the network, the features and the linear probe, and leave no trace in each other."""

import pytest

from finetune.config import fill_open_keys, load_config
from finetune.data import data_facts, open_dataset
from finetune.training import trial_cache
from finetune.training.trial_cache import TrialTrainer

pytestmark = pytest.mark.slow


def test_trials_share_network_and_features_and_leave_no_trace(settings, monkeypatch):
    del settings["fine_tune"]
    dataset = open_dataset(load_config(settings).data, seed=0)
    built, prepared = [], []
    build, prepare = trial_cache.build_classifier, trial_cache.prepare_features
    monkeypatch.setattr(trial_cache, "build_classifier", lambda *args, **kw: built.append(0) or build(*args, **kw))
    monkeypatch.setattr(trial_cache, "prepare_features", lambda *args, **kw: prepared.append(0) or prepare(*args, **kw))
    trials = TrialTrainer(dataset)

    def fit(*overrides):
        config, _ = fill_open_keys(load_config(settings, overrides), data_facts(dataset))
        return trials.fit(config)

    first = fit()
    other = fit("head.learning_rate=0.5", "head.optimizer=sgd")
    fit("head.start=regression")
    assert (len(built), len(prepared)) == (1, 1)
    assert fit() == first
    assert other != first
    fit("model.dropout=0.5")
    assert (len(built), len(prepared)) == (2, 1)  # dropout needs another network, not other features
    fit("fine_tune.unfreeze=1", "fine_tune.epochs=1", "head.epochs=1")
    assert len(prepared) == 2

"""Which run is resumed, and what may differ."""

import pytest
import yaml

from finetune.config import dump_config, load_config
from finetune.runs import create_run
from finetune.training.resume import find_run_to_resume
from finetune.utils import UsageError


@pytest.fixture
def stopped_run(images, tmp_path, monkeypatch):
    """Makes a run of my.yaml that was stopped, whose config.yaml says something else too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(f"data: {{folder: {images}}}\nfine_tune: none\nhead: {{epochs: 3}}\n")

    def make(**changes):
        saved = yaml.safe_load(dump_config(load_config("my.yaml"))) | changes
        run = create_run(tmp_path / "runs", "my", config=yaml.safe_dump(saved))
        run.set_status("stopped")
        return run

    return make


def test_a_run_of_an_earlier_format_is_resumed_by_its_config(stopped_run):
    run = stopped_run(version=1)
    assert find_run_to_resume(None, "my.yaml", []).path == run.path
    assert find_run_to_resume(str(run.path), None, []).path == run.path


def test_what_would_be_ignored_is_refused(stopped_run):
    stopped_run(seed=7)
    with pytest.raises(UsageError, match="seed: 7 in the run, 0 now"):
        find_run_to_resume(None, "my.yaml", [])
    with pytest.raises(UsageError, match="epochs: 3 in the run, 9 now"):
        find_run_to_resume(None, "my.yaml", ["seed=7", "head.epochs=9"])

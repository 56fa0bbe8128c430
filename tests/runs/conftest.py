from pathlib import Path

import pytest

from finetune.runs import Run, create_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "runs", "flowers")

"""For the tests of config: a file `my.yaml` in the working directory, and what is wrong with it."""

from pathlib import Path

import pytest

from finetune.config import Config, load_config
from finetune.utils import ConfigError

DIGITS = "data:\n  builtin: digits\n"


def load(text: str | bytes, *overrides: str) -> Config:
    """Write `text` to my.yaml and load it."""
    Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config("my.yaml", overrides)


def problems_of(text: str | bytes, *overrides: str) -> str:
    """The message of the ConfigError that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)

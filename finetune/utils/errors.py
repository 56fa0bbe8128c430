"""Every error that a user can cause, in one tree; `cli.main` turns each into one message and an exit code.

    FinetuneError              1  (never raised itself)
    ├── UsageError             2  the command line
    │   └── ConfigError        2  the YAML file or an override
    ├── DataError              3  folders, tables, images
    │   └── ImageProblem       3  one image file, and why it cannot be used
    ├── WeightsError           4  pretrained weights and saved models
    ├── TrainingDiverged       2  NaN in training: the learning rate, most often
    ├── ResourceError          5  disk, memory, permissions of the run directory
    ├── PartlyDone             6  most was done, some inputs were not
    ├── CheckFailed            7  a measured figure misses what was demanded of it
    └── Stopped                130 / 143  asked to stop by Ctrl-C or a signal

A message says what is wrong, where, and what to do about it. Foreign exceptions are translated where they
arise, never here, so that the message can name the file or key concerned.
"""

import importlib.util
from collections.abc import Iterable
from difflib import get_close_matches


class FinetuneError(Exception):
    """A mistake that the user can mend; `str(error)` is the whole message, `hint` included."""

    exit_code = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  {self.hint}" if self.hint else self.what


class UsageError(FinetuneError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class DataError(FinetuneError):
    exit_code = 3


class ImageError(DataError):
    """One image that cannot be used; `what` is the reason alone, the caller knows the file."""


class WeightsError(FinetuneError):
    exit_code = 4


class TrainingDiverged(FinetuneError):
    exit_code = 2


class ResourceError(FinetuneError):
    exit_code = 5


class PartlyDone(FinetuneError):
    exit_code = 6


class CheckFailed(FinetuneError):
    """Everything worked, and the result is not good enough: --assert-accuracy, or an export unlike its classifier."""

    exit_code = 7


class Stopped(FinetuneError):
    """The run was asked to stop and everything up to here is saved."""

    def __init__(self, what: str, *, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(what, hint=hint)
        self.exit_code = exit_code


def did_you_mean(word: str, choices: Iterable[str], *, limit: int = 3) -> str:
    """` Did you mean 'learning_rate'?` for the nearest of `choices`, or `` when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(word.lower(), by_lower, n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else ""


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def require_packages(what: str, *packages: str, extra: str) -> None:
    """UsageError with the command that installs them, if `what` needs packages that are not here."""
    if absent := missing_packages(packages):
        raise UsageError(
            f"{what} needs {', '.join(absent)}, not installed here.", hint=f"pip install 'finetune[{extra}]'"
        )

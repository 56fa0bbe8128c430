"""Every error that a user can cause, in one tree; `cli.main` turns each into one message and an exit code.

    FinetuneError              1  (never raised itself)
    ├── UsageError             2  the command line
    │   └── ConfigError        2  the YAML file or an override
    ├── DataError              3  folders, tables, images
    │   └── ImageError         3  a single image file, and why it cannot be used
    ├── WeightsError           4  pretrained weights and saved models
    ├── TrainingDiverged       2  NaN in training: the learning rate, most often
    ├── ResourceError          5  disk, memory, permissions of the run folder
    ├── PartlyDone             6  most was done, some inputs could not be used
    ├── CheckFailed            7  the result is not good enough
    └── Stopped                130 / 143  stopped by Ctrl-C or another signal

A message says what is wrong and where; the hint says what to do about it. Exceptions of other libraries are
translated where they arise, never here, so that the message can name the file or key concerned.
"""

import importlib.util
from collections.abc import Iterable
from difflib import get_close_matches


class FinetuneError(Exception):
    """A mistake that the user can correct; `str(error)` is the message, and the hint on a line of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(FinetuneError):
    """The command line asks for something impossible."""

    exit_code = 2


class ConfigError(UsageError):
    """The YAML file or an override is wrong."""


class DataError(FinetuneError):
    """Folders, tables or images cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """An image cannot be used; the message is the reason alone, because the caller knows the file."""


class WeightsError(FinetuneError):
    """Pretrained weights or a saved model cannot be used."""

    exit_code = 4


class TrainingDiverged(FinetuneError):
    """The loss or a gradient became NaN or infinite."""

    exit_code = 2


class ResourceError(FinetuneError):
    """The machine lacks something: disk space, memory, a device, a permission."""

    exit_code = 5


class PartlyDone(FinetuneError):
    """Some inputs could not be used; the others were."""

    exit_code = 6


class CheckFailed(FinetuneError):
    """Everything worked, and the result is not good enough: --assert-accuracy, or an export unlike its classifier."""

    exit_code = 7


class Stopped(FinetuneError):
    """A signal stopped the work, and everything up to here is saved."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def did_you_mean(word: str, choices: Iterable[str], *, limit: int = 3) -> str:
    """` Did you mean 'learning_rate'?` for the nearest of `choices` (of `lr` too), or `` when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    initials = {"".join(part[:1] for part in name.split("_")): name for name in by_lower if "_" in name}
    near = get_close_matches(word.lower(), by_lower, n=limit, cutoff=0.6)
    if word.lower() in initials:
        near = [initials[word.lower()]]
    return f" Did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else ""


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Those of `packages` (names of modules) that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def require_packages(purpose: str, *packages: str, extra: str) -> None:
    """UsageError with the command that installs them, if `purpose` needs packages that are not installed."""
    missing = missing_packages(packages)
    if missing:
        raise UsageError(
            f"{purpose} needs {', '.join(missing)}, not installed here.", hint=f"pip install 'finetune[{extra}]'"
        )

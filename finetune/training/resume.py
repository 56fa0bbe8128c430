"""Which run to resume, and whether what is requested is what it will do.

    find_run_to_resume("runs/flowers-1", None, [])          that run
    find_run_to_resume(None, "configs/flowers.yaml", [])    the newest unfinished run of that config; None without one
    find_run_to_resume(None, None, [])                      the newest unfinished run in ./runs

A run continues as it began. A config or an override that says otherwise would be silently ignored, so it is refused
with every difference shown; only where the images are, where features are kept and where it computes may change, for
the images' content is checked anyway. No TensorFlow here: a wrong request, or a run that is in use, is answered at
once.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune.config import Config, as_in_run, dump_config, flatten_config, load_config
from finetune.data import config_source
from finetune.runs import Run, open_run
from finetune.utils import FinetuneError, UsageError, shell_command, write_text

MAY_CHANGE = {"data.folder", "data.csv", "cache", "device", "version"}
OUTPUT = Path("runs")


def find_run_to_resume(
    run: str | None, config: str | None, overrides: Sequence[str], *, break_lock: bool = False
) -> Run | None:
    """The run to resume; None when `config` is given and no run of it has begun.

    Raises UsageError for what is no run, for a finished one, and for a config or override that differs from the
    run's; ResourceError, with who and since when, while another process works on it.
    """
    run, config, overrides = _sort_words(run, config, overrides)
    requested = load_config(config_source(config, overrides), overrides) if config else None
    target = open_run(Path(run)) if run else _newest_run(requested)
    if target is None:
        return None
    if not target.config_yaml.exists():
        raise UsageError(f"{target.path} was stopped before it began.", hint="Start again: finetune train CONFIG")
    with target.lock(break_lock=break_lock):
        original = _original_config(target)
        if target.status == "done":
            raise _finished_error(target, original)
        if requested:
            requested = as_in_run(requested, original)
        else:
            requested = load_config(target.config_yaml, overrides)
        _refuse_differences(target, original, requested, searched=not run)
    return target


def config_to_resume(run: str | None, config: str | None, overrides: Sequence[str]) -> Config | None:
    """The config that such words name, if they name one."""
    _, config, overrides = _sort_words(run, config, overrides)
    return load_config(config_source(config, overrides), overrides) if config else None


def _sort_words(
    run: str | None, config: str | None, overrides: Sequence[str]
) -> tuple[str | None, str | None, list[str]]:
    """Run, config and overrides as they were meant.

    In `train CONFIG --resume key=value` and `train --resume CONFIG` the parser cannot know which word is which.
    """
    words = [word for word in (run, config, *overrides) if word]
    overrides = [word for word in words if _is_override(word)]
    if run and _is_override(run):
        run = None
    if config and _is_override(config):
        config = None
    if run and not config and Path(run).is_file():
        run, config = None, run
    return run or None, config or None, overrides


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def _newest_run(config: Config | None) -> Run | None:
    """The newest unfinished run, else the newest: of one config by number, of all in ./runs by time."""
    output, name = (config.output, re.escape(config.name)) if config else (OUTPUT, ".+")
    folders: list[tuple[float, Path]] = []  # with the number or the time of the last change
    for folder in output.iterdir() if output.is_dir() else ():
        if match := re.fullmatch(rf"{name}-(\d+)", folder.name):
            newness = float(match[1]) if config else 0.0
            if not config:
                with suppress(OSError):
                    newness = (folder / "state.json").stat().st_mtime
            folders.append((newness, folder))
    runs = []
    for _, folder in sorted(folders, reverse=True):
        with suppress(FinetuneError):  # one that cannot be read
            run = open_run(folder)
            if run.config_yaml.exists():
                runs.append(run)
    if not runs and not config:
        raise UsageError(
            f"There is no run in {output.absolute()} to resume.",
            hint="Name one: finetune train --resume RUN, or begin: finetune train CONFIG",
        )
    for run in runs:
        if run.status != "done":
            return run
    return runs[0] if runs else None


def _original_config(run: Run) -> Config:
    """The config that `run` began with, whatever was done to its config.yaml since."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Config.model_validate(json.loads(run.run_json.read_text("utf-8"))["config"])
    return load_config(run.config_yaml)


def _finished_error(run: Run, config: Config) -> UsageError:
    planned = [config.head.epochs, *(phase.epochs for phase in config.fine_tune)]
    done = [phase["epochs"] for phase in run.phases]
    phases = ", ".join(
        f"{phase['name']} {phase['epochs']} of {epochs}" for phase, epochs in zip(run.phases, planned, strict=False)
    )
    longer = shell_command("finetune", "train", run.config_yaml, config.longer())
    return UsageError(
        f"{run.path} is done, {sum(done)} of {sum(planned)} epochs ({phases}).",
        hint=f"To train longer, start a new run: {longer}",
    )


def _refuse_differences(run: Run, original: Config, requested: Config, *, searched: bool) -> None:
    """UsageError for differences that would be ignored; what may change is written into the run's config.yaml.

    Where the run was `searched`, `output` only named the folder.
    """
    before, now = (dict(flatten_config(config.model_dump(mode="json"))) for config in (original, requested))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    refused = [key for key in changed if key not in MAY_CHANGE and not (searched and key == "output")]
    if refused:
        differences = ""
        for key in refused:
            old, new = ("not set" if value is None else value for value in (before.get(key), now.get(key)))
            differences += f"\n  {key}: {old} in the run, {new} now"
        raise UsageError(
            f"{run.path} was begun with another config, and can only continue as it began:{differences}",
            hint="Leave these as they were, or start a new run with `finetune train` without --resume.",
        )
    if changed:
        write_text(run.config_yaml, dump_config(requested))

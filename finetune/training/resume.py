"""Which run to go on with, and whether what is asked for is what it will do.

    find("runs/flowers-1", None, [])          that run
    find(None, "configs/flowers.yaml", [])    the newest unfinished run of that config; None if there is none
    find(None, None, [])                      the newest unfinished run in ./runs

A run goes on as it began. A config or an override that says otherwise would be silently ignored, so it is refused
with every difference shown; only where the images are, where features are kept and where it computes may change, for
the images' content is checked anyway. No TensorFlow here: a wrong request, or a run that is in use, is answered at
once.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.config import Config, as_in_run, dump_config, load_config
from finetune.runs import Run, open_run
from finetune.utils import FinetuneError, UsageError, write_text

MAY_CHANGE = {"data.folder", "data.csv", "cache", "device"}
OUTPUT = Path("runs")


def find_run_to_resume(
    run: str | None, config: str | None, overrides: Sequence[str], *, break_lock: bool = False
) -> Run | None:
    """The run to go on with; None when `config` is given and no run of it has begun.

    Raises UsageError for what is no run, for a finished one, and for a config or override that differs from the
    run's; ResourceError, with who and since when, while another process works on it.
    """
    run, config, overrides = _told_apart(run, config, overrides)
    asked = load_config(config, overrides) if config else None
    found = open_run(Path(run)) if run else _newest(asked)
    if found is None:
        return None
    if not found.config_yaml.exists():
        raise UsageError(f"{found.path} was stopped before it began.", hint="Start anew: finetune train CONFIG")
    with found.lock(break_lock=break_lock):
        begun = _begun(found)
        _refuse_finished(found, begun)
        asked = as_in_run(asked, begun) if asked else load_config(found.config_yaml, overrides)
        _agree(found, begun, asked, searched=not run)
    return found


def config_to_resume(run: str | None, config: str | None, overrides: Sequence[str]) -> Config | None:
    """The config that such words name, if they name one."""
    _, config, overrides = _told_apart(run, config, overrides)
    return load_config(config, overrides) if config else None


def _told_apart(
    run: str | None, config: str | None, overrides: Sequence[str]
) -> tuple[str | None, str | None, list[str]]:
    overrides = [word for word in (run, config, *overrides) if word and _is_override(word)]
    run, config = (None if not word or _is_override(word) else word for word in (run, config))
    if run and not config and Path(run).is_file():  # `train --resume CONFIG`
        run, config = None, run
    return run, config, overrides


def _is_override(word: str) -> bool:
    """`train CONFIG --resume key=value`: which word is which, the parser cannot know."""
    return "=" in word and not Path(word).exists()


def _newest(asked: Config | None) -> Run | None:
    """The newest unfinished run, else the newest: by number among those of one config, by time in ./runs."""
    output, pattern = (asked.output, re.escape(asked.name)) if asked else (OUTPUT, ".+")
    folders = output.iterdir() if output.is_dir() else ()
    matches = filter(None, (re.fullmatch(rf"{pattern}-(\d+)", folder.name) for folder in folders))
    order = (lambda match: int(match[1])) if asked else (lambda match: _time(output / match[0]))
    newest_first = sorted(matches, key=order, reverse=True)
    begun = [run for run in (_usable(output / match[0]) for match in newest_first) if run]
    if not begun and not asked:
        raise UsageError(
            f"There is no run in {output.absolute()} to go on with.",
            hint="Name one: finetune train --resume RUN, or begin: finetune train CONFIG",
        )
    return next((run for run in begun if run.status != "done"), begun[0] if begun else None)


def _time(folder: Path) -> float:
    with suppress(OSError):
        return (folder / "state.json").stat().st_mtime
    return 0.0


def _usable(folder: Path) -> Run | None:
    """The run in `folder` if it has begun and can be read."""
    with suppress(FinetuneError):
        run = open_run(folder)
        return run if run.config_yaml.exists() else None
    return None


def _begun(run: Run) -> Config:
    """The config that `run` began with, whatever was done to its config.yaml since."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Config.model_validate(json.loads(run.run_json.read_text("utf-8"))["config"])
    return load_config(run.config_yaml)


def _refuse_finished(run: Run, config: Config) -> None:
    if run.status != "done":
        return
    planned = [config.head.epochs, *(phase.epochs for phase in config.fine_tune)]
    facts = [(phase["name"], phase["epochs"], epochs) for phase, epochs in zip(run.phases, planned, strict=False)]
    each = ", ".join(f"{name} {done} of {epochs}" for name, done, epochs in facts)
    raise UsageError(
        f"{run.path} is done, {sum(done for _, done, _ in facts)} of {sum(planned)} epochs ({each}).",
        hint=f"To train longer, start a new run: finetune train {run.config_yaml} head.epochs={2 * planned[0]}",
    )


def _agree(run: Run, begun: Config, asked: Config, *, searched: bool) -> None:
    """Refuse what would be ignored; take over what may change. `output` only said where to search."""
    before, now = dict(flatten(begun.model_dump(mode="json"))), dict(flatten(asked.model_dump(mode="json")))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    refused = [key for key in changed if key not in MAY_CHANGE and not (searched and key == "output")]
    if refused:
        shown = "".join(f"\n  {key}: {_word(before.get(key))} in the run, {_word(now.get(key))} now" for key in refused)
        raise UsageError(
            f"{run.path} was begun with another config, and can only go on as it began:{shown}",
            hint="Leave these as they were, or start a new run with `finetune train` without --resume.",
        )
    if changed:
        write_text(run.config_yaml, dump_config(asked))


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """("head.epochs", 20) for every value inside; an only `fine_tune` goes without a number."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = {str(at): entry for at, entry in enumerate(value, start=1)}
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, entry in value.items():
        yield from flatten(entry, f"{key}.{name}" if key else name)


def _word(value: Any) -> str:
    return "not set" if value is None else str(value)

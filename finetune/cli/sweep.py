"""`finetune sweep`: try many settings, then train the best ones as a whole run."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from finetune.cli.options import add_config, add_json, add_output, positive_int
from finetune.cli.output import print_json
from finetune.utils import Terminal, require_packages, result_console, survive_closed_output

if TYPE_CHECKING:
    from finetune.training import SweepResult

LISTED = 10  # trials


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: finetune sweep flowers --set head.optimizer=adam,sgd. The same command resumes an interrupted "
        "sweep; started a second time beside a running one, it helps that one."
    )
    add_config(parser, overrides="values for all trials")
    text = "what to vary: 1e-4..1e-2 is a range, adam,sgd a list; may be given several times"
    parser.add_argument("--set", dest="varied", action="append", default=[], metavar="KEY=VALUES", help=text)
    text = "number of trials, over all processes and restarts (default: %(default)s)"
    parser.add_argument("--trials", type=positive_int, default=20, metavar="N", help=text)
    add_output(parser, "folder of the sweep (default: sweeps/NAME)")
    text = "database on a server, for processes on several machines (default: a file in the folder)"
    parser.add_argument("--storage", metavar="URL", help=text)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    from finetune.data import config_source
    from finetune.training import check_search_space, read_search_space

    varied = read_search_space(arguments.varied)  # before TensorFlow: a wrong key is reported at once
    source = config_source(arguments.config, arguments.overrides)
    config = check_search_space(source, arguments.overrides, varied)
    require_packages("sweep", "optuna", extra="sweep")
    with survive_closed_output():
        from finetune.evaluation import display_path
        from finetune.training import run_sweep

        terminal = Terminal(quiet=arguments.quiet)
        result = run_sweep(
            source,
            arguments.overrides,
            config,
            varied,
            trials=arguments.trials,
            folder=arguments.output,
            storage=arguments.storage,
            terminal=terminal,
        )
        if arguments.json:
            print_json(result.to_json())
        else:
            print_trials(result)
        folder = display_path(result.folder)
        terminal.say(f"All trials: {folder / 'trials.csv'}   figure: {folder / 'sweep.png'}")
        terminal.say(f"Best config: {folder / 'best.yaml'}")
        if result.winner is None:
            terminal.say("Another process is training the winner.")


def print_trials(result: "SweepResult") -> None:
    """The trials, best first, and what must be known to read them correctly."""
    console = result_console()
    table = Table(box=None, header_style="dim")
    for title in ("trial", "validation", "loss", *result.best.settings, "seconds"):
        table.add_column(title, justify="right", overflow="fold")
    ranked = sorted(result.trials, key=lambda trial: trial.rank)
    for trial in ranked[:LISTED]:
        accuracy = "failed" if trial.accuracy is None else f"{trial.accuracy:.2%}"
        loss = "" if trial.loss is None else f"{trial.loss:.4f}"
        table.add_row(str(trial.number), accuracy, loss, *trial.settings.values(), f"{trial.seconds:.1f}")
    console.print(table)
    if len(ranked) > LISTED:
        console.print(f"[dim]and {len(ranked) - LISTED} more[/]")
    for remark in _remarks(result):
        console.print(f"\n{remark}")


def _remarks(result: "SweepResult") -> Iterator[str]:
    from finetune.evaluation import wilson_interval

    interval = wilson_interval(round((result.best.accuracy or 0) * result.n), result.n)
    near = sum(trial.accuracy is not None and trial.accuracy >= interval.low for trial in result.trials)
    yield (
        f"{near} of {len(result.trials)} trials lie within the 95 % interval of the best one ({interval.low:.1%} to "
        f"{interval.high:.1%}, n = {result.n:,}): between these, chance may have chosen."
    )
    unchanged = sum(trial.best_epoch == 0 for trial in result.trials)
    if unchanged:
        yield f"{unchanged} kept the weights they started with: no epoch improved on them by more than noise."
    if result.importance:
        fractions = ", ".join(f"{key} {fraction:.0%}" for key, fraction in result.importance.items())
        yield f"What made the difference: {fractions}"
    if result.winner and result.winner["test"]:
        test = result.winner["test"]["accuracy"]
        yield (
            f"The winner on the test images, which had no part in the choice: {test['value']:.1%} "
            f"({test['low']:.1%} to {test['high']:.1%}, n = {result.winner['test']['n']:,})"
        )

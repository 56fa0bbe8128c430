"""From a config to a finished run: the whole of `finetune train`, in order.

    result = train(config.load("configs/flowers.yaml"))
    result = resume(runs.open("runs/flowers-1"))

Every step leaves what it found in the run directory, so a run that was interrupted goes on where it was.
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import finetune
from finetune import classifier as classifiers
from finetune import config as configs
from finetune import (
    data,
    device,
    evaluation,
    features,
    files,
    images,
    monitoring,
    reporting,
    runs,
    signals,
    sources,
    training,
)
from finetune.classifier import Classifier
from finetune.config import Config
from finetune.data import Dataset
from finetune.device import keras, tf
from finetune.errors import DataError, FinetuneError, ResourceError, UsageError, WeightsError
from finetune.runs import Run
from finetune.terminal import Terminal

LOGS = 20_000_000  # bytes for TensorBoard, report and tables
HEAD_ANSWERS = "head_answers"  # what the head alone said to the test pictures; carried along, looked at once, at the end


@dataclass(frozen=True)
class Result:
    """A finished run: where it is and how good it is on the test pictures (None without a test split)."""

    run: Run
    classifier: Classifier
    metrics: evaluation.Metrics | None
    head_metrics: evaluation.Metrics | None  # what the head alone had reached, if there was fine-tuning
    paired: evaluation.PairedTest | None = None  # is the difference between the two more than chance?


class Stopwatch:
    """Seconds by stage, over all restarts of a run."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started


def train(config: Config, *, command: Sequence[str] = (), terminal: Terminal | None = None) -> Result:
    """Trains what `config` describes in a new run directory.

    Raises ConfigError, DataError, WeightsError or ResourceError before anything long has begun where that is
    possible, and Stopped when asked to stop; the run can then be resumed.
    """
    terminal = terminal or Terminal(quiet=True)
    watch = Stopwatch()
    with signals.graceful() as stop:
        with watch.time("reading"), terminal.stage("Checking the pictures") as update:
            dataset = data.open(config.data, seed=config.seed, progress=_both(update, lambda *_: stop.check()))
        # Inside a folder of classes a run would become a class; beside a table it does no harm.
        run = runs.create(config.output, config.name, data_root=config.data.folder)
        with _working_on(run, watch):
            files.write_text(run.config_yaml, configs.dump(config))
            _note_data(run, dataset)
            begun = config.model_dump(mode="json")  # what config.yaml must still say when the run is resumed
            _write_facts(run, command=list(command), seed=config.seed, seconds=watch.seconds, config=begun)
            return _train_and_evaluate(run, config, dataset, watch, stop, terminal)


def resume(run: Run, *, terminal: Terminal | None = None, break_lock: bool = False) -> Result:
    """Goes on with an interrupted run; it ends as it would have ended without the interruption.

    Raises UsageError when there is nothing left to do, DataError when pictures have changed since it began.
    """
    terminal = terminal or Terminal(quiet=True)
    config = configs.load(run.config_yaml)
    watch = Stopwatch(read_facts(run).get("seconds"))
    with signals.graceful() as stop, _working_on(run, watch, break_lock=break_lock):
        with watch.time("reading"), terminal.stage("Checking the pictures") as update:
            checking = _both(update, lambda *_: stop.check(_how_to_resume(run)))
            if run.splits_csv.exists():
                dataset = data.reopen(config.data, run.splits_csv, run.classes_txt, progress=checking)
            else:  # killed before the splits were noted
                dataset = data.open(config.data, seed=config.seed, progress=checking)
                _note_data(run, dataset)
        return _train_and_evaluate(run, config, dataset, watch, stop, terminal)


def _note_data(run: Run, dataset: Dataset) -> None:
    files.write_text(run.classes_txt, "".join(f"{name}\n" for name in dataset.classes))
    dataset.write_splits(run.splits_csv)


@contextmanager
def _working_on(run: Run, watch: Stopwatch, *, break_lock: bool = False) -> Iterator[None]:
    """Holds the run's lock, and notes in its state how the work ended."""
    with run.lock(break_lock=break_lock):
        run.set_status("running")
        try:
            yield
            run.set_status("done")
        except BaseException as error:
            # Failing to note it (a full disk, a vanished folder) must not hide the error that is on its way out.
            with suppress(FinetuneError):
                run.set_status("stopped" if isinstance(error, KeyboardInterrupt | FinetuneError) else "failed")
                _write_facts(run, seconds=watch.seconds)
            if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
                raise ResourceError(
                    f"Out of memory: {' '.join(str(error).split())[:200]}",
                    remedy="Halve head.batch_size and fine_tune.batch_size, or model.image_size; or try cache=disk.",
                ) from error
            raise


def _train_and_evaluate(
    run: Run, config: Config, dataset: Dataset, watch: Stopwatch, stop: signals.Stop, terminal: Terminal
) -> Result:
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    with watch.time("building"):
        classifier = classifiers.build(config.model, dataset.classes, seed=config.seed)
        phases = training.plan(config, classifier)
    _refuse_other_weights(run, classifier)
    run.require_space(_space(classifier, phases))
    _introduce(terminal, run, config, dataset, classifier)
    checkpoint = run.load_checkpoint()
    run.rewind(checkpoint)
    if checkpoint and checkpoint.lost:
        terminal.warn(checkpoint.lost)

    with watch.time("features"), terminal.stage("Features") as update:
        sources = features.prepare(
            classifier,
            dataset,
            [phase.cut for phase in phases],
            augment=config.augment,
            seed=config.seed,
            policy=config.cache,
            progress=_both(update, lambda *_: stop.check(_how_to_resume(run))),
            say=terminal.say,
        )
    head_answers = _run_phases(run, config, dataset, classifier, phases, sources, checkpoint, watch, stop, terminal)
    with watch.time("saving"):
        classifier.save(run.model_keras)
    with watch.time("evaluation"), terminal.stage("Testing") as update:
        update = _both(update, lambda *_: stop.check(_how_to_resume(run)))
        result, answers = _evaluate(run, dataset, classifier, head_answers, update)
    _write_facts(run, seconds=watch.seconds, weights=classifier.weights_hash, peak_memory_mb=device.peak_memory_mb())
    with watch.time("report"):
        reporting.write(run.path, _evidence(run, config, dataset, result, answers, watch))
    _write_facts(run, seconds=watch.seconds)
    _conclude(terminal, result, watch)
    return result


def _conclude(terminal: Terminal, result: Result, watch: Stopwatch) -> None:
    """The numbers, where things are, where the time went, and what to type next."""
    run = _short(result.run.path)
    terminal.head("\nDone.")
    if result.metrics:
        accuracy = result.metrics.accuracy
        terminal.head(
            f"Test accuracy {accuracy.value:.1%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}, "
            f"n = {result.metrics.n:,})"
        )
    if result.head_metrics and result.paired:
        verdict = "no more than chance may do" if result.paired.better is None else "more than chance"
        terminal.say(
            f"The head alone: {result.head_metrics.accuracy.value:.1%}. Fine-tuning changed that by "
            f"{100 * result.paired.difference:+.1f} points, {verdict} (p = {result.paired.p_value:.2g})."
        )
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in watch.seconds.items())
    terminal.say(f"Time: {spent}; {sum(watch.seconds.values()):.0f} s in all")
    terminal.say(f"Report: {run / 'report.html'}   model: {run / 'model.keras'}")
    terminal.say(f"Next: finetune predict PICTURES --model {run}      finetune tensorboard {run.parent}")


def _refuse_other_weights(run: Run, classifier: Classifier) -> None:
    """Notes the weights that the run begins with; a resumed run must find the same."""
    before = read_facts(run).get("weights")
    if before and before != classifier.weights_hash:
        raise WeightsError(
            f"{run.path} began with other weights: SHA-256 {before}, now {classifier.weights_hash}.",
            remedy="Bring the file of config.yaml's model.weights back, or start a new run.",
        )
    _write_facts(run, weights=classifier.weights_hash)


def _space(classifier: Classifier, phases: Sequence[training.Phase]) -> int:
    """Bytes that the run directory may come to: the model, the logs, and three checkpoints of the deepest phase.

    A checkpoint has the weights, the best weights and Adam's two moments; two are kept while a third is written.
    """
    deepest = max(keras.Model(phase.cut, classifier.model.output).count_params() for phase in phases)
    return int(4 * (3 * 4 * deepest + classifier.model.count_params())) + LOGS


def _both(first: Any, second: Any) -> Any:
    def call(done: int, total: int) -> None:
        first(done, total)
        second(done, total)

    return call


def _introduce(terminal: Terminal, run: Run, config: Config, dataset: Dataset, classifier: Classifier) -> None:
    counts = {name: len(dataset.indices(name)) for name in ("train", "validation", "test")}
    terminal.head(f"{dataset.name}: {len(dataset.classes)} classes, {len(dataset):,} pictures "
                  f"({', '.join(f'{count:,} {name}' for name, count in counts.items())})")  # fmt: skip
    for warning in filter(None, [*dataset.warnings, classifier.warning]):
        terminal.warn(warning)
    terminal.say(f"Backbone {classifier.row.title} at {classifier.spec.image_size} px on {device.describe()}")
    terminal.say(f"Run directory {run.path}")


def _how_to_resume(run: Run) -> str:
    return f"Everything up to here is saved. Go on with: finetune train --resume {_short(run.path)}"


def _short(path: Path) -> Path:
    """`path` as it is typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _run_phases(
    run: Run,
    config: Config,
    dataset: Dataset,
    classifier: Classifier,
    phases: Sequence[training.Phase],
    sources: Sequence[features.Source],
    checkpoint: runs.Checkpoint | None,
    watch: Stopwatch,
    stop: signals.Stop,
    terminal: Terminal,
) -> np.ndarray | None:
    """Trains what is left of `phases`; returns what the head alone said to the test pictures, if more came after it."""
    standing = training.Progress(**checkpoint.state) if checkpoint else training.Progress()
    if checkpoint:
        training.restore_model(classifier, checkpoint.arrays)
    lines = monitoring.Lines(terminal)
    board = monitoring.TensorBoard(run.tensorboard, run.config_yaml.read_text("utf-8"), first_step=standing.step)
    watcher = monitoring.All([lines, board])
    head_answers = checkpoint.arrays.get(HEAD_ANSWERS) if checkpoint else None
    try:
        for phase, source in zip(phases, sources, strict=True):
            if phase.index < standing.phase:
                continue
            trainer = training.PhaseTraining(
                phase,
                classifier,
                source,
                dataset,
                seed=config.seed,
                batch_norm=config.model.batch_norm,
                progress=standing,
            )
            if checkpoint and (standing.epoch or standing.batch):
                trainer.restore(checkpoint.arrays)
            checkpoint = None
            with watch.time(phase.name), terminal.stage(phase.name) as lines.update:
                result = training.run_phase(
                    trainer,
                    watcher=watcher,
                    commit=lambda trainer: _commit(run, trainer, head_answers),
                    record=run.append_history,
                    check_stop=lambda: stop.check(_how_to_resume(run)),
                )
                if phase.index == 0 and len(phases) > 1:
                    head_answers = _softmax(trainer.logits(dataset.indices("test")))
            run.finish_phase(dataclasses.asdict(result))
            standing = training.Progress(phase=phase.index + 1, step=standing.step)
            _save(run, f"{phase.name}-done", trainer.trained_arrays(), head_answers, standing)
    finally:
        board.close()
    return head_answers


def _commit(run: Run, trainer: training.PhaseTraining, head_answers: np.ndarray | None) -> None:
    progress = trainer.progress
    _save(run, f"{trainer.phase.name}-{progress.epoch}-{progress.batch}", trainer.arrays(), head_answers, progress)


def _save(
    run: Run,
    name: str,
    arrays: Mapping[str, np.ndarray],
    head_answers: np.ndarray | None,
    progress: training.Progress,
) -> None:
    kept = {} if head_answers is None else {HEAD_ANSWERS: head_answers}
    run.save_checkpoint(name, {**arrays, **kept}, dataclasses.asdict(progress))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    whole: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return whole


def _evaluate(
    run: Run, dataset: Dataset, classifier: Classifier, head_answers: np.ndarray | None, update: Any
) -> tuple[Result, np.ndarray]:
    """Looks at the test pictures, once, through the very path that `finetune predict` takes."""
    test = dataset.indices("test")
    if len(test) == 0:
        return Result(run, classifier, None, None), np.empty((0, len(dataset.classes)))
    answers = np.concatenate([rows for _, rows, _ in classifier.probabilities(dataset.paths(test), progress=update)])
    labels = dataset.labels[test]
    metrics = evaluation.measure(answers, labels, dataset.classes)
    if head_answers is None:
        return Result(run, classifier, metrics, None), answers
    head_metrics = evaluation.measure(head_answers, labels, dataset.classes)
    paired = evaluation.paired_test(head_answers.argmax(1) == labels, answers.argmax(1) == labels)
    return Result(run, classifier, metrics, head_metrics, paired), answers


def _evidence(
    run: Run, config: Config, dataset: Dataset, result: Result, answers: np.ndarray, watch: Stopwatch
) -> reporting.Evidence:
    """What the report tells of this run."""
    test = dataset.indices("test")
    paths = [Path(path) for path in dataset.paths(test)]
    history = run.history()
    phases = [
        {**phase, "seconds": sum(float(row["seconds"]) for row in history if row["phase"] == phase["name"])}
        for phase in run.phases
    ]
    examples = {
        name: dataset.path(int(found[0]))
        for number, name in enumerate(dataset.classes)
        if len(found := np.flatnonzero(dataset.labels == number))
    }
    spec, where = result.classifier.spec, _short(run.path)
    return reporting.Evidence(
        name=run.path.name,
        phases=phases,
        history=history,
        test=result.metrics,
        head=result.head_metrics,
        paired=result.paired,
        mistakes=evaluation.mistakes(answers, dataset.labels[test], dataset.classes, paths) if len(test) else [],
        examples=examples,
        counts={name: len(dataset.indices(name)) for name in ("train", "validation", "test")},
        skipped=dataset.skipped,
        warnings=dataset.warnings,
        facts={
            **read_facts(run),
            "backbone": result.classifier.row.title,
            "image_size": spec.image_size,
            "classes": len(dataset.classes),
            "seconds": watch.seconds,
        },
        config_yaml=configs.dump(config),
        commands=[
            f"finetune predict PICTURES --model {where}",
            f"finetune evaluate {where} --data NEW_PICTURES",
            f"finetune train {where / 'config.yaml'} head.epochs={config.head.epochs}   # again, with any value changed",
            f"finetune tensorboard {where.parent}",
        ],
        thumbnail=lambda path: images.read_square(path, images.Transform(160, resize="crop", crop=1.0)),
    )


def evaluate(
    source: str | Path, data_source: str | Path | None = None, *, split: str = "test", terminal: Terminal | None = None
) -> evaluation.Metrics:
    """Measures a run on its own pictures, or any classifier on `data_source`: a folder, a CSV, or `tfds:NAME`.

    Folders of classes may be called by class name or, for ImageNet networks, by WordNet id. Raises DataError for
    classes that the classifier does not know, and when a run's own pictures have changed.
    """
    terminal = terminal or Terminal(quiet=True)
    classifier = classifiers.load(source)
    with terminal.stage("Checking the pictures") as update:
        dataset = _own_pictures(source, split, update) if data_source is None else _labelled(classifier, data_source, split, update)
    for warning in filter(None, [*dataset.warnings, classifier.warning]):
        terminal.warn(warning)
    indices = dataset.indices(split if data_source is None else "test")
    with terminal.stage("Measuring") as update:
        answers = np.concatenate([rows for _, rows, _ in classifier.probabilities(dataset.paths(indices), progress=update)])
    return evaluation.measure(answers, dataset.labels[indices], classifier.classes)


def _own_pictures(source: str | Path, split: str, update: Any) -> Dataset:
    if not (Path(source) / "splits.csv").exists():
        raise UsageError(
            f"{source} has no pictures of its own to be measured on.",
            remedy=f"Give labelled ones: finetune evaluate {source} --data FOLDER",
        )
    run = runs.open(Path(source))
    dataset = data.reopen(configs.load(run.config_yaml).data, run.splits_csv, run.classes_txt, progress=update)
    if not len(dataset.indices(split)):
        raise DataError(f"{source} has no {split} pictures.", remedy="Choose another --split, or give --data.")
    return dataset


def _labelled(classifier: Classifier, source: str | Path, split: str, update: Any) -> Dataset:
    text = str(source)
    if text.startswith("tfds:"):
        described = configs.Data(tfds=text.removeprefix("tfds:"))
    else:
        path = Path(text).absolute()
        if not path.exists():
            raise DataError(f"{path}: no such folder or table.", remedy="--data takes a folder of class folders, or a CSV.")
        described = configs.Data(folder=path) if path.is_dir() else configs.Data(csv=path)
    used = sources.find(described).classes
    names = classifier.ids if set(used) <= set(classifier.ids) else classifier.classes
    return data.open_labelled(described, names, split=split, progress=update)


# ---------------------------------------------------------------------------------------------------- run.json


def read_facts(run: Run) -> dict[str, Any]:
    """run.json: versions, command, seed, device, hash of the weights, seconds by stage. Empty if there is none yet."""
    try:
        facts: dict[str, Any] = json.loads(run.run_json.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def _write_facts(run: Run, **changed: Any) -> None:
    always = {
        "versions": {"finetune": finetune.__version__, **device.versions()},
        "device": device.describe(),
        "machine": platform.platform(),
        "python": sys.version.split()[0],
    }
    files.write_json(run.run_json, {**read_facts(run), **always, **changed})

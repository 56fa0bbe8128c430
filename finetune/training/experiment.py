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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backbones import find_backbone, resolve_weights
from finetune.config import Config, PhaseConfig, dump_config, fill_open_keys, load_config
from finetune.data import Dataset, data_facts, image_batches, image_reader, open_dataset, reopen_dataset
from finetune.evaluation import (
    Metrics,
    PairedTest,
    display_path,
    draw_lr_curve,
    evaluate_on_test,
    fit_decisions,
    fit_temperature,
    report_evidence,
    task_for,
    write_predictions,
    write_report,
)
from finetune.models import FEATURE_BATCH, Classifier, FeatureRequest, FeatureSource, build_classifier
from finetune.runs import Checkpoint, ReadOnlyRun, Run, create_run
from finetune.training.baseline import probe_head_features, set_head_weights
from finetune.training.callbacks import CallbackList, Profiler, ProgressLogger, TensorBoard, write_hparams
from finetune.training.distributed.features import prepare_shared_features
from finetune.training.distributed.group import ProcessGroup, process_group, use_devices
from finetune.training.lr_finder import find_learning_rate, seconds_per_epoch
from finetune.training.trainer import (
    Callback,
    Phase,
    Trainer,
    TrainingState,
    logits_above,
    plan_phases,
    refuse_undistributable,
    restore_model,
    run_phase,
)
from finetune.utils import (
    DataError,
    FinetuneError,
    ProgressCallback,
    ResourceError,
    Stop,
    Terminal,
    UsageError,
    WeightsError,
    describe_device,
    deterministic_ops,
    format_interval,
    keras,
    library_versions,
    peak_memory_mb,
    sha256_of,
    stop_on_signals,
    tf,
    write_bytes,
    write_json,
    write_text,
)

RESERVE = 0.05  # of a time budget, for steps that turn out slower than they were
CLOSING = 15.0  # seconds for test, report and saving
LOGS = 20_000_000  # bytes for TensorBoard, report and tables


@dataclass(frozen=True)
class Result:
    """A finished run: where it is and how good it is on the test images (None without a test split)."""

    run: Run
    classifier: Classifier
    metrics: Metrics | None
    head_metrics: Metrics | None  # what the head alone had reached, if there was fine-tuning
    paired: PairedTest | None  # is the difference between the two more than chance?


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


@dataclass(frozen=True)
class Job:
    """What every step of a training needs."""

    run: Run
    config: Config
    dataset: Dataset
    watch: Stopwatch
    stop: Stop
    terminal: Terminal
    group: ProcessGroup

    def check_stop(self, *_: int) -> None:
        """Raises Stopped, with the command to go on, once somebody asked to stop."""
        self.stop.check(_how_to_resume(self.run))

    def check_stop_of_all(self) -> None:
        """The same between steps, where all processes stop together: once the last step has told them all."""
        if self.group.stopping:
            self.stop.requested = self.stop.requested or "SIGTERM"
            self.group.parting = True
        if self.group.stopping or self.group.size == 1:
            self.check_stop()

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[ProgressCallback]:
        """Times a stage and shows its progress; `update(done, total)` also looks whether to stop."""
        with self.watch.time(name), self.terminal.stage(title) as update:
            yield _both(update, self.check_stop)


def train_config(config: Config, *, command: Sequence[str] = (), terminal: Terminal | None = None) -> Result:
    """Trains what `config` describes in a new run directory.

    Raises ConfigError, DataError, WeightsError or ResourceError before anything long has begun where that is
    possible, and Stopped when asked to stop; the run can then be resumed.
    """
    terminal = terminal or Terminal(quiet=True)
    watch = Stopwatch()
    with stop_on_signals() as stop, use_devices(config.device) as group:
        with group.together():
            with watch.time("reading"), terminal.stage("Checking the images") as update:
                dataset = open_dataset(config.data, seed=config.seed, progress=_both(update, lambda *_: stop.check()))
            config, decisions = fill_open_keys(config, data_facts(dataset, config.device))
            resolve_weights(find_backbone(config.model.backbone), config.model.weights, top=False)  # or no run begins
            # Inside a folder of classes a run would become a class; beside a table it does no harm.
            run = create_run(config.output, config.name, config=dump_config(config), data_root=config.data.folder)
        with _working_on(run, watch):
            chosen = [f"{decision.key}: {decision.reason}" for decision in decisions]
            write_run_facts(
                run,
                command=list(command),
                seed=config.seed,
                seconds=watch.seconds,
                recipe=chosen,
                config=config.model_dump(mode="json"),  # what config.yaml must still say when the run is resumed
            )
            _note_data(run, dataset)
            if chosen:
                terminal.say("Chosen by recipe: auto; config.yaml of the run has all of it in full")
            for line in chosen:
                terminal.say(f"  {line}")
            return _work(Job(run, config, dataset, watch, stop, terminal, group))


def resume_run(
    run: Run, *, terminal: Terminal | None = None, break_lock: bool = False, accept_changes: bool = False
) -> Result:
    """Goes on with an interrupted run; it ends as it would have ended without the interruption.

    Raises UsageError when there is nothing left to do, DataError when images have changed since it began; with
    `accept_changes` it goes on with those that are there now, and notes that in splits.csv and run.json.
    """
    terminal = terminal or Terminal(quiet=True)
    config = load_config(run.config_yaml)
    watch = Stopwatch(read_run_facts(run).get("seconds"))
    with (
        stop_on_signals() as stop,
        use_devices(config.device) as group,
        _working_on(run, watch, break_lock=break_lock),
    ):
        with group.together(), watch.time("reading"), terminal.stage("Checking the images") as update:
            checking = _both(update, lambda *_: stop.check(_how_to_resume(run)))
            if run.splits_csv.exists():
                dataset = reopen_dataset(
                    config.data,
                    run.splits_csv,
                    run.classes_txt,
                    accept_changes=accept_changes,
                    hint=f"bring them back, or go on with what is there now:\n"
                    f"  finetune train --resume {display_path(run.path)} --accept-data-change",
                    progress=checking,
                )
                if accept_changes and dataset.warnings:
                    _note_data(run, dataset)
                    write_run_facts(run, data_changes=[*read_run_facts(run).get("data_changes", ()), *dataset.warnings])
            else:  # killed before the splits were noted
                dataset = open_dataset(config.data, seed=config.seed, progress=checking)
                _note_data(run, dataset)
        return _work(Job(run, config, dataset, watch, stop, terminal, group))


def train_as_follower() -> None:
    """What every process but the chief does: the same training, quietly, in the chief's run, which it only reads.

    `train` or `resume` is what the chief does. To be called inside `distribution.joined`. Raises what the chief
    raises, or what keeps this process from doing the same: other images, weights or versions.
    """
    with stop_on_signals() as stop:
        group, quiet = process_group(), Terminal(quiet=True)
        with group.together():
            """The chief checks the images and begins the run."""
        path, settings = group.tell(("", dict[str, Any]()))
        run, config = ReadOnlyRun(Path(path)), Config.model_validate(settings)
        with group.together():
            dataset = reopen_dataset(config.data, run.splits_csv, run.classes_txt, progress=lambda *_: stop.check())
        with deterministic_ops(config.deterministic):
            _train_all(Job(run, config, dataset, Stopwatch(), stop, quiet, group))
        with group.together():
            """The chief tests, and writes the report."""


def _note_data(run: Run, dataset: Dataset) -> None:
    write_text(run.classes_txt, "".join(f"{name}\n" for name in dataset.classes))
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
                write_run_facts(run, seconds=watch.seconds)
            if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
                raise ResourceError(
                    f"Out of memory: {' '.join(str(error).split())[:200]}",
                    hint="Halve head.batch_size and fine_tune.batch_size, or model.image_size; or try cache=disk.",
                ) from error
            raise


def _work(job: Job) -> Result:
    """What the chief does with a run that has begun; all there is, if nobody else takes part."""
    group = job.group
    group.tell((str(job.run.path), job.config.model_dump(mode="json")))
    with group.together():
        """The others look whether they have the same images."""
    with deterministic_ops(job.config.deterministic):
        trained = _train_all(job)
        with group.together():
            return _assess(job, *trained)


def _train_all(job: Job) -> tuple[Classifier, np.ndarray | None]:
    """All phases: the trained classifier, and what the head alone said to the test images."""
    run, config, dataset, group = job.run, job.config, job.dataset, job.group
    group.asked = lambda: job.stop.requested is not None
    keras.utils.set_random_seed(config.seed)
    with group.together():
        with job.watch.time("building"):
            several = config.data.multi_label
            classifier = build_classifier(config.model, dataset.classes, seed=config.seed, multi_label=several)
            phases = plan_phases(config, classifier)
        if group.chief:
            _refuse_other_weights(run, classifier)
        run.require_space(run_folder_size(classifier, phases))
        _introduce(job, classifier)
        checkpoint = run.load_checkpoint()
        run.rewind(checkpoint)
        if checkpoint and checkpoint.lost:
            job.terminal.warn(checkpoint.lost)
        refuse_undistributable(phases, classifier, config, len(dataset.indices("train")))
        if group.chief:
            _try_one_batch(job, classifier)
    _agree(group, classifier, dataset, checkpoint)
    with job.stage("features", "Features") as update:
        sources = prepare_shared_features(
            group,
            FeatureRequest(classifier, dataset, [phase.cut for phase in phases], config.augment, config.seed),
            policy=config.cache,
            numerics=group.tell(read_run_facts(run).get("features")),
            note=lambda numerics: write_run_facts(run, features=numerics),
            progress=update,
            say=job.terminal.say,
        )
    head_answers = _run_phases(job, classifier, list(zip(phases, sources, strict=True)), checkpoint)
    if group.chief and (config.calibrate or config.data.multi_label):
        _calibrate(job, classifier, phases[-1], sources[-1])
    return classifier, head_answers


def _agree(group: ProcessGroup, classifier: Classifier, dataset: Dataset, checkpoint: Checkpoint | None) -> None:
    """WeightsError or DataError, with the name of the process, if one begins with anything else than the chief."""
    if group.size == 1:
        return
    rows = zip(dataset.names, dataset.hashes, dataset.labels.tolist(), dataset.splits.tolist(), strict=True)
    group.agree({"pictures": sha256_of(repr(row).encode() for row in rows)}, DataError)
    weights = sha256_of(variable.numpy().tobytes() for variable in classifier.model.variables)
    group.agree(
        {"weights": weights, "checkpoint": checkpoint.name if checkpoint else "none"},
        WeightsError,
        hint="All must read the same weight file, and the run directory must be on storage that all share.",
    )


def _assess(job: Job, classifier: Classifier, head_answers: np.ndarray | None) -> Result:
    """Saves the trained classifier, tests it and writes the report."""
    run, config, dataset = job.run, job.config, job.dataset
    with job.watch.time("saving"):
        classifier.save(run.model_keras)
    with job.stage("evaluation", "Testing") as update:
        found = evaluate_on_test(classifier, dataset, head_answers, progress=update)
        write_predictions(run.predictions_csv, dataset, {"test": found.answers}, classifier.thresholds)
    write_hparams(run.tensorboard / "result", run.path.name, config, _accuracies(run, found.metrics))
    write_run_facts(run, seconds=job.watch.seconds, peak_memory_mb=peak_memory_mb())
    with job.watch.time("report"):
        evidence = report_evidence(run, config, dataset, classifier, found, read_run_facts(run))
        write_report(run.path, evidence)
    write_run_facts(run, seconds=job.watch.seconds)
    result = Result(run, classifier, found.metrics, found.head_metrics, found.paired)
    _conclude(job, result)
    return result


def _calibrate(job: Job, classifier: Classifier, phase: Phase, source: FeatureSource) -> None:
    """Makes the probabilities honest, and notes what turns them into answers, both by the validation images."""
    indices = job.dataset.indices("validation")
    labels, logits = job.dataset.labels[indices], logits_above(classifier, phase, source, indices)
    if job.config.calibrate:
        temperature = fit_temperature(logits, labels)
        classifier.apply_temperature(temperature)
        logits = logits / temperature
        write_run_facts(job.run, temperature=temperature)
    learned = fit_decisions(task_for(classifier.label_type).probabilities(logits), labels)
    classifier.spec = classifier.spec.model_copy(update=learned)


def _accuracies(run: Run, metrics: Metrics | None) -> dict[str, float]:
    """Of the kept weights, as far as there are images to measure them on."""
    validated = [phase["validation"] for phase in run.phases if phase["validation"]]
    found = {"validation": validated[-1]["accuracy"]} if validated else {}
    return found | ({"test": metrics.accuracy.value} if metrics else {})


def _conclude(job: Job, result: Result) -> None:
    """The numbers, where things are, where the time went, and what to type next."""
    run, say = display_path(job.run.path), job.terminal.say
    job.terminal.head("\nDone.")
    if result.metrics:
        name, share = result.metrics.headline
        job.terminal.head(f"Test {name} {format_interval(share, n=result.metrics.n)}")
    if result.head_metrics and result.paired:
        verdict = "no more than chance may do" if result.paired.better is None else "more than chance"
        say(
            f"The head alone: accuracy {result.head_metrics.accuracy.value:.1%}. Fine-tuning changed that by "
            f"{100 * result.paired.difference:+.1f} points, {verdict} (p = {result.paired.p_value:.2g})."
        )
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in job.watch.seconds.items())
    say(f"Time: {spent}; {sum(job.watch.seconds.values()):.0f} s in all")
    say(f"Report: {run / 'report.html'}   model: {run / 'model.keras'}")
    say(f"Next: finetune predict IMAGES --model {run}      finetune tensorboard {run.parent}")


def _try_one_batch(job: Job, classifier: Classifier) -> None:
    """One batch through the whole model: what cannot work should fail now, not after the long part."""
    paths = job.dataset.paths(job.dataset.indices("train")[: min(job.config.head.batch_size, FEATURE_BATCH)])
    batch = next(image_batches(image_reader(paths, classifier.transform), np.arange(len(paths)), len(paths)))
    scores = classifier.model(batch.images.astype("float32"), training=False)
    refuse_infinite(classifier, keras.ops.convert_to_numpy(scores))


def refuse_infinite(classifier: Classifier, values: np.ndarray) -> None:
    """WeightsError unless all that came out of `classifier` are finite numbers."""
    if not np.isfinite(values).all():
        raise WeightsError(
            f"{classifier.spec.backbone} answers the first images with NaN or infinity.",
            hint="Its weights are damaged: `finetune weights verify` tells which file.",
        )


def _refuse_other_weights(run: Run, classifier: Classifier) -> None:
    """Notes the weights that the run begins with; a resumed run must find the same."""
    before = read_run_facts(run).get("weights")
    if before and before != classifier.weights_hash:
        raise WeightsError(
            f"{run.path} began with other weights: SHA-256 {before}, now {classifier.weights_hash}.",
            hint="Bring the file of config.yaml's model.weights back, or start a new run.",
        )
    write_run_facts(run, weights=classifier.weights_hash)


def run_folder_size(classifier: Classifier, phases: Sequence[Phase]) -> int:
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


def _introduce(job: Job, classifier: Classifier) -> None:
    dataset, terminal = job.dataset, job.terminal
    parts = ", ".join(f"{len(dataset.indices(name)):,} {name}" for name in ("train", "validation", "test"))
    terminal.head(
        f"{dataset.name}: {len(dataset.classes)} {dataset.label_type.noun}, {len(dataset):,} images ({parts})"
    )
    for warning in filter(None, [*dataset.warnings, classifier.warning]):
        terminal.warn(warning)
    terminal.say(f"Backbone {classifier.row.title} at {classifier.spec.image_size} px on {describe_device()}")
    if not job.group.alone:
        sizes = {str(phase.batch_size): None for phase in (job.config.head, *job.config.fine_tune)}
        terminal.say(
            f"{job.group.describe()} together; batches of {' and '.join(sizes)} in all, divided among them. Learning "
            "rates are as in the config: they belong to the batch, not to the number of devices."
        )
    terminal.say(f"Run directory {job.run.path}")


def _how_to_resume(run: Run) -> str:
    return f"Everything up to here is saved. Go on with: finetune train --resume {display_path(run.path)}"


def _run_phases(
    job: Job,
    classifier: Classifier,
    phases: Sequence[tuple[Phase, FeatureSource]],
    checkpoint: Checkpoint | None,
) -> np.ndarray | None:
    """Trains what is left of `phases`; returns what the head alone said to the test images, if more came after it."""
    run = job.run
    standing = TrainingState(**checkpoint.state) if checkpoint else TrainingState()
    if checkpoint:
        restore_model(classifier, checkpoint.arrays)
    answers = _head_answers(job.dataset)
    kept = {key: array for key, array in checkpoint.arrays.items() if key == answers} if checkpoint else {}
    lines = ProgressLogger(job.terminal)
    watchers = [lines, *_boards(job, standing.step)] if job.group.chief else []
    has_start = False
    try:
        for phase, source in phases[standing.phase :]:
            phase = _settle(job, classifier, phase, source, len(phases) - phase.index)
            trainer = Trainer(
                phase,
                classifier,
                source,
                job.dataset,
                config=job.config,
                progress=standing,
            )
            begun = checkpoint is not None and bool(standing.epoch or standing.batch)
            if checkpoint and begun:
                trainer.restore(checkpoint.arrays)
            elif phase.index == 0:
                has_start = _start_head(job, classifier, trainer)
            checkpoint = None
            commit = partial(_commit, run, kept) if job.group.chief else _nothing
            with job.watch.time(phase.name), job.terminal.stage(phase.name) as lines.update:
                result = run_phase(
                    trainer,
                    has_start=phase.index > 0 or has_start,
                    watcher=CallbackList(watchers, commit),
                    commit=commit,
                    record=run.append_history,
                    check_stop=job.check_stop_of_all,
                )
                if phase.index == 0 and len(phases) > 1 and job.group.chief:
                    logits = trainer.logits(job.dataset.indices("test"))
                    kept = {answers: task_for(classifier.label_type).probabilities(logits)}
            run.finish_phase(dataclasses.asdict(result))
            standing = TrainingState(phase=phase.index + 1, step=standing.step)
            run.save_checkpoint(
                f"{phase.name}-done", {**trainer.trained_arrays(), **kept}, dataclasses.asdict(standing)
            )
    finally:
        CallbackList(watchers).close()
    return kept.get(answers)


def _boards(job: Job, first_step: int) -> list[Callback]:
    """What writes for TensorBoard, from the step on at which a run begins or goes on."""
    run, wanted = job.run, job.config.tensorboard
    config = run.config_yaml.read_text("utf-8")
    board = TensorBoard(run.tensorboard, config, first_step=first_step, histograms=wanted.histograms)
    return [board, Profiler(run.tensorboard / "train", job.terminal)] if wanted.profile else [board]


def _settle(job: Job, classifier: Classifier, phase: Phase, source: FeatureSource, phases_left: int) -> Phase:
    """`phase` with what only trial steps can tell: `learning_rate: auto`, and the epochs that `time_budget` allows.

    Both are noted in run.json, so that a restart goes on with the same.
    """
    settled: dict[str, dict[str, Any]] = job.group.tell(read_run_facts(job.run).get("settled", {}))
    wanted = {"learning_rate"} if phase.settings.learning_rate == "auto" else set()
    wanted |= {"epochs"} if job.config.time_budget and phase.settings.epochs and phase.index else set()

    if not wanted:
        return phase

    def make(settings: PhaseConfig) -> Trainer:
        trial = dataclasses.replace(phase, settings=settings)
        standing = TrainingState(phase=phase.index)
        return Trainer(trial, classifier, source, job.dataset, config=job.config, progress=standing)

    found = settled.get(phase.name, {})
    if "learning_rate" in wanted - set(found):
        with job.watch.time("trials"):
            curve = find_learning_rate(phase, make)
        found = {**found, "learning_rate": curve.chosen}
        if job.group.chief:
            figure = draw_lr_curve(curve.rates, curve.losses, curve.chosen)
            job.run.figures.mkdir(exist_ok=True)
            write_bytes(job.run.figures / f"learning_rate_{phase.name}.png", figure)
        job.terminal.say(f"{phase.name}: learning rate {curve.chosen:g}, found by trial")
    if "epochs" in wanted - set(found):
        with job.watch.time("trials"):
            seconds = seconds_per_epoch(dataclasses.replace(phase, settings=_with(phase, found)), make)
        found = {**found, "epochs": _affordable(job, phase, seconds, phases_left)}
    found = job.group.tell(found)  # the chief's clock decides
    write_run_facts(job.run, settled={**settled, phase.name: found})
    return dataclasses.replace(phase, settings=_with(phase, found))


def _with(phase: Phase, found: Mapping[str, Any]) -> PhaseConfig:
    return phase.settings.model_copy(update=dict(found))


def _affordable(job: Job, phase: Phase, seconds: float, phases_left: int) -> int:
    """How many epochs of so many seconds fit into this phase's part of what is left of the time budget."""
    budget = job.config.time_budget or 0.0
    left = (budget * (1 - RESERVE) - sum(job.watch.seconds.values()) - CLOSING) / phases_left
    epochs = max(0, min(phase.settings.epochs, int(left / seconds)))
    if epochs < phase.settings.epochs:
        job.terminal.warn(
            f"{phase.name}: {epochs} epochs instead of {phase.settings.epochs}, to keep to time_budget "
            f"({seconds:.0f} s each, {budget:.0f} s for everything)"
        )
    return epochs


def _start_head(job: Job, classifier: Classifier, trainer: Trainer) -> bool:
    """Lets the head begin as a logistic regression, where the config and the head allow it; says how good that is."""
    if job.config.head.start == "random" or not classifier.spec.linear_head:
        return False
    with job.watch.time("baseline"):
        found = probe_head_features(trainer) if job.group.chief else None
    if not job.group.tell(found is not None):
        job.terminal.say("Too many classes for a logistic regression: the head starts from random numbers.")
        return False
    if found:
        set_head_weights(found, classifier)
    job.group.spread(classifier.model.get_layer("logits").variables)
    if not found:
        return True
    job.terminal.say(f"Baseline, logistic regression on the features: validation accuracy {found.accuracy:.1%}")
    write_run_facts(job.run, baseline={"accuracy": found.accuracy, "loss": found.loss, "penalty": found.penalty})
    return True


def _head_answers(dataset: Dataset) -> str:
    """Name, in a checkpoint, of what the head alone said to these very test images; looked at once, at the end."""
    return f"head_answers/{sha256_of(dataset.hashes[at].encode() for at in dataset.indices('test'))[:16]}"


def _nothing(trainer: Trainer) -> None:
    """The commit of a process that is not the chief."""


def _commit(run: Run, kept: Mapping[str, np.ndarray], trainer: Trainer) -> None:
    at = trainer.progress
    run.save_checkpoint(
        f"{trainer.phase.name}-{at.epoch}-{at.batch}", {**trainer.arrays(), **kept}, dataclasses.asdict(at)
    )


def assert_same_start(group: ProcessGroup, asked: Config | None) -> None:
    """UsageError, with the name of the process, if one was given another config than the chief or is another version.

    `asked` is the config of the command line, None without one.
    """
    request = dump_config(asked.model_copy(update={"output": Path("runs")})) if asked else "none"
    facts = {"config": sha256_of([request.encode()]), "finetune": version("finetune"), **library_versions()}
    group.agree(facts, UsageError, hint="Start all with the same command, files and installation.")


# ---------------------------------------------------------------------------------------------------- run.json


def read_run_facts(run: Run) -> dict[str, Any]:
    """run.json: versions, command, seed, device, hash of the weights, seconds by stage. Empty if there is none yet."""
    try:
        facts: dict[str, Any] = json.loads(run.run_json.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def write_run_facts(run: Run, **changed: Any) -> None:
    """Changes some of the facts in run.json; versions and device are always those of now."""
    if isinstance(run, ReadOnlyRun):
        return
    always = {
        "versions": {"finetune": version("finetune"), **library_versions()},
        "device": describe_device(),
        "machine": platform.platform(),
        "python": sys.version.split()[0],
    }
    write_json(run.run_json, {**read_run_facts(run), **always, **changed})

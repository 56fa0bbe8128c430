"""From a config to a finished run: the whole of `finetune train`, in order.

    result = train_config(load_config("configs/flowers.yaml"))
    result = resume_run(open_run(Path("runs/flowers-1")))

Every step leaves its outcome in the run folder, so that a run that was interrupted continues where it was: starting is
resuming a run in which nothing is done yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backbones import find_backbone, resolve_weights
from finetune.config import Config, dump_config, fill_open_keys, load_config
from finetune.data import Dataset, data_facts, open_dataset, reopen_dataset
from finetune.evaluation import (
    Check,
    Decisions,
    Gap,
    Metrics,
    PairedTest,
    different_rows,
    display_path,
    evaluate_on_test,
    fit_decisions,
    report_evidence,
    task_for,
    write_predictions,
    write_report,
)
from finetune.models import Classifier, FeatureRequest, build_classifier, new_spec
from finetune.runs import ReadOnlyRun, Run, create_run, refuse_run_folder, refuse_taken
from finetune.training.budget import keep_to_budget
from finetune.training.callbacks import Callback, ProgressLogger
from finetune.training.distributed.features import prepare_shared_features
from finetune.training.distributed.group import process_group, use_devices
from finetune.training.loop import fit_phases
from finetune.training.model_state import Scorer
from finetune.training.phases import plan_phases
from finetune.training.run_context import RunContext, how_to_resume, stoppable
from finetune.training.run_journal import RunJournal, Stopwatch, config_as_trained, read_run_facts, write_run_facts
from finetune.training.start_checks import (
    assert_same_start,
    refuse_endless_accumulation,
    refuse_other_weights,
    refuse_undistributable,
    run_folder_size,
    try_one_batch,
)
from finetune.training.summary import print_end, print_start
from finetune.training.tensorboard import Profiler, TensorBoard, write_hparams
from finetune.utils import (
    FinetuneError,
    ProgressCallback,
    ResourceError,
    Terminal,
    deterministic_ops,
    format_duration,
    keras,
    peak_memory_mb,
    shell_command,
    stop_on_signals,
    tf,
    write_text,
)


@dataclass(frozen=True)
class Result:
    """A finished run: where it is and how good it is on the test images (None without a test split)."""

    run: Run
    classifier: Classifier
    metrics: Metrics | None
    head_metrics: Metrics | None  # what the head alone had reached, if there was fine-tuning
    paired: PairedTest | None  # is the difference between the two more than chance?
    gap: Gap | None  # between validation and test
    checks: Sequence[Check]  # whether what was fitted on validation holds on test

    def __fspath__(self) -> str:
        return str(self.run.path)  # a result is taken wherever the path of a run is


def train_config(
    config: Config, *, command: Sequence[str] = (), run_dir: Path | None = None, terminal: Terminal | None = None
) -> Result:
    """Trains what `config` describes in a new run folder: `run_dir`, or one with a number in the config's `output`.

    Raises ConfigError, DataError, WeightsError or ResourceError before anything long has begun where that is
    possible, and Stopped when asked to stop; the run can then be resumed.
    """
    terminal = terminal or Terminal(quiet=True)
    watch = Stopwatch()
    row, weights = find_backbone(config.model.backbone), config.model.weights
    with stop_on_signals() as stop, ExitStack() as stack:
        with process_group().synchronized():
            # Mistakes come to light before the long part begins, and before TensorFlow starts.
            refuse_run_folder(run_dir or config.output, config.data.folder)
            if run_dir:
                refuse_taken(run_dir)
            resolve_weights(row, weights, top=False, download=False)
            with watch.time("reading"), terminal.stage("Checking the images") as update:
                dataset = open_dataset(config.data, seed=config.seed, progress=stoppable(update, stop))
            new_spec(config.model, dataset.classes, multi_label=config.data.multi_label)
            group = stack.enter_context(use_devices(config.device))
            config, decisions = fill_open_keys(config, data_facts(dataset, config.device))
            resolve_weights(row, weights, top=False)  # or no run begins
            # Inside a folder of classes a run would become a class; beside a table it does no harm.
            text, root = dump_config(config), config.data.folder
            run = create_run(config.output, config.name, config=text, data_root=root, path=run_dir)
        with _working_on(run, watch):
            chosen = [str(decision) for decision in decisions]
            write_run_facts(
                run,
                command=list(command),
                seed=config.seed,
                seconds=watch.seconds,
                recipe=chosen,
                config=config.model_dump(mode="json"),  # what config.yaml must still say when the run is resumed
            )
            _write_data(run, dataset)
            if chosen:
                terminal.say("Chosen by recipe: auto; config.yaml of the run has all of it in full")
            for line in chosen:
                terminal.say(f"  {line}")
            return train_and_evaluate(RunContext(run, config, dataset, watch, stop, terminal, group))


def resume_run(
    run: Run, *, terminal: Terminal | None = None, break_lock: bool = False, accept_changes: bool = False
) -> Result:
    """Continues an interrupted run; it ends as it would have ended without the interruption.

    Raises UsageError when there is nothing left to do, DataError when images have changed since it began; with
    `accept_changes` it continues with those that are there now, and notes that in splits.csv and run.json.
    """
    terminal = terminal or Terminal(quiet=True)
    config = load_config(run.config_yaml)
    watch = Stopwatch(read_run_facts(run).get("seconds"))
    with stop_on_signals() as stop, _working_on(run, watch, break_lock=break_lock):
        with process_group().synchronized(), watch.time("reading"), terminal.stage("Checking the images") as update:
            progress = stoppable(update, stop, how_to_resume(run))
            if run.splits_csv.exists():
                dataset = _reopen_data(run, config, accept_changes, progress)
            else:  # killed before the splits were written
                dataset = open_dataset(config.data, seed=config.seed, progress=progress)
                _write_data(run, dataset)
        with use_devices(config.device) as group:
            return train_and_evaluate(RunContext(run, config, dataset, watch, stop, terminal, group))


def train_as_follower() -> None:
    """What every process but rank 0 does: the same training, quietly, in the run of rank 0, which it only reads.

    Rank 0 calls `train_config` or `resume_run` meanwhile. To be called inside `join_group`. Raises what rank 0 raises,
    or what keeps this process from doing the same: other images, weights or versions.
    """
    with stop_on_signals() as stop:
        group, quiet = process_group(), Terminal(quiet=True)
        group.barrier()  # rank 0 checks the images and begins the run
        path, settings = group.broadcast(("", dict[str, Any]()))
        run, config = ReadOnlyRun(Path(path)), Config.model_validate(settings)
        with group.synchronized():
            dataset = reopen_dataset(config.data, run.splits_csv, run.classes_txt, progress=lambda *_: stop.check())
        with deterministic_ops(config.deterministic):
            train(keep_to_budget(RunContext(run, config, dataset, Stopwatch(), stop, quiet, group)))
        group.barrier()  # rank 0 tests, and writes the report


def train_and_evaluate(context: RunContext) -> Result:
    """Trains in a run that has begun, with the other processes if there are any; tests; writes the report."""
    run, config, dataset, group = context.run, context.config, context.dataset, context.group
    group.broadcast((str(run.path), config.model_dump(mode="json")))
    group.barrier()  # the others check that they have the same images
    with deterministic_ops(config.deterministic):
        context = keep_to_budget(context)
        trained = train(context)
        with group.synchronized():
            config = config_as_trained(context.config, run)
            classifier, probabilities = trained.classifier, trained.validation_probabilities
            with context.stage("evaluation") as update:
                test = evaluate_on_test(
                    classifier,
                    dataset,
                    trained.decisions,
                    probabilities,
                    trained.head_logits,
                    calibrate=config.calibrate,
                    progress=update,
                )
            classifier.spec = classifier.spec.model_copy(update={"tested": test.tested})
            with context.stage("saving"):
                classifier.save(run.model_keras)
            splits = {"validation": probabilities, "test": test.probabilities}
            write_predictions(run.predictions_csv, dataset, splits, classifier.thresholds)
            write_hparams(run.tensorboard, run.path.name, config, _accuracies(run, test.metrics))
            write_run_facts(run, seconds=context.watch.seconds, peak_memory_mb=peak_memory_mb())
            with context.stage("report"):
                facts = {**read_run_facts(run), "config": config.model_dump(mode="json")}
                evidence = report_evidence(run, config, dataset, classifier, test, facts)
                write_report(run.path, evidence)
            write_run_facts(run, seconds=context.watch.seconds)
    print_end(context.terminal, run, dataset, test, context.watch.seconds)
    if config.time_budget and context.watch.elapsed > config.time_budget:
        context.terminal.warn(f"this took {format_duration(context.watch.elapsed)}, more than time_budget.")
    return Result(run, classifier, test.metrics, test.head_metrics, test.paired, test.gap, test.checks)


@dataclass(frozen=True)
class Trained:
    """What the phases have come to. Probabilities are (images of the split, classes)."""

    classifier: Classifier
    decisions: Decisions  # fitted on the validation images
    validation_probabilities: np.ndarray
    head_logits: Mapping[str, np.ndarray] | None  # of validation and test, by the head alone, if phases came after it


def train(context: RunContext) -> Trained:
    """Builds the classifier, computes the features of the frozen part, trains all phases and calibrates."""
    run, config, dataset, group = context.run, context.config, context.dataset, context.group
    group.stop_requested = lambda: context.stop.requested is not None
    with group.synchronized():
        with context.stage("building"):
            classifier = build_classifier(
                config.model, dataset.classes, seed=config.seed, multi_label=config.data.multi_label
            )
            phases = plan_phases(config, classifier)
        if group.rank == 0:
            refuse_other_weights(run, classifier)
        run.require_space(run_folder_size(classifier, phases))
        print_start(context.terminal, run, config, dataset, classifier, group)
        checkpoint = run.load_checkpoint()
        run.rewind(checkpoint)
        if checkpoint and checkpoint.lost:
            context.terminal.warn(checkpoint.lost)
        refuse_endless_accumulation(phases, dataset, config)
        refuse_undistributable(phases, classifier, config, len(dataset.indices("train")))
        if group.rank == 0:
            try_one_batch(classifier, dataset, config.head.batch_size)
    assert_same_start(group, dataset, classifier, checkpoint)

    with context.stage("features") as update:
        sources = prepare_shared_features(
            group,
            FeatureRequest(classifier, dataset, [phase.cut for phase in phases], config.augment, config.seed),
            policy=config.cache,
            numerics=group.broadcast(read_run_facts(run).get("features")),
            note=lambda numerics: write_run_facts(run, features=numerics),
            progress=update,
            say=context.terminal.say,
        )
    journal = RunJournal(
        run, config, dataset, checkpoint,
        watch=context.watch, terminal=context.terminal, writes=group.rank == 0,
    )  # fmt: skip
    fit_phases(
        phases,
        classifier,
        sources,
        dataset,
        config=config,
        journal=journal,
        callbacks=_callbacks(context, checkpoint.state["step"] if checkpoint else 0),
        check_stop=context.check_stop,
        timer=context.stage,
    )
    decisions, probabilities = Decisions(), np.empty((0, len(dataset.classes)))
    if group.rank == 0:
        above = keras.Model(phases[-1].cut, classifier.model.output)
        logits = Scorer(above, sources[-1]).logits(dataset.indices("validation"))
        decisions = _fit_decisions(run, config, dataset, classifier, logits)
        probabilities = task_for(classifier.label_type).probabilities(logits / decisions.temperature)
    return Trained(classifier, decisions, probabilities, journal.head_logits)


def _callbacks(context: RunContext, first_step: int) -> list[Callback]:
    """On rank 0 the terminal and TensorBoard, from the step on at which the training continues."""
    if context.group.rank > 0:
        return []
    run, options = context.run, context.config.tensorboard
    config_yaml = run.config_yaml.read_text("utf-8")
    callbacks = [
        ProgressLogger(context.terminal),
        TensorBoard(run.tensorboard, config_yaml, first_step=first_step, histograms=options.histograms),
    ]
    if options.profile:
        callbacks.append(Profiler(run.tensorboard, context.terminal))
    return callbacks


def _fit_decisions(run: Run, config: Config, dataset: Dataset, classifier: Classifier, logits: np.ndarray) -> Decisions:
    """Calibrates the classifier and fits its thresholds, on the different ones of the validation images."""
    rows, labels = different_rows(dataset, "validation"), dataset.labels[dataset.distinct("validation")]
    decisions = fit_decisions(logits[rows], labels, calibrate=config.calibrate)
    classifier.apply_temperature(decisions.temperature)
    fitted = {"thresholds": decisions.thresholds, "confidences": decisions.confidences}
    classifier.spec = classifier.spec.model_copy(update=fitted)
    if config.calibrate:
        write_run_facts(run, temperature=decisions.temperature)
    return decisions


def _accuracies(run: Run, metrics: Metrics | None) -> dict[str, float]:
    """The accuracies of the kept weights, as far as there are images to measure them on."""
    accuracies = {}
    for phase in run.phases:
        if phase["validation"]:
            accuracies["validation"] = phase["validation"]["accuracy"]
    if metrics:
        accuracies["test"] = metrics.accuracy.value
    return accuracies


# ------------------------------------------------------------------------------------------------- the run folder


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


def _write_data(run: Run, dataset: Dataset) -> None:
    write_text(run.classes_txt, "".join(f"{name}\n" for name in dataset.classes))
    dataset.write_splits(run.splits_csv)


def _reopen_data(run: Run, config: Config, accept_changes: bool, progress: ProgressCallback) -> Dataset:
    """The images that the run began with; those of now, if they have changed and that is accepted."""
    dataset = reopen_dataset(
        config.data,
        run.splits_csv,
        run.classes_txt,
        accept_changes=accept_changes,
        hint=f"bring them back, or continue with what is there now:\n"
        f"  {shell_command('finetune', 'train', '--resume', display_path(run.path), '--accept-data-change')}",
        progress=progress,
    )
    if accept_changes and dataset.warnings:
        _write_data(run, dataset)
        write_run_facts(run, data_changes=[*read_run_facts(run).get("data_changes", ()), *dataset.warnings])
    return dataset

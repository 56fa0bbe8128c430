"""What people read at the beginning and at the end of a run."""

from collections.abc import Mapping

from finetune.config import Config
from finetune.data import Dataset
from finetune.evaluation import TestResult, describe_copies, display_path
from finetune.models import Classifier
from finetune.runs import Run
from finetune.training.distributed.group import ProcessGroup
from finetune.utils import Terminal, describe_device, shell_command


def print_start(
    terminal: Terminal, run: Run, config: Config, dataset: Dataset, classifier: Classifier, group: ProcessGroup
) -> None:
    """The images, the network, the device, and warnings about them."""
    counts = ", ".join(f"{len(dataset.indices(split)):,} {split}" for split in ("train", "validation", "test"))
    terminal.head(
        f"{dataset.name}: {len(dataset.classes)} {dataset.label_type.noun}, {len(dataset):,} images ({counts})"
    )
    for warning in [*dataset.warnings, classifier.warning]:
        if warning:
            terminal.warn(warning)
    terminal.say(f"Backbone {classifier.row.title} at {classifier.spec.image_size} px on {describe_device()}")
    if not group.is_single_device:
        sizes = dict.fromkeys(str(phase.batch_size) for phase in (config.head, *config.fine_tune))
        terminal.say(
            f"{group.describe()} together; batches of {' and '.join(sizes)} in all, divided among them. Learning "
            "rates are as in the config: they belong to the batch, not to the number of devices."
        )
    terminal.say(f"Run folder {run.path}")


def print_end(terminal: Terminal, run: Run, dataset: Dataset, test: TestResult, seconds: Mapping[str, float]) -> None:
    """The numbers and how far they can be believed, where things are, where the time went, and what to type next."""
    folder, say = display_path(run.path), terminal.say
    terminal.head("\nDone.")
    if test.metrics:
        name, value = test.metrics.headline
        terminal.head(
            f"Test {name} {value.value:.1%} (95 % interval {value.low:.1%} to {value.high:.1%}, n = {test.metrics.n:,})"
        )
    else:
        say(f"Validation accuracy {test.validation.accuracy.value:.1%} (n = {test.validation.n:,}); there is no test.")
    if copies := describe_copies(dataset, "test"):
        say(copies)
    if test.gap:
        (terminal.warn if test.gap.differs else say)(test.gap.sentence())
    for check in test.checks:
        if not check.holds:
            terminal.warn(check.sentence)
    if test.head_metrics and test.paired:
        verdict = "no more than chance may do" if test.paired.better is None else "more than chance"
        say(
            f"The head alone: accuracy {test.head_metrics.accuracy.value:.1%}. Fine-tuning changed that by "
            f"{100 * test.paired.difference:+.1f} points, {verdict} (p = {test.paired.p_value:.2g})."
        )
    stages = ", ".join(f"{stage} {duration:.1f} s" for stage, duration in seconds.items())
    say(f"Time: {stages}; {sum(seconds.values()):.0f} s in all")
    say(f"Report: {folder / 'report.html'}   model: {folder / 'model.keras'}")
    predict = shell_command("finetune", "predict", "IMAGES", "--model", folder)
    say(f"Next: {predict}      {shell_command('finetune', 'tensorboard', folder.parent)}")

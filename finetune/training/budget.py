"""`time_budget`: what of a training fits into the time, decided before anything long begins.

    context = keep_to_budget(context)       a dry run, and the decision, which is noted in the run

    fitted = fit_to_budget(config, costs, seconds=480)
    fitted.config, fitted.changes, fitted.seconds       the arithmetic in it

What costs least accuracy is taken away first: epochs of fine-tuning down to half of them, augmented views, the other
epochs, fine-tuning as a whole, and at last pixels, where the config leaves the input size open.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune.backbones import find_backbone
from finetune.config import AugmentConfig, Config, PhaseConfig
from finetune.data import Dataset
from finetune.training.dry_run import DryRun, dry_run
from finetune.training.run_context import RunContext
from finetune.training.run_journal import read_run_facts, seconds_for_training, write_run_facts
from finetune.utils import format_duration

SMALLER = (0.72, 0.58, 0.43)  # fractions of the network's own input size: 160, 128 and 96 of 224
LEAST_EPOCHS = 0.5  # fraction; a phase that is cut further loses more than it does with fewer views


@dataclass(frozen=True)
class Costs:
    """What the parts of a training cost on this machine; times in seconds."""

    image: float  # to read an image and send it through the frozen part of the network
    missing: tuple[int, ...]  # images of each view whose features are not cached; view 0 is all images undisturbed
    live: int  # images that go through the frozen part in every epoch, because features are not cached
    epochs: tuple[float, ...]  # an epoch of each phase on cached features
    test: int  # test images
    size: int  # of the input, at which this was measured


@dataclass(frozen=True)
class Fitted:
    """A config that fits into the time, or the shortest that there is."""

    config: Config
    changes: tuple[str, ...]  # what was taken away, for people
    seconds: float  # that features, phases and test will take
    end_seconds: float  # of these, the test


def keep_to_budget(context: RunContext) -> RunContext:
    """`context` with what of its config fits into `time_budget`; decided once, so that a resumed run trains the same.

    To be called by all processes that train together: rank 0 decides, after steps that all of them make.
    """
    config, run, group, terminal = context.config, context.run, context.group, context.terminal
    if not config.time_budget:
        return context
    facts = group.broadcast(read_run_facts(run).get("budget"))
    if facts is None:
        with context.stage("trials"):
            costs = measure_costs(dry_run(config, context.dataset), context.dataset, processes=group.world_size)
        left = seconds_for_training(config.time_budget, context.watch.elapsed)
        fitted = fit_to_budget(config, costs, left)
        for message in budget_warnings(fitted, left):
            terminal.warn(message)
        settings = fitted.config.model_dump(mode="json")
        facts = group.broadcast({"config": settings, "changes": fitted.changes, "end_seconds": fitted.end_seconds})
        write_run_facts(run, budget=facts)
    return replace(context, config=Config.model_validate(facts["config"]))


def budget_warnings(fitted: Fitted, seconds: float) -> Iterator[str]:
    """What people must know of a training that was fitted to `seconds`."""
    if fitted.changes:
        yield f"to keep to time_budget: {'; '.join(fitted.changes)}"
    if fitted.seconds > seconds:
        yield (
            f"time_budget cannot be kept: {format_duration(max(seconds, 0.0))} of it are left for features and test, "
            f"which will take about {format_duration(fitted.seconds)}. A smaller backbone or image_size takes less."
        )


def measure_costs(trial: DryRun, dataset: Dataset, *, processes: int = 1) -> Costs:
    """The costs that a dry run has shown, where so many processes divide the images."""
    uncached = len(dataset.indices("train")) + len(dataset.indices("validation"))
    return Costs(
        image=1 / (trial.feature_rate * processes),
        missing=trial.missing_by_view,
        live=uncached if trial.feature_place == "off" else 0,
        epochs=tuple(phase.epoch_seconds for phase in trial.phases),
        test=len(dataset.indices("test")),
        size=trial.image_size,
    )


def fit_to_budget(config: Config, costs: Costs, seconds: float) -> Fitted:
    """What of `config` can be trained in `seconds`; if nothing can, the shortest training."""
    for shorter, least in _shorter_and_shorter(config, costs.size):
        left, needed = max(0.0, seconds - _image_seconds(shorter, costs)), _epoch_seconds(shorter, costs)
        fraction = 1.0 if needed <= left else left / needed
        fitted = _with_epochs(shorter, fraction)
        keeps_all_phases = all(phase.epochs for phase in fitted.fine_tune)
        if fraction >= least and keeps_all_phases and estimate_seconds(fitted, costs) <= seconds:
            break
    changes = tuple(_describe_changes(config, fitted, costs.size))
    end_seconds = costs.test * costs.image * _relative_pixels(fitted, costs)
    return Fitted(fitted, changes, estimate_seconds(fitted, costs), end_seconds)


def estimate_seconds(config: Config, costs: Costs) -> float:
    """How long features, phases and test of `config` take; `costs` may be those of a config that does more."""
    return _image_seconds(config, costs) + _epoch_seconds(config, costs)


def _image_seconds(config: Config, costs: Costs) -> float:
    """Of that, the time in which images go through the frozen part, once, for the features and for the test."""
    augment = config.augment
    views = augment.views if augment.active and isinstance(augment.views, int) else 0
    return (sum(costs.missing[: 1 + views]) + costs.test) * costs.image * _relative_pixels(config, costs)


def _epoch_seconds(config: Config, costs: Costs) -> float:
    """Of that, the time of all epochs."""
    phases = zip((config.head, *config.fine_tune), costs.epochs, strict=False)  # there may be fewer phases now
    seconds = sum(phase.epochs * (epoch + costs.live * costs.image) for phase, epoch in phases)
    return seconds * _relative_pixels(config, costs)


def _relative_pixels(config: Config, costs: Costs) -> float:
    return ((config.model.image_size or costs.size) / costs.size) ** 2


def _shorter_and_shorter(config: Config, size: int) -> Iterator[tuple[Config, float]]:
    """`config` and what is left of it, less and less, each with the fraction of its epochs that it needs at least."""
    yield config, LEAST_EPOCHS
    if config.augment.active and isinstance(config.augment.views, int):
        config = config.model_copy(update={"augment": config.augment.model_copy(update={"views": 1})})
        yield config, LEAST_EPOCHS
    yield config, 0.0
    config = config.model_copy(update={"fine_tune": ()})
    yield config, 0.0
    if config.model.image_size is None:
        least = find_backbone(config.model.backbone).min_size
        for fraction in SMALLER:
            smaller = round(size * fraction / 32) * 32
            if least <= smaller < size:
                model = config.model.model_copy(update={"image_size": smaller})
                yield config.model_copy(update={"model": model}), 0.0


def _with_epochs(config: Config, fraction: float) -> Config:
    """`config` with that fraction of its epochs; one at least for a head that would otherwise stay random numbers."""

    def shorten(phase: PhaseConfig, least: int = 0) -> PhaseConfig:
        return phase.model_copy(update={"epochs": min(phase.epochs, max(least, int(fraction * phase.epochs)))})

    head = shorten(config.head, least=0 if config.starts_from_regression else 1)
    fine_tune = tuple(map(shorten, config.fine_tune))
    trains = any(phase.epochs for phase in (head, *fine_tune))
    augment = config.augment if trains else AugmentConfig()  # a regression looks at images as they are
    return config.model_copy(update={"head": head, "fine_tune": fine_tune, "augment": augment})


def _describe_changes(planned: Config, fitted: Config, size: int) -> Iterator[str]:
    if planned.augment.active and not fitted.augment.active:
        yield "augment=none"
    elif planned.augment.views != fitted.augment.views:
        yield f"augment.views={fitted.augment.views} instead of {planned.augment.views}"
    if planned.head.epochs != fitted.head.epochs:
        yield f"head.epochs={fitted.head.epochs} instead of {planned.head.epochs}"
    if planned.fine_tune and not fitted.fine_tune:
        yield "fine_tune=none: the head alone"
    for before, after in zip(planned.fine_tune, fitted.fine_tune, strict=False):
        if before.epochs != after.epochs:
            yield f"fine_tune.epochs={after.epochs} instead of {before.epochs}"
    if planned.model.image_size != fitted.model.image_size:
        yield f"model.image_size={fitted.model.image_size} instead of {size}"

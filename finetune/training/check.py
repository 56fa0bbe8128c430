"""Find everything that could go wrong with a training, without training: `finetune check`.

    result = check_config(load_config("flowers.yaml"))
    result.problems          what would stop the training, all of it at once
    result.warnings          what would not stop it, and should be known
    result.seconds           what it will cost, stage by stage

TensorFlow is imported only for one step of every phase (see `dry_run`).
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.backbones import Weights, find_backbone, resolve_weights
from finetune.config import Config, Decision, fill_open_keys
from finetune.data import (
    MIN_FEATURE_SIMILARITY,
    MIN_FINGERPRINT_SIMILARITY,
    SPLITS,
    Dataset,
    Inspection,
    SimilarPair,
    data_facts,
    feature_vectors,
    find_near_duplicates,
    fingerprint_vectors,
    open_dataset,
)
from finetune.runs import refuse_run_folder
from finetune.utils import (
    DataError,
    FinetuneError,
    ProgressCallback,
    ResourceError,
    Terminal,
    WeightsError,
    format_bytes,
    format_count,
    require_space,
)

if TYPE_CHECKING:
    from finetune.training.dry_run import DryRun

ENLARGED = 1.5  # an image that is enlarged by less to the size of the input loses little
MANY_ENLARGED = 0.2  # fraction of images so enlarged from which on there is a warning
MEMORY_LIMIT = 0.8  # fraction of the memory that one step may take without a warning


@dataclass(frozen=True)
class SimilarImages:
    """Near-duplicates across splits or classes, the most similar first."""

    pairs: Sequence[SimilarPair] = ()
    methods: tuple[str, ...] = ()  # what the images were compared by: fingerprint, features
    fraction: float = 1.0  # of the images, that were compared with all others
    by_features: int = 0  # of the pairs, that fingerprints alone do not show


@dataclass(frozen=True)
class CheckResult:
    """The result of a check. `dataset`, `weights` and `dry_run` are None where a problem prevented them."""

    config: Config
    dataset: Dataset | None
    inspections: Sequence[Inspection]  # of the images of the data set, in its order
    similar: SimilarImages
    weights: Weights | None
    dry_run: "DryRun | None"
    problems: Sequence[FinetuneError]
    recipe: Sequence[Decision] = ()  # what the config leaves open, as it will be chosen

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the first problem."""
        return self.problems[0].exit_code if self.problems else 0

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of images, (classes, 3): in train, validation and test."""
        if self.dataset is None:
            return np.zeros((0, 3), int)
        return np.stack([self.dataset.counts(split) for split in SPLITS], axis=1)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height of the images in pixels, (N, 2)."""
        return np.array([(image.width, image.height) for image in self.inspections], int).reshape(-1, 2)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What each stage of the training will take on this machine; early stopping may make it less."""
        if self.dry_run is None or self.dataset is None:
            return {}
        rate = self.dry_run.feature_rate
        train, validation, test = (len(self.dataset.indices(split)) for split in SPLITS)
        # Without a cache every epoch reads its images and sends them through the whole network.
        uncached = (train + validation) / rate if self.dry_run.feature_place == "off" else 0.0
        return {
            "start": self.dry_run.start_seconds,
            "features": self.dry_run.missing_features / rate,
            **{phase.name: phase.epochs * (phase.epoch_seconds + uncached) for phase in self.dry_run.phases},
            "evaluation": test / rate,
        }

    @cached_property
    def warnings(self) -> list[str]:
        """What does not prevent the training, and should be known."""
        warnings = []
        if self.dataset:
            known = {line for problem in self.problems for line in str(problem).splitlines()}
            warnings += [warning for warning in self.dataset.warnings if known.isdisjoint(warning.splitlines())]
        if self.weights and self.weights.warning:
            warnings.append(self.weights.warning)
        size, fraction = self._enlarged_images()
        if fraction >= MANY_ENLARGED:
            warnings.append(
                f"{fraction:.0%} of the images are enlarged {ENLARGED} times or more, to the {size} px of the input"
            )
        if self.similar.by_features:
            more = format_count(self.similar.by_features, "more pair")
            warnings.append(f"{more} of near-duplicate images in two splits or classes, by features alone")
        if self.dry_run and self.dry_run.memory and self.dry_run.peak_memory > MEMORY_LIMIT * self.dry_run.memory:
            warnings.append(
                f"one step took {format_bytes(self.dry_run.peak_memory)} of the "
                f"{format_bytes(self.dry_run.memory)} of memory; halve the batch size"
            )
        if self.config.time_budget and self.dry_run and self.dataset:
            from finetune.training.budget import budget_warnings, fit_to_budget, measure_costs
            from finetune.training.run_journal import seconds_for_training

            left = seconds_for_training(self.config.time_budget, self.dry_run.start_seconds)
            warnings += budget_warnings(
                fit_to_budget(self.config, measure_costs(self.dry_run, self.dataset), left), left
            )
        return warnings

    def _enlarged_images(self) -> tuple[int, float]:
        """The side of the network's input, and the fraction of the images that are much enlarged to it."""
        backbone, model = find_backbone(self.config.model.backbone), self.config.model
        size = model.image_size or backbone.size
        if not len(self.sizes):
            return size, 0.0
        used = {  # pixels of an image that become the side of the input
            "crop": backbone.crop * self.sizes.min(axis=1),
            "squash": self.sizes.min(axis=1),
            "pad": self.sizes.max(axis=1),
        }[model.resize]
        return size, float((used * ENLARGED <= size).mean())

    def to_json(self) -> dict[str, Any]:
        """Names, numbers and lists only, for `json.dump`."""
        return {
            "config": self.config.name,
            "problems": [
                {"kind": type(problem).__name__, "exit_code": problem.exit_code, "message": str(problem)}
                for problem in self.problems
            ],
            "warnings": self.warnings,
            "recipe": [str(decision) for decision in self.recipe],
            "data": self._data_to_json() if self.dataset else None,
            "alike": {
                "by": self.similar.methods,
                "share": self.similar.fraction,
                "pairs": [describe_pair(pair, self.dataset) for pair in self.similar.pairs] if self.dataset else [],
            },
            "weights": {"path": str(self.weights.path), "sha256": self.weights.sha256} if self.weights else None,
            "trial": self.dry_run.to_json() if self.dry_run else None,
            "missing_features": self.dry_run.missing_features if self.dry_run else None,
            "seconds": self.seconds,
        }

    def _data_to_json(self) -> dict[str, Any]:
        assert self.dataset is not None
        per_class = zip(self.dataset.classes, self.counts.tolist(), strict=True)
        width, height = (
            {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}
            for values in self.sizes.T
        )
        return {
            "name": self.dataset.name,
            "pictures": len(self.dataset),
            "classes": [{"name": name, **dict(zip(SPLITS, row, strict=True))} for name, row in per_class],
            "formats": dict(Counter(image.format for image in self.inspections).most_common()),
            "width": width,
            "height": height,
            "skipped": [{"path": name, "why": why} for name, why in self.dataset.skipped],
        }


def describe_pair(pair: SimilarPair, dataset: Dataset) -> dict[str, Any]:
    """A pair for JSON: how similar its two images are, and each with its split and class."""
    images = [
        {"path": dataset.path(index), "split": SPLITS[dataset.splits[index]], "class": dataset.text(index)}
        for index in (pair.first, pair.second)
    ]
    return {"likeness": round(pair.similarity, 4), "pictures": images}


def check_config(config: Config, *, compute_features: bool = False, terminal: Terminal | None = None) -> CheckResult:
    """Check everything that a training of `config` needs, and run one step of every phase.

    Problems are collected, not raised. Without images or weights no step is tried, and they are told at once. With
    `compute_features` the features are computed and cached as the training would do, which then finds them.
    Near-duplicates are recognised by fingerprints and, where features are cached, by these too.
    """
    terminal = terminal or Terminal(quiet=True)
    problems: list[FinetuneError] = []
    with terminal.stage("Checking the images") as update:
        dataset = _open_as_far_as_possible(config, problems, update)
    decisions: Sequence[Decision] = ()
    if dataset is not None:
        config, decisions = fill_open_keys(config, data_facts(dataset, config.device))
    weights, result = None, None
    with _collect(problems):
        weights = resolve_weights(find_backbone(config.model.backbone), config.model.weights, top=False)
    with _collect(problems):
        _check_output(config)
    if dataset is not None and not any(isinstance(problem, WeightsError) for problem in problems):
        with _collect(problems), terminal.stage("Trying a step of each phase") as update:
            from finetune.training.dry_run import dry_run

            result = dry_run(config, dataset, progress=update)
    if result and dataset and compute_features:
        with _collect(problems), terminal.stage("Features") as update:
            from finetune.training.dry_run import compute_all_features

            compute_all_features(config, dataset, progress=update)
    if result:
        with _collect(problems):
            require_space(_existing(config.output), result.run_size)
    inspections: list[Inspection] = []
    similar = SimilarImages()
    if dataset:  # the scan's results were cached a moment ago
        inspections = list(dataset.scan())
        similar = _find_similar_images(dataset, inspections, result)
    return CheckResult(config, dataset, inspections, similar, weights, result, problems, decisions)


@contextmanager
def _collect(problems: list[FinetuneError]) -> Iterator[None]:
    """Append a FinetuneError to `problems` instead of raising it."""
    try:
        yield
    except FinetuneError as error:
        problems.append(error)


def _open_as_far_as_possible(
    config: Config, problems: list[FinetuneError], progress: ProgressCallback
) -> Dataset | None:
    """The data set; if it is refused, it is opened with less strict settings too, to find what else is wrong."""
    settings = config.data
    relaxations: Sequence[dict[str, str]] = ({}, {"bad_images": "skip"}, {"leaks": "warn"})
    for relaxation in relaxations:
        settings = settings.model_copy(update=relaxation)
        try:
            return open_dataset(settings, seed=config.seed, progress=progress)
        except DataError as error:
            # The same words at the beginning, or the same files: that problem is known.
            beginning = set(str(error).splitlines()[:2])
            if all(beginning.isdisjoint(str(known).splitlines()) for known in problems):
                problems.append(error)
    return None


def _check_output(config: Config) -> None:
    """Raise if runs cannot be written to `config.output`. Some causes show only in writing, in `create_run`."""
    refuse_run_folder(config.output, config.data.folder)
    folder = _existing(config.output)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(
            f"no run can be written to {config.output}: {folder} is not writable.", hint="Change output."
        )


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _find_similar_images(dataset: Dataset, inspections: Sequence[Inspection], result: "DryRun | None") -> SimilarImages:
    """By fingerprints, which find copies in other colours, and by features, which find one scene from two places."""
    fingerprints = fingerprint_vectors([image.fingerprint for image in inspections])
    vectors = {"fingerprint": (fingerprints, MIN_FINGERPRINT_SIMILARITY)}
    pooled = result.pooled_features if result else None
    if pooled is not None:
        vectors["features"] = (feature_vectors(pooled), MIN_FEATURE_SIMILARITY)
    groups = dataset.label_type.group_ids(dataset.labels)
    pairs: dict[tuple[int, int], SimilarPair] = {}
    fractions = []
    by_fingerprint = 0
    for method, (rows, least) in vectors.items():
        similar, fraction = find_near_duplicates(rows, groups, dataset.splits, min_similarity=least)
        fractions.append(fraction)
        for pair in similar:
            if dataset.hashes[pair.first] != dataset.hashes[pair.second]:  # equal files are reported by the data set
                pairs.setdefault((pair.first, pair.second), pair)
        if method == "fingerprint":
            by_fingerprint = len(pairs)
    ordered = sorted(pairs.values(), key=lambda pair: -pair.similarity)
    return SimilarImages(ordered, tuple(vectors), min(fractions), by_features=len(pairs) - by_fingerprint)

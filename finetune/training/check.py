"""Everything that could go wrong with a training, found without training: `finetune check`.

    found = check(config.load("flowers.yaml"))
    found.problems          what would stop the training, all of it at once
    found.warnings          what would not, and should be known
    found.seconds           what it will cost, stage by stage

TensorFlow is imported only to try one step of every phase (see `rehearsal`). What that showed is kept beside the other
caches under everything that it rests on, and a second check finds it there.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finetune.backbones import Weights, find_backbone, resolve_weights
from finetune.config import Config, fill_open_keys
from finetune.data import (
    LEAST_FEATURES,
    LEAST_FINGERPRINT,
    SPLITS,
    Dataset,
    Inspection,
    SimilarPair,
    data_facts,
    feature_vectors,
    find_similar,
    fingerprint_vectors,
    open_dataset,
    scan_images,
)
from finetune.runs import refuse_run_folder
from finetune.training.dry_run_result import DryRun, dry_run_key, recall_dry_run, remember_dry_run
from finetune.utils import DataError, FinetuneError, ResourceError, Terminal, WeightsError, cache_folder, require_space

ENLARGED = 1.5  # times, that an image is enlarged to the size of the input; less does no harm to speak of
SMALL = 0.2  # of the images so enlarged; then it is worth a word
FULL = 0.8  # of the memory
Found = TypeVar("Found")


@dataclass(frozen=True)
class SimilarImages:
    """Images of two splits or two classes that look alike, by what that was judged, and of which share of all."""

    pairs: Sequence[SimilarPair] = ()
    by: tuple[str, ...] = ()  # fingerprint, features
    share: float = 1.0


@dataclass(frozen=True)
class CheckResult:
    """What was found. `dataset`, `weights` and `trial` are None where problems stood in their way."""

    config: Config
    dataset: Dataset | None
    looks: Sequence[Inspection]  # at the images of the data set, in its order
    alike: SimilarImages
    weights: Weights | None
    trial: DryRun | None
    remembered: bool  # the trial is that of an earlier check
    problems: Sequence[FinetuneError]

    @property
    def exit_code(self) -> int:
        """0, or that of the first problem."""
        return self.problems[0].exit_code if self.problems else 0

    @cached_property
    def counts(self) -> np.ndarray:
        """Images (classes, 3) in train, validation and test."""
        if self.dataset is None:
            return np.zeros((0, 3), int)
        return np.stack([self.dataset.counts(split) for split in SPLITS], axis=1)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height (N, 2) of the images in pixels."""
        return np.array([(one.width, one.height) for one in self.looks], int).reshape(-1, 2)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What each stage of the training will take on this machine; early stopping may make it less."""
        if self.trial is None or self.dataset is None:
            return {}
        rate = self.trial.feature_rate
        train, validation, test = (len(self.dataset.indices(split)) for split in SPLITS)
        # Without a cache every epoch reads its images and sends them through the whole network.
        anew = (train + validation) / rate if self.trial.feature_place == "off" else 0.0
        return {
            "start": self.trial.start_seconds,
            "features": self.trial.missing_features / rate,
            **{phase.name: phase.epochs * (phase.epoch_seconds + anew) for phase in self.trial.phases},
            "evaluation": test / rate,
        }

    @cached_property
    def warnings(self) -> list[str]:
        """What stops nothing and should be known."""
        return list(self._warnings())

    def _warnings(self) -> Iterator[str]:
        told = {line for problem in self.problems for line in str(problem).splitlines()}
        for warning in self.dataset.warnings if self.dataset else ():
            if told.isdisjoint(warning.splitlines()):
                yield warning
        if self.weights and self.weights.warning:
            yield self.weights.warning
        size, enlarged = self._enlarged
        if enlarged >= SMALL:
            yield f"{enlarged:.0%} of the images are enlarged {ENLARGED} times or more, to the {size} px of the input"
        if self.dataset and self.alike.pairs:
            yield _alike_sentence(self.alike, self.dataset)
        if self.trial and self.trial.memory and self.trial.peak_memory > FULL * self.trial.memory:
            used, there = self.trial.peak_memory / 1e9, self.trial.memory / 1e9
            yield f"one step took {used:.1f} GB of the {there:.1f} GB of memory; halve the batch size"

    @property
    def _enlarged(self) -> tuple[int, float]:
        """Side of the input, and the share of the images that must be much enlarged to it."""
        row, model = find_backbone(self.config.model.backbone), self.config.model
        size = model.image_size or row.size
        used = {
            "crop": row.crop * self.sizes.min(axis=1, initial=1 << 30),
            "squash": self.sizes.min(axis=1, initial=1 << 30),
            "pad": self.sizes.max(axis=1, initial=0),
        }[model.resize]
        return size, float((used * ENLARGED <= size).mean()) if len(used) else 0.0

    def to_json(self) -> dict[str, Any]:
        """Names, numbers and lists only, for `json.dump`."""
        return {
            "config": self.config.name,
            "problems": [
                {"kind": type(one).__name__, "exit_code": one.exit_code, "message": str(one)} for one in self.problems
            ],
            "warnings": self.warnings,
            "data": self._data_to_json() if self.dataset else None,
            "alike": {
                "by": self.alike.by,
                "share": self.alike.share,
                "pairs": [describe_pair(pair, self.dataset) for pair in self.alike.pairs] if self.dataset else [],
            },
            "weights": {"path": str(self.weights.path), "sha256": self.weights.sha256} if self.weights else None,
            "trial": {**self.trial.to_json(), "remembered": self.remembered} if self.trial else None,
            "missing_features": self.trial.missing_features if self.trial else None,
            "seconds": self.seconds,
        }

    def _data_to_json(self) -> dict[str, Any]:
        assert self.dataset is not None
        per_class = zip(self.dataset.classes, self.counts.tolist(), strict=True)
        return {
            "name": self.dataset.name,
            "pictures": len(self.dataset),
            "classes": [{"name": name, **dict(zip(SPLITS, row, strict=True))} for name, row in per_class],
            "formats": dict(Counter(one.format for one in self.looks).most_common()),
            "width": _spread(self.sizes[:, 0]),
            "height": _spread(self.sizes[:, 1]),
            "skipped": [{"path": name, "why": why} for name, why in self.dataset.skipped],
        }


def _spread(values: np.ndarray) -> dict[str, int]:
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def describe_pair(pair: SimilarPair, dataset: Dataset) -> dict[str, Any]:
    """A pair in words: its two images with split and class."""
    images = [
        {"path": dataset.path(at), "split": SPLITS[dataset.splits[at]], "class": dataset.text(at)}
        for at in (pair.first, pair.second)
    ]
    return {"likeness": round(pair.likeness, 4), "pictures": images}


def _alike_sentence(alike: SimilarImages, dataset: Dataset) -> str:
    across = sum(dataset.splits[pair.first] != dataset.splits[pair.second] for pair in alike.pairs)
    of_two = sum(dataset.text(pair.first) != dataset.text(pair.second) for pair in alike.pairs)
    count = "1 pair of images looks" if len(alike.pairs) == 1 else f"{len(alike.pairs):,} pairs of images look"
    return (
        f"{count} alike (by {' and '.join(alike.by)}): {across:,} in two splits, so the test may "
        f"be too easy; {of_two:,} of two classes, so a label may be wrong"
    )


# ----------------------------------------------------------------------------------------------------- checking


def check_config(config: Config, *, compute_features: bool = False, terminal: Terminal | None = None) -> CheckResult:
    """Looks at everything that a training of `config` needs, and tries one step of every phase.

    Problems are collected, not raised. With `compute_features` the features are computed as the training would do,
    which then finds them; images that look alike are told by features where these are there, else by fingerprint.
    """
    terminal = terminal or Terminal(quiet=True)
    problems: list[FinetuneError] = []
    with terminal.stage("Checking the images") as update:
        dataset = _open(config, problems, update)
    if dataset is not None:
        config, _ = fill_open_keys(config, data_facts(dataset, config.device))
    row = find_backbone(config.model.backbone)
    source = _collect(problems, lambda: resolve_weights(row, config.model.weights, top=False))
    _collect(problems, lambda: _check_output(config))
    known = None
    if dataset is None or any(isinstance(problem, WeightsError) for problem in problems):
        _collect(problems, lambda: _check_phases(config))
        tried = None
    else:
        key = dry_run_key(config, dataset, source)
        known = recall_dry_run(key)
        tried = known or _collect(problems, lambda: _try(config, dataset, key, terminal))
        if compute_features and tried:
            _collect(problems, lambda: _compute_features(config, dataset, terminal))
    if tried:
        _collect(problems, lambda: require_space(_existing(config.output), tried.run_size))
    looks = list(_look(dataset)) if dataset else []
    alike = _alike(dataset, looks, tried) if dataset else SimilarImages()
    return CheckResult(config, dataset, looks, alike, source, tried, known is not None, problems)


def _open(config: Config, problems: list[FinetuneError], progress: Any) -> Dataset | None:
    """The data set; where it cannot be had as it is, once more with less asked of it, to find what else is wrong."""
    settings = config.data
    relaxations: Sequence[dict[str, str]] = ({}, {"bad_images": "skip"}, {"leaks": "warn"})
    for relaxed in relaxations:
        settings = settings.model_copy(update=relaxed)
        try:
            return open_dataset(settings, seed=config.seed, progress=progress)
        except DataError as error:
            if not any(_says(known, error) for known in problems):
                problems.append(error)
    return None


def _says(known: FinetuneError, error: FinetuneError) -> bool:
    """Whether `known` begins with the same words, or lists the same files."""
    lines = str(error).splitlines()
    return not set(lines[:2]).isdisjoint(str(known).splitlines())


def _collect(problems: list[FinetuneError], work: Callable[[], Found]) -> Found | None:
    """What `work` returns; None when it raises, and then the problem is noted."""
    try:
        return work()
    except FinetuneError as error:
        problems.append(error)
        return None


def _check_output(config: Config) -> None:
    """Whether runs may go where they shall; what shows only in writing, `runs.create` finds."""
    refuse_run_folder(config.output, config.data.folder)
    place = _existing(config.output)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(f"no run can be written to {config.output}: {place} is closed.", hint="Change output.")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest place above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _check_phases(config: Config) -> None:
    """Where no step can be tried: do the phases fit the network at least?"""
    from finetune.training.dry_run import build_and_plan

    network = config.model.model_copy(update={"weights": "none"})
    build_and_plan(config.model_copy(update={"model": network}), config.data.classes or ("a", "b"))


def _try(config: Config, dataset: Dataset, key: str, terminal: Terminal) -> DryRun:
    with terminal.stage("Trying a step of each phase") as update:
        from finetune.training.distributed.group import use_devices
        from finetune.training.dry_run import dry_run

        with use_devices(config.device):
            found = dry_run(config, dataset, progress=update)
    remember_dry_run(key, found)
    return found


def _compute_features(config: Config, dataset: Dataset, terminal: Terminal) -> None:
    from finetune.training.distributed.group import use_devices
    from finetune.training.dry_run import compute_all_features

    with use_devices(config.device), terminal.stage("Features") as update:
        compute_all_features(config, dataset, progress=update)


def _look(dataset: Dataset) -> Iterator[Inspection]:
    """What the scan found out about each image: it was kept a moment ago."""
    return scan_images(map(dataset.path, range(len(dataset))), cache=cache_folder() / "scan.sqlite")


def _alike(dataset: Dataset, looks: Sequence[Inspection], tried: DryRun | None) -> SimilarImages:
    """By fingerprint, which sees copies in other colours, and by features, which see one scene from two places."""
    described = {"fingerprint": (fingerprint_vectors([one.fingerprint for one in looks]), LEAST_FINGERPRINT)}
    pooled = tried.pooled_features if tried else None
    if pooled is not None:
        described["features"] = (feature_vectors(pooled), LEAST_FEATURES)
    found: dict[tuple[int, int], SimilarPair] = {}
    groups = dataset.label_type.group_ids(dataset.labels)
    shares = []
    for vectors, least in described.values():
        pairs, share = find_similar(vectors, groups, dataset.splits, least=least)
        shares.append(share)
        for pair in pairs:
            if dataset.hashes[pair.first] != dataset.hashes[pair.second]:  # of equal files `data` has told
                found.setdefault((pair.first, pair.second), pair)
    pairs = sorted(found.values(), key=lambda pair: -pair.likeness)
    return SimilarImages(pairs, tuple(described), min(shares))

"""What one training step of every phase has shown (see `rehearsal`), and the memory of it.

    found = recall(key(config, dataset, weights))       None until it was tried
    remember(key, found)

Reading this needs no TensorFlow, so a config that was checked once is checked again in a moment.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from finetune.backbones import Weights
from finetune.config import Config
from finetune.data import Dataset
from finetune.utils import FinetuneError, available_cores, cache_folder, write_json

FORMAT = 1  # raise it when a trial is made or kept in another way


@dataclass(frozen=True)
class PhaseDryRun:
    """One phase: what a step of it costs. Seconds are those of this machine now."""

    name: str
    epochs: int
    steps: int  # an epoch
    batch_size: int
    blocks: tuple[str, ...]  # unfrozen
    parameters: int  # that are trained
    step_seconds: float
    epoch_seconds: float  # all steps and the validation, on features that are there
    rates: tuple[float, ...]  # the learning rate, at moments spread evenly from the first step to the last


@dataclass(frozen=True)
class DryRun:
    """What the steps showed. Sizes in bytes, rates in images a second."""

    at: str  # date and time
    device: str
    weights: str | None  # SHA-256 of the file
    warning: str
    start_seconds: float  # to build the network and compile every phase
    reading_rate: float
    feature_rate: float  # reading and the whole frozen part
    peak_memory: int  # of this process, or of the GPU where there is one
    memory: int | None  # of this machine; None where a GPU is meant
    run_size: int  # what the run directory may come to
    feature_place: str  # disk, memory or off
    feature_size: int
    feature_pictures: tuple[int, ...]  # by view
    feature_files: tuple[tuple[str, ...], ...]  # by cut, the head's first, and view
    phases: tuple[PhaseDryRun, ...]

    @property
    def missing_features(self) -> int:
        """Images, each view counted, that have to go through the frozen part before the first epoch, as of now."""
        if self.feature_place == "off":
            return 0
        there = [all(map(os.path.exists, view)) for view in zip(*self.feature_files, strict=True)]
        return sum(self.feature_pictures) - sum(compress(self.feature_pictures, there))

    @property
    def pooled_features(self) -> "np.ndarray | None":
        """What comes out of the frozen backbone for every image, (N, channels); None until it is on the disk."""
        try:
            return np.asarray(np.load(self.feature_files[0][0], mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError, IndexError):
            return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "DryRun":
        """What `to_json` gave, though JSON has made lists of the tuples. Raises TypeError and KeyError for others."""
        phases = [
            PhaseDryRun(**{**phase, "blocks": tuple(phase["blocks"]), "rates": tuple(phase["rates"])})
            for phase in facts["phases"]
        ]
        tuples = {
            "phases": tuple(phases),
            "feature_images": tuple(facts["feature_images"]),
            "feature_files": tuple(map(tuple, facts["feature_files"])),
        }
        return cls(**{**facts, **tuples})


def dry_run_key(config: Config, dataset: Dataset, weights: Weights | None) -> str:
    """A name for everything that a trial rests on: config, images, weights, versions, machine."""
    images = hashlib.sha256("".join(dataset.hashes).encode())
    images.update(dataset.labels.tobytes() + dataset.splits.tobytes())
    facts = {
        "format": FORMAT,
        "config": config.model_dump(mode="json", exclude={"name", "output", "version"}),
        "pictures": [str(dataset.root), images.hexdigest()],
        "weights": weights.sha256 if weights else None,
        "versions": [version(name) for name in ("finetune", "tensorflow", "keras", "numpy", "pillow")],
        "machine": [platform.node(), sys.version, sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))],
        "cores": available_cores(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cache": str(cache_folder()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()[:40]


def remember_dry_run(key: str, trial: DryRun) -> None:
    """Keeps `trial` for `recall`. Never a reason to fail."""
    with suppress(OSError, FinetuneError):
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(key), trial.to_json())


def recall_dry_run(key: str) -> DryRun | None:
    """The trial that was kept under `key`."""
    try:
        return DryRun.from_json(json.loads(_path(key).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(key: str) -> Path:
    return cache_folder() / "checks" / f"{key}.json"

"""Which features a training needs, where they will be kept, in which precision, and which are cached already.

    request = FeatureRequest(classifier, dataset, [phase.cut for phase in phases], config.augment, config.seed)
    plan = plan_features(request, policy="auto")
    plan.place, plan.dtype, plan.size, plan.missing_views()

Nothing is computed and no image is read. Features are kept for the whole data set in its own order, whatever the
split, in files named by everything that could change them: the images' hashes, the weights, the cut, the transform,
the augmentation and its seed. So a cached file is never stale, and a run with another learning rate finds it.

A *view* is one pass over images: view 0 is all images undisturbed, views 1 to k are augmented copies of the training
images. A view is cached at every cut.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.config import AugmentConfig
from finetune.data import Augmenter, Dataset, ReadImage, image_reader
from finetune.models.classifier import Classifier
from finetune.models.feature_files import features_disk_space, features_folder, open_features_file
from finetune.models.features import FeatureExtractor
from finetune.utils import ResourceError, dtype_policy, format_bytes, keras, library_versions, sha256_of

FORMAT = 2  # raise it when the values in old files would no longer be correct
DISK_FRACTION = 0.5  # of the free space
MEMORY_FRACTION = 0.4  # of the available memory
Place = Literal["disk", "memory", "off"]


@dataclass(frozen=True)
class FeatureRequest:
    """Everything that decides the values of the features: those of `dataset` at all `cuts`.

    `cuts` are tensors of the classifier's model, one for each phase of the training.
    """

    classifier: Classifier
    dataset: Dataset
    cuts: Sequence[Any]
    augment: AugmentConfig
    seed: int

    @cached_property
    def paths(self) -> list[str]:
        """The file of each image of the data set."""
        return self.dataset.paths(np.arange(len(self.dataset)))

    @cached_property
    def read(self) -> ReadImage:
        return image_reader(self.paths, self.classifier.transform)

    @cached_property
    def augmenter(self) -> Augmenter:
        return Augmenter(self.augment)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        return FeatureExtractor(self.classifier, self.cuts)

    @property
    def live(self) -> bool:
        """Whether images are augmented in a new way in each epoch, so that nothing can be cached."""
        return self.augment.views == "live" and self.augment.active

    @cached_property
    def views(self) -> tuple[np.ndarray, ...]:
        """For each view the indices of its images in the data set."""
        everything = np.arange(len(self.dataset))
        if not self.augment.active or self.augment.views == "live":
            return (everything,)
        return (everything, *[self.dataset.indices("train")] * self.augment.views)

    @cached_property
    def network_facts(self) -> list[dict[str, Any]]:
        """For each cut, everything below it that decides its features. Read before the weights are trained."""
        facts = []
        for cut in self.cuts:
            below = keras.Model(self.classifier.model.inputs[0], cut)
            facts.append(
                {
                    "weights": sha256_of(np.ascontiguousarray(weight).data for weight in below.get_weights()),
                    "backbone": self.classifier.spec.backbone,
                    "cut": [layer.__class__.__name__ for layer in below.layers],
                    "shape": list(cut.shape[1:]),
                    "transform": repr(self.classifier.transform),
                }
            )
        return facts

    def key(self, cut: int, view: int, dtype: str) -> str:
        """The name of the features of `view` at `cut`: a digest of everything that could change them."""
        changes = self.augment.model_dump(mode="json", exclude={"preset", "views", "mixup", "cutmix"})
        facts = {
            **self.network_facts[cut],
            "format": FORMAT,
            "pictures": sha256_of(self.dataset.hashes[index].encode() for index in self.views[view]),
            "augment": [changes, self.seed, view] if view else None,
            "dtype": dtype,
            "precision": dtype_policy(),
            "libraries": library_versions(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]

    def bytes_of(self, cut: int, view: int, dtype: str) -> int:
        """The size of the features of `view` at `cut`."""
        return int(np.prod(self.cuts[cut].shape[1:])) * len(self.views[view]) * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class FeaturePlan:
    """Where the features of a request are kept: on `disk`, in `memory`, or nowhere (`off`).

    With `off` every epoch sends the images through the whole network.
    """

    request: FeatureRequest
    place: Place
    dtype: str  # float32 or float16
    message: str = ""  # for the user: what was decided and why
    memory: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)  # (cut, view) -> rows, where kept there

    @property
    def numerics(self) -> str:
        """What decides the bits: `float32` or `float16`, or `live` where each epoch has its own augmentation.

        Without augmentation, features in float32 are the same whether they are cached or computed in each epoch.
        """
        return "live" if self.place == "off" and self.request.augment.active else self.dtype

    @cached_property
    def paths(self) -> tuple[tuple[Path, ...], ...]:
        """`paths[c][v]` is the file of view v at cut c; empty unless the place is the disk."""
        if self.place != "disk":
            return ()
        return tuple(
            tuple(features_folder() / f"{self.request.key(cut, view, self.dtype)}.npy" for view in self._view_numbers)
            for cut in range(len(self.request.cuts))
        )

    @property
    def images(self) -> tuple[int, ...]:
        """How many images go through the network for each view."""
        return tuple(map(len, self.request.views))

    @property
    def size(self) -> int:
        """Bytes of all features."""
        if self.place == "off":
            return 0
        cuts = range(len(self.request.cuts))
        return sum(self.request.bytes_of(cut, view, self.dtype) for cut in cuts for view in self._view_numbers)

    @property
    def missing_size(self) -> int:
        """Bytes of the features that are not cached yet."""
        return sum(self.request.bytes_of(cut, view, self.dtype) for cut, view in self._missing())

    def missing_views(self) -> list[int]:
        """The views that must be computed because they are not cached at every cut. Looks at the disk each time."""
        return sorted({view for _, view in self._missing()})

    def array(self, cut: int, view: int) -> Any:
        """The cached rows of `view` at `cut`, or None if they are not all there."""
        if self.place == "disk":
            return open_features_file(self.paths[cut][view], len(self.request.views[view]))
        return self.memory.get((cut, view))

    @property
    def _view_numbers(self) -> range:
        return range(len(self.request.views))

    def _missing(self) -> list[tuple[int, int]]:
        if self.place == "off":
            return []
        pairs = [(cut, view) for cut in range(len(self.request.cuts)) for view in self._view_numbers]
        return [pair for pair in pairs if self.array(*pair) is None]


def plan_features(request: FeatureRequest, *, policy: str = "auto", numerics: str | None = None) -> FeaturePlan:
    """Decide where the features go; no image is read.

    `policy` is `auto` (disk, else memory, else off), `disk`, `memory` or `off`. If space is short, features are kept
    in half precision, or not at all. An interrupted run must see the same values again: it gives the `numerics` of
    its first plan, and gets a plan with the same or a ResourceError.
    """
    places: list[Place] = ["disk", "memory"]
    if policy == "off" or request.live:
        places = []
    elif policy != "auto":
        places = [place for place in places if place == policy]
    disk_space = features_disk_space()
    unwritable = ""
    if disk_space is None and "disk" in places:
        unwritable = f"; nothing can be written to {features_folder()} (FINETUNE_CACHE names another folder)"
    room = {
        "disk": int((disk_space or 0) * DISK_FRACTION),
        "memory": int(available_memory() * MEMORY_FRACTION),
    }
    for place in places:
        for dtype in ("float32", "float16"):
            plan = FeaturePlan(request, place, dtype)
            if numerics in (None, dtype) and plan.missing_size <= room[place]:
                note = "" if dtype == "float32" else " (half precision, to fit)"
                message = f"Features: {format_bytes(plan.size)} on {place}{note}{unwritable}"
                return FeaturePlan(request, place, dtype, message)

    needed = format_bytes(FeaturePlan(request, "memory", numerics if numerics == "float16" else "float32").size)
    message = ""
    if places and numerics == "live":
        message = "The run began without cached features: every epoch goes through the whole network."
    elif places:
        most = max(room[place] for place in places)
        message = (
            f"Features need {needed}, more than the {format_bytes(most)} that may be "
            f"used here: every epoch goes through the whole network instead{unwritable}."
        )
    plan = FeaturePlan(request, "off", "float32", message)
    if numerics not in (None, plan.numerics):
        raise ResourceError(
            f"The run began with features kept in {numerics} ({needed}) and can only be resumed with them, "
            f"but with cache={policy} there is no room for them now.",
            hint="Free some disk space or memory, or choose another place: cache=disk, cache=memory.",
        )
    return plan


def available_memory() -> int:
    """Bytes of memory that can be used without swapping."""
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return 4 * 2**30

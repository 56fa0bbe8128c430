"""What comes out of the frozen part of the network, computed once and kept.

During a phase nothing below the cut changes, so each image goes through it once and the epochs run on what comes
out. Features are kept for the whole data set in its own order, whatever the split, in folders named by everything
that could change them: the images' hashes, the weights, the cut, the transform, the augmentation and its seed.
A stale hit is thereby impossible, and another seed or learning rate finds the work already done.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.config import AugmentConfig
from finetune.data import (
    Augmenter,
    Batch,
    Dataset,
    ReadImage,
    WaitMeter,
    image_batches,
    image_reader,
    index_batches,
    pad_batch,
    read_ahead,
    scan_images,
)
from finetune.models.classifier import Classifier, inference_function
from finetune.training import process_group, refuse_mixing
from finetune.utils import (
    ConfigError,
    DataError,
    ProgressCallback,
    ResourceError,
    atomic_write,
    cache_folder,
    dtype_policy,
    explain_os_errors,
    format_bytes,
    keras,
    library_versions,
    printable,
    remove_leftovers,
    require_space,
    sha256_of,
    temporary_name,
)

FORMAT = 1  # raise it when the numbers of an old cache would no longer be right
FEATURE_BATCH = 32  # one batch shape everywhere: an image's features must not depend on its neighbours
DISK_SHARE = 0.5  # of what is free
MEMORY_SHARE = 0.4  # of what is available
SHOWING = 90  # seconds that a network drive may take to show a new file to another machine
CHANGED = "It was changed after the check at the start. Start again, so that it is checked anew."
Rows = Callable[[int], slice]
all_rows: Rows = partial(slice, 0)


class FeatureSource(Protocol):
    """Where a phase gets its inputs: cached rows, or images sent through the frozen part as they are needed."""

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0, rows: Rows = all_rows
    ) -> Iterator[np.ndarray]:
        """Features (n, ...) of `indices` in that order; as training in `epoch` sees them, or undisturbed (None).

        The first `skip` batches are left out: they were seen before the run was interrupted. Of each batch come those
        that `rows` tells by its length.
        """


class FeatureExtractor:
    """Images -> features at several cuts, in one pass through the frozen part, in inference mode."""

    def __init__(self, classifier: Classifier, cuts: Sequence[Any]) -> None:
        self.classifier = classifier
        self.cuts = list(cuts)

    @cached_property
    def _run(self) -> Callable[[Any], list[Any]]:
        """Compiled when it is first needed, which is never if all is cached."""
        return inference_function(keras.Model(self.classifier.model.inputs[0], self.cuts))

    def __call__(self, images: Any) -> list[np.ndarray]:
        """`images` (n, S, S, 3), n <= BATCH -> one float32 array (n, ...) per cut."""
        count = len(images)
        whole = pad_batch(np.asarray(images), FEATURE_BATCH)
        return [output.numpy()[:count] for output in self._run(whole)]


@dataclass(frozen=True)
class View:
    """One look at the data: 0 is the undisturbed image, 1..k are augmented ones (training images only)."""

    number: int
    indices: np.ndarray


@dataclass(frozen=True)
class CachedFeatures:
    """Features of one cut, held in memory or mapped from disk: `views[v]` has a row per image of that view."""

    views: tuple[Any, ...]  # arrays or `Parts`
    position: np.ndarray  # data set index -> row of an augmented view

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0, rows: Rows = all_rows
    ) -> Iterator[np.ndarray]:
        for batch in index_batches(indices, batch_size, skip=skip):
            yield self._rows(batch[rows(len(batch))], epoch)

    def _rows(self, indices: np.ndarray, epoch: int | None) -> np.ndarray:
        augmented = len(self.views) - 1
        if epoch is None or augmented == 0:
            return np.asarray(self.views[0][indices], np.float32)
        # Neighbours are at different views in one epoch, and each image meets all its views in `augmented` epochs.
        view = 1 + (indices + epoch) % augmented
        rows = np.empty((len(indices), *self.views[0].shape[1:]), np.float32)
        for number in np.unique(view):
            chosen = view == number
            rows[chosen] = self.views[number][self.position[indices[chosen]]]
        return rows


@dataclass(frozen=True)
class LiveFeatures:
    """No cache: images are read, augmented and sent through the frozen part when they are needed."""

    extractor: FeatureExtractor
    cut: int
    paths: Sequence[str]
    read: ReadImage
    augmenter: Augmenter
    seed: int

    def batches(
        self, indices: np.ndarray, epoch: int | None, batch_size: int, *, skip: int = 0, rows: Rows = all_rows
    ) -> Iterator[np.ndarray]:
        whole = index_batches(indices, batch_size, skip=skip)
        read = read_ahead(self.read, [batch[rows(len(batch))] for batch in whole])
        for number, batch in enumerate(read, start=skip):
            refuse_unreadable(batch, self.paths)
            images: Any = batch.images
            if epoch is not None and self.augmenter:
                images = self._augmented(images, len(whole[number - skip]), rows, (self.seed, epoch, number))
            parts = [
                self.extractor(images[at : at + FEATURE_BATCH])[self.cut] for at in range(0, len(images), FEATURE_BATCH)
            ]
            yield np.concatenate(parts)

    def _augmented(self, images: np.ndarray, count: int, rows: Rows, key: tuple[int, ...]) -> np.ndarray:
        """What is drawn belongs to places in the whole batch of `count`, where other processes have other rows."""
        batch = np.zeros((count, *images.shape[1:]), images.dtype)
        batch[rows(count)] = images
        changed: np.ndarray = self.augmenter(batch, key).numpy()
        return changed[rows(count)]


def refuse_unreadable(batch: Batch, paths: Sequence[str]) -> None:
    """An image that the scan could read and that is now unreadable was changed: say so, train on nothing grey."""
    if batch.problems:
        index, reason = next(iter(batch.problems.items()))
        raise DataError(f"{printable(paths[index])} can no longer be read: {reason}", hint=CHANGED)


def _refuse_changes(dataset: Dataset, indices: np.ndarray) -> None:
    """Nor may an image have been replaced meanwhile: its features would be kept under the hash of the old one."""
    now = scan_images(map(dataset.path, indices), cache=cache_folder() / "scan.sqlite")
    for index, inspection in zip(indices, now, strict=True):
        if inspection.sha256 != dataset.hashes[index]:
            raise DataError(f"{printable(dataset.path(index))} is not the image that it was.", hint=CHANGED)


# ------------------------------------------------------------------------------------------------------- caching


def prepare_features(
    classifier: Classifier,
    dataset: Dataset,
    cuts: Sequence[Any],
    *,
    augment: AugmentConfig,
    seed: int,
    policy: str = "auto",
    numbers: str | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: ProgressCallback | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[FeatureSource]:
    """One source per cut, reading every image once for all of them.

    Of several processes, each computes its share and keeps it in files of its own, for all to read. `policy` is `auto`
    (disk, else memory, else none), `disk`, `memory` or `off`. What is already cached is not computed again. The room
    there is decides not only where features are kept but also, if it is short, which numbers the training sees: `note`
    is told, and a resumed run that gives them back as `numbers` sees the same, or a ResourceError. Raises DataError
    when an image has become unreadable.
    """
    paths = dataset.paths(np.arange(len(dataset)))
    read = image_reader(paths, classifier.transform)
    extractor = FeatureExtractor(classifier, cuts)
    augmenter = Augmenter(augment)
    views = _views(dataset, augment, bool(augmenter))
    wanted = _Wanted(classifier, dataset, cuts, views, augment, seed)
    group, where, dtype = process_group(), "", ""
    with group.together():
        if group.chief:
            remove_leftovers(features_folder())  # what killed runs left half made
            where, dtype = _place(policy, wanted, numbers, say)
    where, dtype = group.tell((where, dtype))
    note(_numbers(where, dtype, augment))
    if where == "off":
        refuse_mixing(group, augment)
        return [LiveFeatures(extractor, number, paths, read, augmenter, seed) for number in range(len(cuts))]

    keys = wanted.keys(dtype)
    arrays: list[list[Any]] = [
        [_open(key, len(view.indices)) if where == "disk" else None for key, view in zip(row, views, strict=True)]
        for row in keys
    ]
    missing = group.tell([number for number in range(len(views)) if any(row[number] is None for row in arrays)])
    total = sum(len(views[number].indices) for number in missing)
    done, started, meter = 0, time.monotonic(), WaitMeter()
    for number in missing:
        view = views[number]
        mine = group.share(len(view.indices), FEATURE_BATCH)
        own = [_path(row[number], group.rank, group.size) for row in keys]
        sinks = [_Sink(path, cut, mine.stop - mine.start, dtype, where) for path, cut in zip(own, cuts, strict=True)]
        stream = _extract(extractor, paths, read, view, mine, augmenter, seed, meter)
        try:
            for _ in range(group.rounds(len(view.indices), FEATURE_BATCH)):
                with group.together():
                    for start, outputs in islice(stream, 1):
                        for sink, output in zip(sinks, outputs, strict=True):
                            sink.array[start : start + len(output)] = output
                        done += len(outputs[0])
                    if progress:
                        progress(min(total, done * group.size), total)
            with group.together():
                _refuse_changes(dataset, view.indices[mine])
                for row, sink in zip(arrays, sinks, strict=True):
                    row[number] = sink.commit()
        finally:
            for sink in sinks:
                sink.discard()
    if total:
        say(_pace(total, time.monotonic() - started, meter.seconds))
    if group.size > 1:
        with group.together():
            arrays = [[_await(key, len(view.indices)) for key, view in zip(row, views, strict=True)] for row in keys]
    position, train = np.full(len(dataset), -1), dataset.indices("train")
    position[train] = np.arange(len(train))
    return [CachedFeatures(tuple(row), position) for row in arrays]


@dataclass(frozen=True)
class FeaturePlan:
    """What `prepare` will do. `files[c][v]` holds view v of cut c, and `images[v]` go through the network for it."""

    place: str  # disk, memory, or off: no cache, every epoch goes through the whole network
    size: int  # bytes, of all files together
    images: tuple[int, ...]
    files: tuple[tuple[Path, ...], ...]  # none unless the place is the disk


def plan_features(
    classifier: Classifier,
    dataset: Dataset,
    cuts: Sequence[Any],
    *,
    augment: AugmentConfig,
    seed: int,
    policy: str = "auto",
) -> FeaturePlan:
    """What `prepare` with the same arguments will do; no image is read."""
    views = _views(dataset, augment, augment.active)
    wanted = _Wanted(classifier, dataset, cuts, views, augment, seed)
    place, dtype = _place(policy, wanted, None, lambda _: None)
    keys = wanted.keys(dtype) if place == "disk" else []
    return FeaturePlan(
        place=place,
        size=0 if place == "off" else wanted.size(dtype),
        images=tuple(len(view.indices) for view in views),
        files=tuple(tuple(_path(key) for key in row) for row in keys),
    )


def _pace(count: int, seconds: float, waited: float) -> str:
    text = f"Features: {count:,} images in {seconds:.1f} s, {count / seconds:.0f} a second"
    if waited > 0.5 * seconds:
        text += f"; {waited / seconds:.0%} of it spent waiting for images: reading is the bottleneck, not the network"
    return text


def _views(dataset: Dataset, augment: AugmentConfig, augmented: bool) -> list[View]:
    everything = View(0, np.arange(len(dataset)))
    if not augmented or augment.views == "live":
        return [everything]
    train = dataset.indices("train")
    return [everything, *(View(number, train) for number in range(1, augment.views + 1))]


def _extract(
    extractor: FeatureExtractor,
    paths: Sequence[str],
    read: ReadImage,
    view: View,
    mine: slice,
    augmenter: Augmenter,
    seed: int,
    meter: WaitMeter,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(place among `mine`, features at every cut) of one batch after another; `mine` are whole batches of the view."""
    start = 0
    images_of = image_batches(read, view.indices[mine], FEATURE_BATCH)
    for number, batch in enumerate(meter.waiting_for(images_of), start=mine.start // FEATURE_BATCH):
        refuse_unreadable(batch, paths)
        images: Any = batch.images
        if view.number:
            images = augmenter(images, (seed, view.number, number)).numpy()
        yield start, extractor(images)
        start += len(batch.indices)


@dataclass(frozen=True)
class _Wanted:
    """The features that a training needs: those of all `views` at all `cuts`."""

    classifier: Classifier
    dataset: Dataset
    cuts: Sequence[Any]
    views: Sequence[View]
    augment: AugmentConfig
    seed: int

    @cached_property
    def _below(self) -> list[dict[str, Any]]:
        return [_facts(self.classifier, cut) for cut in self.cuts]

    def keys(self, dtype: str) -> list[list[str]]:
        """For each cut the names of its views' files."""
        return [
            [_key(below, self.dataset, view, self.augment, self.seed, dtype) for view in self.views]
            for below in self._below
        ]

    def size(self, dtype: str) -> int:
        """Bytes of them all."""
        return sum(_size(cut, view, dtype) for cut in self.cuts for view in self.views)

    def missing(self, dtype: str) -> int:
        """Bytes of those that are not on disk yet."""
        cuts = zip(self.cuts, self.keys(dtype), strict=True)
        pairs = ((cut, view, key) for cut, row in cuts for view, key in zip(self.views, row, strict=True))
        return sum(_size(cut, view, dtype) for cut, view, key in pairs if _open(key, len(view.indices)) is None)


def _size(cut: Any, view: View, dtype: str) -> int:
    return int(np.prod(cut.shape[1:])) * len(view.indices) * np.dtype(dtype).itemsize


def _place(policy: str, wanted: _Wanted, numbers: str | None, say: Callable[[str], None]) -> tuple[str, str]:
    """Where the features go and in which precision: (`disk` | `memory` | `off`, dtype)."""
    live = wanted.augment.views == "live" and wanted.augment.active
    places = [] if policy == "off" or live else ["disk", "memory"] if policy == "auto" else [policy]
    if process_group().size > 1 and "memory" in places:  # nobody has all of it
        places.remove("memory")
        if not places:
            raise ConfigError("cache=memory is for one process: others could not read it.", hint="Use cache=disk.")
    room = {
        "disk": int(shutil.disk_usage(features_folder()).free * DISK_SHARE),
        "memory": int(available_memory() * MEMORY_SHARE),
    }
    for place in places:
        for dtype in ("float32", "float16"):
            need = wanted.missing(dtype) if place == "disk" else wanted.size(dtype)
            if need <= room[place] and numbers in (None, dtype):
                note = "" if dtype == "float32" else " (half precision, to fit)"
                say(f"Features: {format_bytes(wanted.size(dtype))} on {place}{note}")
                return place, dtype
    if numbers not in (None, _numbers("off", "float32", wanted.augment)):
        raise ResourceError(
            f"The run began with features kept in {numbers} ({format_bytes(wanted.size(numbers))}) and can only go on "
            f"so, but with cache={policy} there is no room for them now.",
            hint="Free some disk space or memory, or choose another place: cache=disk, cache=memory.",
        )
    if numbers == "live" and places:
        say("The run began without keeping features: every epoch goes through the whole network.")
    elif places:
        say(
            f"Features need {format_bytes(wanted.size('float32'))}, more than the "
            f"{format_bytes(max(room.values()))} that may be used here: "
            "every epoch goes through the whole network instead."
        )
    return "off", "float32"


def _numbers(where: str, dtype: str, augment: AugmentConfig) -> str:
    """What decides the bits: kept features in this precision, or images that are augmented anew in each epoch.

    Without augmentation it is all one whether they are kept in float32 or computed anew.
    """
    return "live" if where == "off" and augment.active else dtype


def available_memory() -> int:
    """Bytes of memory that can be used without swapping."""
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return 4 * 2**30


def features_folder() -> Path:
    folder = cache_folder() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _facts(classifier: Classifier, cut: Any) -> dict[str, Any]:
    """All of the network that decides what comes out at `cut`."""
    below = keras.Model(classifier.model.inputs[0], cut)
    return {
        "weights": sha256_of(np.ascontiguousarray(weight).data for weight in below.get_weights()),
        "backbone": classifier.spec.backbone,
        "cut": [layer.__class__.__name__ for layer in below.layers],
        "shape": list(cut.shape[1:]),
        "transform": repr(classifier.transform),
    }


def _key(below: dict[str, Any], dataset: Dataset, view: View, augment: AugmentConfig, seed: int, dtype: str) -> str:
    facts = {
        **below,
        "format": FORMAT,
        "pictures": sha256_of(dataset.hashes[index].encode() for index in view.indices),
        "augment": [augment.model_dump(mode="json", exclude={"preset", "views", "mixup", "cutmix"}), seed, view.number]
        if view.number
        else None,
        "dtype": dtype,
        "precision": dtype_policy(),
        "libraries": library_versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


class ConcatenatedArrays:
    """Arrays (n, ...) that follow each other, read as one: each was computed by another process."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        found = np.empty((len(rows), *self.shape[1:]), self.arrays[0].dtype)
        for number in np.unique(owner):
            chosen = owner == number
            found[chosen] = self.arrays[number][rows[chosen] - self.starts[number]]
        return found


def _open(key: str, count: int) -> Any:
    """The `count` features of `key`, mapped from disk, in one file or in parts; None where they are not all there."""
    whole = _load(_path(key))
    if whole is not None:
        return whole
    divisions = {int(path.stem.rpartition("-")[2]) for path in features_folder().glob(f"{key}.*-of-*.npy")}
    return next((parts for number in sorted(divisions) if (parts := _open_parts(key, count, number))), None)


def _open_parts(key: str, count: int, number: int) -> ConcatenatedArrays | None:
    found = [array for part in range(number) if (array := _load(_path(key, part, number))) is not None]
    return ConcatenatedArrays(found) if sum(map(len, found)) == count else None


def _await(key: str, count: int) -> Any:
    """The features that all processes have just finished; a network drive may take a moment to show them."""
    for _ in range(SHOWING):
        if (found := _open(key, count)) is not None:
            return found
        time.sleep(1.0)
    raise ResourceError(
        f"{features_folder()} does not show the features that the other processes have kept.",
        hint="FINETUNE_CACHE must name a folder that all machines share.",
    )


def _load(path: Path) -> np.ndarray | None:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, or cut short by something other than us
        return None
    return array


def _path(key: str, part: int = 0, parts: int = 1) -> Path:
    return features_folder() / (f"{key}.npy" if parts == 1 else f"{key}.{part}-of-{parts}.npy")


def _reserve(path: Path) -> None:
    """Takes the disk space of the file now: writing to a map that finds the disk full kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class _Sink:
    """Where an extraction writes: an array in memory, or a file that takes its name when it is complete."""

    def __init__(self, path: Path, cut: Any, count: int, dtype: str, where: str) -> None:
        shape = (count, *cut.shape[1:])
        self._path = path
        self._temporary = temporary_name(path) if where == "disk" and count else None
        if self._temporary:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            require_space(self._temporary.parent, size)
            with explain_os_errors(self._temporary, size):
                self.array: Any = np.lib.format.open_memmap(self._temporary, mode="w+", dtype=dtype, shape=shape)
                _reserve(self._temporary)
        else:
            self.array = np.empty(shape, dtype)

    def commit(self) -> Any:
        if self._temporary is None:
            return self.array
        self.array.flush()
        atomic_write(self._path, self._temporary.replace)
        self._temporary = None
        return _load(self._path)

    def discard(self) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

"""The feature cache: what comes out of the frozen part of the network is computed once and kept.

    plan = plan_features(request, policy="auto")
    for view in plan.missing_views():
        for done in compute_features(plan, view): ...
    sources = open_features(plan)                      one FeatureSource for each cut

`prepare_features` does all of this. Each image is read once for all cuts, and what is cached is not computed again.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

import numpy as np

from finetune.data import WaitMeter, image_batches
from finetune.models.feature_files import FeatureWriter, features_folder, part_path
from finetune.models.feature_plan import FeaturePlan, FeatureRequest, plan_features
from finetune.models.features import (
    CHANGED_HINT,
    FEATURE_BATCH,
    CachedFeatures,
    FeatureSource,
    LiveFeatures,
    refuse_unreadable,
)
from finetune.utils import DataError, ProgressCallback, ResourceError, printable, remove_leftovers


def prepare_features(
    request: FeatureRequest,
    *,
    policy: str = "auto",
    progress: ProgressCallback = lambda done, total: None,
    say: Callable[[str], None] = lambda message: None,
) -> list[FeatureSource]:
    """Plan, compute and open the features of `request`: one source for each cut.

    `policy` is `auto`, `disk`, `memory` or `off` (see `plan_features`). Raises DataError when an image has changed
    since it was checked, ResourceError when the disk is full.
    """
    remove_feature_leftovers()
    plan = plan_features(request, policy=policy)
    if plan.message:
        say(plan.message)
    compute_missing_features(plan, plan.missing_views(), progress=progress, say=say)
    return open_features(plan)


def compute_missing_features(
    plan: FeaturePlan,
    missing: Sequence[int],
    part: int = 0,
    parts: int = 1,
    *,
    batch_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: ProgressCallback,
    say: Callable[[str], None],
) -> None:
    """Compute part number `part` of `parts` of the features of the views `missing`, and say how fast that was.

    Every batch is computed in a `batch_context()`; each part enters it equally often, however many batches it has.
    `progress` gets an estimate for all parts. Raises what `compute_features` raises.
    """
    total = sum(plan.images[view] for view in missing)
    computed, started, meter = 0, time.monotonic(), WaitMeter()
    for view in missing:
        done = 0
        rounds = -(-plan.images[view] // (FEATURE_BATCH * parts))  # batches of the part that has most
        with closing(compute_features(plan, view, part, parts, meter=meter)) as batches:
            for _ in range(rounds + 1):  # the last round completes the files
                with batch_context():
                    done = next(batches, done)
                    progress(min(total, computed + done * parts), total)
        computed += plan.images[view]
    if total:
        say(describe_pace(total, time.monotonic() - started, meter.seconds))


def remove_feature_leftovers() -> None:
    """Remove the incomplete files of killed runs."""
    remove_leftovers(features_folder())


def compute_features(
    plan: FeaturePlan, view: int, part: int = 0, parts: int = 1, *, meter: WaitMeter | None = None
) -> Generator[int, None, None]:
    """Compute the features of `view` at all cuts, and yield after each batch how many images are done.

    With `parts` > 1 only part number `part` (from 0) of the images is computed, and kept in a file of its own. The
    parts are whole batches, so that each image has the same place in a batch as without parts.
    Files take their names at the end: a loop must not be left early. `meter` counts the seconds of waiting for images.
    Raises DataError when an image has changed since it was checked, ResourceError when the disk is full.
    """
    request, indices = plan.request, plan.request.views[view]
    batch_count = -(-len(indices) // FEATURE_BATCH)
    first, last = part * batch_count // parts, (part + 1) * batch_count // parts
    indices = indices[first * FEATURE_BATCH : last * FEATURE_BATCH]
    if len(indices) == 0:
        return
    writers: list[FeatureWriter] = []
    try:
        for number, cut in enumerate(request.cuts):
            path = part_path(plan.paths[number][view], part, parts) if plan.place == "disk" else None
            writers.append(FeatureWriter(path, (len(indices), *cut.shape[1:]), plan.dtype))
        images = image_batches(request.read, indices, FEATURE_BATCH)
        done = 0
        for number, batch in enumerate((meter or WaitMeter()).waiting_for(images), start=first):
            refuse_unreadable(batch, request.paths)
            inputs = batch.images
            if view:
                inputs = request.augmenter(inputs, (request.seed, view, number)).numpy()
            for writer, output in zip(writers, request.extractor(inputs), strict=True):
                _refuse_too_large(output, plan.dtype)
                writer.array[done : done + len(output)] = output
            done += len(batch.indices)
            yield done
        _refuse_changed_images(request, indices)
        for number, writer in enumerate(writers):
            writer.commit()
            if plan.place == "memory":
                plan.memory[number, view] = writer.array
    finally:
        for writer in writers:
            writer.discard()


def open_features(plan: FeaturePlan) -> list[FeatureSource]:
    """One source for each cut. Raises ResourceError if cached files have disappeared since they were computed."""
    request = plan.request
    if plan.place == "off":
        return [
            LiveFeatures(request.extractor, cut, request.paths, request.read, request.augmenter, request.seed)
            for cut in range(len(request.cuts))
        ]
    train = request.dataset.indices("train")
    position = np.full(len(request.dataset), -1)
    position[train] = np.arange(len(train))
    sources: list[FeatureSource] = []
    for cut in range(len(request.cuts)):
        arrays = tuple(plan.array(cut, view) for view in range(len(request.views)))
        if any(array is None for array in arrays):
            raise ResourceError(f"Cached features are missing in {features_folder()}.", hint="Start again.")
        sources.append(CachedFeatures(arrays, position))
    return sources


def describe_pace(count: int, seconds: float, waited: float) -> str:
    """A message: `count` images in `seconds`, of which `waited` were spent waiting for images to be read."""
    text = f"Features: {count:,} images in {seconds:.1f} s, {count / seconds:.0f} a second"
    if waited > 0.5 * seconds:
        text += f"; {waited / seconds:.0%} of it spent waiting for images: reading is the bottleneck, not the network"
    return text


def _refuse_too_large(features: np.ndarray, dtype: str) -> None:
    """ResourceError for features that would become infinite in half precision."""
    largest = float(np.abs(features).max())
    if np.isfinite(largest) and largest > float(np.finfo(dtype).max):
        raise ResourceError(
            f"Features of this network reach {largest:,.0f}, too much for the half precision in which they would fit.",
            hint="Free some disk space or memory for full precision, or use cache=off.",
        )


def _refuse_changed_images(request: FeatureRequest, indices: np.ndarray) -> None:
    """DataError if a file was replaced: its features would be kept under the hash of the old image."""
    dataset = request.dataset
    inspections = dataset.scan(indices)
    for index, inspection in zip(indices, inspections, strict=True):
        if inspection.sha256 != dataset.hashes[index]:
            raise DataError(
                f"{printable(dataset.path(index))} is not the image that was checked at the start.", hint=CHANGED_HINT
            )

"""The feature cache of several processes that train together.

Rank 0 decides where the features are kept and in which precision. Each process computes its part of the images and
writes it to files of its own, in a folder that all can read; after each batch all of them meet, so that they stop
together. Then each waits until it sees the files of the others.
"""

import time
from collections.abc import Callable

from finetune.models import (
    FeaturePlan,
    FeatureRequest,
    FeatureSource,
    compute_missing_features,
    features_folder,
    open_features,
    plan_features,
    remove_feature_leftovers,
)
from finetune.training.distributed.group import ProcessGroup
from finetune.utils import ConfigError, ProgressCallback, ResourceError

VISIBLE_SECONDS = 90  # that a network drive may take to show a new file to another machine


def prepare_shared_features(
    group: ProcessGroup,
    request: FeatureRequest,
    *,
    policy: str,
    numerics: str | None,
    note: Callable[[str], None],
    progress: ProgressCallback,
    say: Callable[[str], None],
) -> list[FeatureSource]:
    """One feature source for each cut of `request`, computed by all processes of `group`.

    `numerics` is what an interrupted run has noted; `note` receives what this run must note before it begins (see
    `plan_features`). Raises what `prepare_features` raises, and ConfigError for what several processes cannot do.
    """
    plan = _plan(group, request, policy, numerics, say)
    note(plan.numerics)
    if plan.place == "off":
        augment = request.augment
        if group.world_size > 1 and (augment.mixup or augment.cutmix):
            raise ConfigError(
                f"augment.mixup and cutmix on {group.describe()} need cached features: "
                "an image's partner may be with another process.",
                hint="Use augment.views=4 and cache=disk, or mixup=0 and cutmix=0.",
            )
    missing = group.broadcast(plan.missing_views())
    compute_missing_features(
        plan, missing, group.rank, group.world_size, batch_context=group.synchronized, progress=progress, say=say
    )
    with group.synchronized():
        deadline = time.monotonic() + VISIBLE_SECONDS
        while group.world_size > 1 and plan.missing_views():
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{features_folder()} does not show the features that the other processes have kept.",
                    hint="FINETUNE_CACHE must name a folder that all machines can reach.",
                )
            time.sleep(0.5)
        return open_features(plan)


def _plan(
    group: ProcessGroup, request: FeatureRequest, policy: str, numerics: str | None, say: Callable[[str], None]
) -> FeaturePlan:
    """The plan of rank 0, on every process."""
    if group.world_size > 1 and policy == "memory":
        raise ConfigError("cache=memory is for one process: others could not read it.", hint="Use cache=disk.")
    if group.world_size > 1 and policy == "auto":
        policy = "disk"
    place, dtype = "", ""
    plan = None
    with group.synchronized():
        if group.rank == 0:
            remove_feature_leftovers()
            plan = plan_features(request, policy=policy, numerics=numerics)
            place, dtype = plan.place, plan.dtype
            if plan.message:
                say(plan.message)
    place, dtype = group.broadcast((place, dtype))
    return plan or FeaturePlan(request, place, dtype)  # type: ignore[arg-type]

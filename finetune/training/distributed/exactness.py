"""What several devices cannot train with the same result as one device, and is therefore refused."""

from collections.abc import Sequence
from typing import Any

from finetune.config import AugmentConfig, Config
from finetune.models import Classifier
from finetune.training.distributed.group import ProcessGroup, process_group
from finetune.training.phases import Phase, all_layers, freeze_below
from finetune.utils import ConfigError, keras


def refuse_undistributable(phases: Sequence[Phase], classifier: Classifier, config: Config, images: int) -> None:
    """ConfigError if several devices cannot train any of `phases` as one would; `images`: to train on."""
    group = process_group()
    if group.is_single_device:
        return
    for phase in phases:
        above = freeze_below(classifier, phase.cut, batch_norm=config.model.batch_norm)
        refuse_if_not_exact(group, list(all_layers(above)), phase.settings.batch_size, images)


def refuse_if_not_exact(group: ProcessGroup, layers: Sequence[Any], batch_size: int, images: int) -> None:
    """ConfigError for layers above the cut that would not give the same result as on one device, with the reason."""
    if group.is_single_device:
        return
    where = group.describe()
    training_norms = [layer for layer in layers if _is_training_norm(layer)]
    if training_norms and group.num_replicas > group.world_size:
        raise ConfigError(
            f"model.batch_norm=train cannot be used on {where}: the devices of a process share its statistics.",
            hint="Use batch_norm=frozen or recalibrate, or one process per device: --nproc.",
        )
    if training_norms and 0 < images % batch_size < group.num_replicas:
        raise ConfigError(
            f"model.batch_norm=train on {where}: the last batch of an epoch has {images % batch_size} images, and "
            "a device without any has no statistics.",
            hint=f"Choose another batch_size than {batch_size}.",
        )
    for layer in layers:
        if hasattr(layer, "seed_generator") and type(layer) is not keras.layers.Dropout:
            raise ConfigError(
                f"{type(layer).__name__} ({layer.name}) draws random numbers per batch, which cannot be the same "
                f"on {where} as on one.",
                hint="Use another backbone, or train on one device.",
            )


def _is_training_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization) and bool(layer.trainable)


def refuse_mixing(group: ProcessGroup, augment: AugmentConfig) -> None:
    """ConfigError for mixing without cached features: every process would have to read every image."""
    if group.world_size > 1 and (augment.mixup or augment.cutmix):
        raise ConfigError(
            f"augment.mixup and cutmix on {group.describe()} need cached features: "
            "an image's partner may be with another process.",
            hint="Use augment.views=4 and cache=disk, or mixup=0 and cutmix=0.",
        )

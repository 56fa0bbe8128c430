"""The phases of a training, and what each of them trains.

    head        the backbone is frozen; only the new head learns
    fine_tune   the deepest blocks learn too, gently

    phases = plan_phases(config, classifier)
    above = freeze_below(classifier, phases[1].cut, batch_norm="frozen")   # from the cut to the scores
    frozen = FrozenWeights(classifier, above, batch_norm="frozen")
    frozen.audit("fine_tune")                                              # not a bit of the rest has changed

What lies below the cut of a phase is constant, so that its output is computed once (`models.features`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.backbones import select_blocks
from finetune.config import Config, PhaseConfig
from finetune.utils import FinetuneError, keras, sha256_of

if TYPE_CHECKING:
    from finetune.models import Classifier


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one answer to "what is trainable": everything above the tensor `cut`."""

    index: int
    name: str
    settings: PhaseConfig
    cut: Any
    blocks: tuple[str, ...]  # names of the unfrozen blocks


def plan_phases(config: Config, classifier: "Classifier") -> list[Phase]:
    """The phases that `config` asks for. Raises ConfigError when `unfreeze` names nothing in this backbone."""
    phases = [Phase(0, "head", config.head, classifier.head_input, ())]
    blocks = classifier.blocks()
    for number, settings in enumerate(config.fine_tune, start=1):
        unfrozen = select_blocks(blocks, settings.unfreeze)
        name = "fine_tune" if len(config.fine_tune) == 1 else f"fine_tune_{number}"
        phases.append(Phase(number, name, settings, unfrozen[0].input, tuple(block.name for block in unfrozen)))
    return phases


def freeze_below(classifier: "Classifier", cut: Any, *, batch_norm: str) -> Any:
    """Make the layers above `cut` trainable and no others; return the model above the cut.

    BatchNorm above the cut stays frozen unless `batch_norm` is `train`: unfrozen, a few hundred images overwrite
    statistics gathered from a million (Keras' transfer-learning guide; DESIGN, decision 2).
    """
    above = keras.Model(cut, classifier.model.output)
    layers_above = {id(layer) for layer in above.layers}
    for layer in classifier.model.layers:
        layer.trainable = id(layer) in layers_above and layer.name != "preprocessing"
    if batch_norm != "train":
        for layer in batch_norm_layers(above):
            layer.trainable = False
    return above


def all_layers(model: Any) -> Iterator[Any]:
    """The layers of `model`, and those of the models in it."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def batch_norm_layers(model: Any) -> list[Any]:
    """The BatchNorm layers among `all_layers`."""
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


class FrozenWeights:
    """Everything that a phase must not change: the weights below its cut, and frozen BatchNorm above it."""

    def __init__(self, classifier: "Classifier", above: Any, *, batch_norm: str) -> None:
        may_change = {id(variable) for variable in above.trainable_variables}
        for layer in batch_norm_layers(above):
            if layer.trainable or batch_norm == "recalibrate":
                may_change |= {id(layer.moving_mean), id(layer.moving_variance)}
        self._weights = [weight for weight in classifier.model.weights if id(weight) not in may_change]
        self._digest = self._compute_digest()

    def audit(self, phase: str) -> None:
        """Raise FinetuneError if a frozen weight or BatchNorm statistic has changed by a single bit."""
        if self._compute_digest() != self._digest:
            raise FinetuneError(
                f"{phase}: weights that were frozen have changed. This is a bug in finetune or in Keras "
                f"{keras.__version__}; the result must not be trusted.",
                hint="Please report it, with the file config.yaml of the run.",
            )

    def _compute_digest(self) -> str:
        return sha256_of(np.ascontiguousarray(weight.numpy()).data for weight in self._weights)

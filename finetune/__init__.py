"""Transfer learning for image classification, from one YAML file.

import finetune

run = finetune.train("configs/flowers.yaml", "head.epochs=5")      # or a mapping with the same keys
finetune.load("runs/flowers-1").predict(["rose.jpg"])
finetune.load("resnet50").predict(["dog.jpg"])                     # 1000 ImageNet classes, no training
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api import check, evaluate, load, train

__version__: str
__all__ = ["check", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    """TensorFlow takes seconds to import, so the public names come when they are first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("finetune")
    if name not in __all__:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    from finetune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

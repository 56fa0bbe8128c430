"""Transfer learning for image classification, from one YAML file.

import finetune

run = finetune.train("configs/flowers.yaml", "head.epochs=5")      # or a mapping with the same keys
finetune.load("runs/flowers-1").predict(["rose.jpg"])
finetune.load("resnet50").predict(["dog.jpg"])                     # 1000 ImageNet classes, no training
"""

from typing import Any

import lazy_loader

# The functions of `api` are imported when they are first used: TensorFlow takes seconds.
_load_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("finetune")
    return _load_public_name(name)

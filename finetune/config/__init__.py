"""The YAML file: its keys, its messages, and what it leaves to `recipe: auto`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

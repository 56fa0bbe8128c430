"""Pretrained networks: the registry, their weights, their graphs and where these may be cut."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

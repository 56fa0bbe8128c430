"""The classifier: preprocessing, backbone, head and class names in one Keras model; and features at a cut."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What has nothing to do with images: errors, atomic files, signals, the terminal, the device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

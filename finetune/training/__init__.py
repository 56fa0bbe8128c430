"""Phases, the optimizer step and the loop; and what is built on them: a run, its check, a sweep."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

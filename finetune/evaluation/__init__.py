"""How good a classifier is, and why: metrics with intervals, report, figures, explanations, comparisons."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

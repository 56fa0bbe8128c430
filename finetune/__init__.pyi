from .api import check as check, compare as compare, evaluate as evaluate, load as load, train as train
from .backbones import register_backbone as register_backbone

__version__: str
__all__: list[str]

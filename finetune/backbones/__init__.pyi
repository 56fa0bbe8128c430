from .blocks import (
    Block as Block,
    BlockFacts as BlockFacts,
    blocks_of as blocks_of,
    find_blocks as find_blocks,
    select_blocks as select_blocks,
)
from .h5_file import check_h5 as check_h5, shape_counts as shape_counts
from .networks.building import (
    build_model as build_model,
    classification_head as classification_head,
    feature_map_of as feature_map_of,
    image_input as image_input,
)
from .networks.loading import load_weights as load_weights
from .registry import (
    BACKBONES as BACKBONES,
    SCALINGS as SCALINGS,
    Backbone as Backbone,
    WeightFile as WeightFile,
    find_backbone as find_backbone,
    imagenet_classes as imagenet_classes,
    register_backbone as register_backbone,
)
from .weights import (
    Weights as Weights,
    fetch_weights as fetch_weights,
    list_weights as list_weights,
    resolve_weights as resolve_weights,
    verify_weights as verify_weights,
)
from .wordnet import (
    Level as Level,
    levels_sentence as levels_sentence,
    require_imagenet_ids as require_imagenet_ids,
    wordnet_levels as wordnet_levels,
)

"""Where a network may be cut: the blocks of a backbone, computed from its graph.

    blocks = find_blocks(backbone)              stem first
    select_blocks(blocks, "3 blocks")           those that `unfreeze` names
    blocks_of("resnet50")                       the facts about them, without building the network (`blocks.csv`)

A *cut point* is a tensor through which all data flows: every path from the image to the output passes through it.
Models made on both sides of a cut consist of layers of the whole and compose to it exactly:

    below = keras.Model(model.input, block.input)       constant while it is frozen
    above = keras.Model(block.input, model.output)      what a phase trains

Inside a residual block there is no such tensor, so a block is never halved. In plain chains (VGG, MobileNet) there
are too many; there a rule keeps a depthwise convolution with the pointwise ones around it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from finetune.backbones.registry import find_backbone, read_table
from finetune.utils import ConfigError, did_you_mean, keras


@dataclass(frozen=True)
class Block:
    """The layers between two cut points, in the order in which data flows; `input` is the tensor that enters."""

    input: Any
    layers: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The name of its first layer with weights, by which people recognise a block in `summary()`."""
        for layer in self.layers:
            if getattr(layer, "weights", None) and layer.name != "preprocessing":
                return str(layer.name)
        return str(self.layers[0].name)

    @property
    def parameters(self) -> int:
        """The number of weights in it, trainable or not."""
        # (MobileNetV3 and ConvNeXt also have bare operations such as `x + 3`, which have no weights)
        return sum(layer.count_params() for layer in self.layers if isinstance(layer, keras.Layer))


def find_blocks(backbone: Any) -> list[Block]:
    """The blocks of `backbone` (a `keras.Model` from image to feature map), stem first.

    A block begins at a layer with a kernel once the block before it is complete; a projection only ends one.
    """
    groups: list[tuple[Any, list[Any]]] = []
    for entering, layers in _segments(backbone):
        kernels = [layer for layer in layers if _has_kernel(layer)]
        # A lone 1x1 convolution to no more channels is how an inverted residual (MobileNetV2, EfficientNet) ends.
        pointwise = len(kernels) == 1 and set(_kernel_size(kernels[0])) == {1}
        projects = pointwise and kernels[0].output.shape[-1] <= kernels[0].input.shape[-1]
        begins = bool(kernels) and not projects
        if not groups or (begins and _is_complete(groups[-1][1])):
            groups.append((entering, []))
        groups[-1][1].extend(layers)
    if len(groups) > 1 and not _is_complete(groups[-1][1]):  # a closing 1x1 convolution belongs to the last block
        _, tail = groups.pop()
        groups[-1][1].extend(tail)
    # An activation layer may be used many times (MobileNetV3 has one for all), and is listed once.
    return [Block(entering, tuple(dict.fromkeys(layers))) for entering, layers in groups]


def _segments(model: Any) -> list[tuple[Any, list[Any]]]:
    """`model` from input to output as pairs: the tensor at a cut point, and the layers up to the next cut point.

    One sweep in topological order: behind a layer there is a cut point if no earlier tensor is used later.
    """
    by_depth = model._nodes_by_depth  # the only public way (get_config) loses the tensors
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    last_use: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = index
    segments: list[tuple[Any, list[Any]]] = []
    entering, layers, horizon = model.inputs[0], [], -1
    for index, node in enumerate(nodes):
        if not node.input_tensors:  # the Input itself
            continue
        layers.append(node.operation)
        output = node.output_tensors[0]
        if horizon <= index and last_use[id(entering)] <= index:
            segments.append((entering, layers))
            entering, layers = output, []
        horizon = max(horizon, last_use.get(id(output), index))
    return segments


def _is_complete(layers: list[Any]) -> bool:
    """Whether they have a kernel larger than 1x1, and no depthwise convolution without the pointwise one after it."""
    kernels = [layer for layer in layers if _has_kernel(layer)]
    spatial = any(max(_kernel_size(layer), default=1) > 1 for layer in kernels)
    merged = bool(layers) and isinstance(layers[-1], keras.layers.Add | keras.layers.Concatenate)
    return spatial and (merged or not isinstance(kernels[-1], keras.layers.DepthwiseConv2D))


def _kernel_size(layer: Any) -> tuple[int, ...]:
    """The sides of its kernel, none for a dense layer. A layer of the user's own may have them as one number."""
    size = getattr(layer, "kernel_size", ())
    return (size,) if isinstance(size, int) else tuple(size)


def _has_kernel(layer: Any) -> bool:
    if layer.name == "preprocessing":
        return False
    if isinstance(layer, keras.Model):  # ConvNeXt keeps its stem in a Sequential
        return any(_has_kernel(inner) for inner in layer.layers)
    return hasattr(layer, "kernel_size") or isinstance(layer, keras.layers.Dense)


def select_blocks(blocks: list[Block], unfreeze: int | float | str) -> list[Block]:
    """The deepest of `blocks`: `3` of them, `0.25` (a fraction), those from a layer's name on, or `"all"`.

    ConfigError for a name that no block has, with the nearest ones.
    """
    if unfreeze == "all":
        return blocks
    if isinstance(unfreeze, int):
        return blocks[-unfreeze:]
    if isinstance(unfreeze, float):
        return blocks[-max(1, round(unfreeze * len(blocks))) :]
    names = [layer.name for block in blocks for layer in block.layers]
    if unfreeze not in names:
        raise ConfigError(
            f"unfreeze: the backbone has no layer {unfreeze!r}.{did_you_mean(unfreeze, names)}",
            hint="Give a number of blocks (3 blocks), a fraction (0.25), a layer name or all; "
            f"blocks begin at {', '.join(block.name for block in blocks)}.",
        )
    first = next(index for index, block in enumerate(blocks) if any(layer.name == unfreeze for layer in block.layers))
    return blocks[first:]


# ------------------------------------------------------------------------------------------ facts, without a network


class BlockFacts(NamedTuple):
    """What is known of a block without building its network, as `blocks_of` returns it."""

    name: str  # of its first layer with weights, as `unfreeze` takes it
    layers: int
    parameters: int
    height: int  # of its output, at the native image size
    width: int
    channels: int


def blocks_of(name: str) -> tuple[BlockFacts, ...]:
    """The blocks of the backbone called `name`, from the image to the feature map, without the head.

    Those of a network that was added by `register_backbone` are measured on its graph. ConfigError for an unknown name.
    """
    row = find_backbone(name)
    if row.name in _published_blocks():
        return _published_blocks()[row.name]
    with keras.StatelessScope(initialize_variables=False):  # the graph alone: no memory for weights
        return measure_blocks(row.build(include_top=False, input_shape=(row.size, row.size, 3)))


@cache
def _published_blocks() -> dict[str, tuple[BlockFacts, ...]]:
    blocks: dict[str, tuple[BlockFacts, ...]] = {}
    for row in read_table("blocks.csv"):
        sizes = (int(row[key]) for key in ("layers", "parameters", "height", "width", "channels"))
        blocks[row["backbone"]] = (*blocks.get(row["backbone"], ()), BlockFacts(row["name"], *sizes))
    return blocks


def measure_blocks(backbone: Any) -> tuple[BlockFacts, ...]:
    """The facts of the blocks of a `keras.Model` from image (N, H, W, 3) to feature map."""
    facts = []
    for block in find_blocks(backbone):
        height, width, channels = block.layers[-1].output.shape[1:]
        facts.append(BlockFacts(block.name, len(block.layers), block.parameters, height, width, channels))
    return tuple(facts)

"""What the 1000 ImageNet classes have in common: poodles are dogs, dogs are animals.

    wordnet_levels(probabilities, ids, names)     # standard poodle 0.61 < poodle 0.87 < dog 0.99 < animal 1.00

A network that cannot decide between three poodles is sure of the dog. The probability of a word is the sum of those of
all classes below it in WordNet; going up, it grows until one can be sure. `wordnet.csv` has the classes and all words
above them in WordNet 3.0 (Miller 1995; its licence is in `wordnet_license.txt`), whose numbers are the ids of ImageNet.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.backbones.registry import read_table
from finetune.utils import UsageError

GAIN = 0.01  # a word that adds less than that to the one below says nothing new
# Words that say nothing about an image, whichever class it has.
EMPTY: Mapping[str, str] = MappingProxyType(
    {
        "n00001740": "entity", "n00001930": "physical entity", "n00002137": "abstraction", "n00002684": "object",
        "n00003553": "whole", "n00004258": "living thing", "n00004475": "organism", "n00007347": "causal agent",
        "n00019128": "natural object", "n00019613": "substance", "n00020090": "substance", "n00020827": "matter",
        "n00024264": "attribute", "n00027167": "location", "n00027807": "shape", "n00033020": "communication",
        "n15046900": "solid", "n08620061": "point",
    }
)  # fmt: skip


class Synset(NamedTuple):
    """A word of WordNet ("n02084071", "dog") and the ids of those above it, the most usual first."""

    id: str
    name: str
    parents: tuple[str, ...]


class Level(NamedTuple):
    """A word of WordNet, and the probability that it describes the image."""

    name: str
    id: str
    probability: float


@cache
def load_synsets() -> Mapping[str, Synset]:
    """All words of the table, by id."""
    synsets = {}
    for row in read_table("wordnet.csv"):
        synsets[row["id"]] = Synset(row["id"], row["name"], tuple(row.get("parents", "").split()))
    return MappingProxyType(synsets)


@cache
def ancestors(synset: str) -> frozenset[str]:
    """The ids of all words above `synset`, by any path, and its own."""
    return frozenset((synset,)).union(*(ancestors(parent) for parent in load_synsets()[synset].parents))


def lineage(synset: str) -> tuple[Synset, ...]:
    """From `synset` up the most usual path, to the last word that means something ("animal", "artifact")."""
    line = [load_synsets()[synset]]
    while line[-1].parents and line[-1].parents[0] not in EMPTY:
        line.append(load_synsets()[line[-1].parents[0]])
    return tuple(line)


def roll_up(probabilities: npt.NDArray[np.floating], ids: Sequence[str]) -> dict[str, float]:
    """The probability of every word above the classes `ids`, from those of the classes, (C,): id -> 0..1.

    UsageError where the classes are not those of ImageNet.
    """
    require_imagenet_ids(ids)
    sums = dict.fromkeys(load_synsets(), 0.0)
    for synset, probability in zip(ids, probabilities.tolist(), strict=True):
        for above in ancestors(synset):
            sums[above] += probability
    return {synset: min(total, 1.0) for synset, total in sums.items() if total > 0}


def require_imagenet_ids(ids: Sequence[str]) -> None:
    """UsageError where some class has no place in the table."""
    if not all(synset in load_synsets() for synset in ids):
        raise UsageError(
            "only ImageNet classes have a place in WordNet, and this model has classes of its own.",
            hint="Leave out --level, or use an ImageNet model: finetune predict IMAGE --level",
        )


def wordnet_levels(
    probabilities: npt.NDArray[np.floating], ids: Sequence[str], names: Sequence[str]
) -> tuple[Level, ...]:
    """From the most probable class up: each word that gains at least `GAIN`, and the last that means something.

    `probabilities` (C,) belong to classes with these `ids` and `names`. UsageError as in `roll_up`.
    """
    sums = roll_up(probabilities, ids)
    best = int(probabilities.argmax())
    line = lineage(ids[best])
    levels = [Level(names[best], ids[best], float(probabilities[best]))]
    for synset in line[1:]:
        if sums[synset.id] - levels[-1].probability >= GAIN or synset is line[-1]:
            levels.append(Level(synset.name, synset.id, sums[synset.id]))
    return tuple(levels)


def levels_sentence(levels: Sequence[Level]) -> str:
    """`standard poodle 0.61 < poodle 0.87 < dog 0.99 < animal 1.00`"""
    return " < ".join(f"{level.name} {level.probability:.2f}" for level in levels)

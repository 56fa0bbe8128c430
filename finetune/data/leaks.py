"""Leaks: one image in two splits, which makes a test too easy, or with two labels, one of which is wrong.

Here by equal content; `duplicates` finds images that only look the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from finetune.data.dataset import Dataset
from finetune.data.problems import Problem, format_problems, problems_error
from finetune.data.split_names import SPLITS
from finetune.utils import printable


def handle_leaks(dataset: Dataset, leaks: Literal["warn", "error", "drop"]) -> Dataset:
    """`dataset` with a warning that names the leaks, or without them (`drop`); DataError with `error`.

    Of an image in two splits the copy in the later split stays, so that the test is kept whole. Of an image with two
    labels no copy stays, because nobody knows which label is correct.
    """
    leaking: dict[int, str] = {}
    examples: list[Problem] = []
    for group in _same_content(dataset.hashes):
        labels, splits = dataset.labels[group], dataset.splits[group]
        if (labels != labels[0]).any():
            dropped = group
        else:
            dropped = [index for index in group if dataset.splits[index] < splits.max()]
        if dropped:
            copies = [
                f"{printable(dataset.names[index])} ({SPLITS[dataset.splits[index]]}, {dataset.text(index)})"
                for index in group[:3]
            ]
            examples.append((" = ".join(copies), ""))
        for index in dropped:
            other = group[-1] if group[-1] != index else group[-2]
            leaking[index] = f"the same image as {printable(dataset.names[other])}"
    if not examples:
        return dataset
    images = "1 image is" if len(examples) == 1 else f"{len(examples):,} images are"
    what = f"{dataset.name}: {images} in two splits or two classes"
    if leaks == "error":
        raise problems_error(what, examples, "delete the copies, or let them be dropped: data.leaks=drop")
    if leaks == "drop":
        return dataset.without(leaking)
    warning = f"{what}; data.leaks=drop drops them:{format_problems(examples, 3)}"
    return replace(dataset, warnings=(*dataset.warnings, warning))


def _same_content(hashes: Sequence[str]) -> Iterator[list[int]]:
    """Groups of indices with equal hashes."""
    starts = np.array([int(digest[:16], 16) for digest in hashes], np.uint64)  # 8 bytes are unique among millions
    order = np.argsort(starts, kind="stable")
    edges = np.concatenate(([0], np.flatnonzero(np.diff(starts[order])) + 1, [len(order)]))
    for run in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[run] : edges[run + 1]].tolist()

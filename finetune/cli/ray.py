"""`finetune predict --engine ray`: the answers come from a pool of workers on a Ray cluster.

    for answer in answers(paths, asked):
        answer.path

Ray Data hands out the paths in blocks, in order. Each worker has the network and reads the images itself, with the
reader that everything here uses: Ray's own decodes and resizes otherwise, and the answers would be others. The block of
a worker that dies is answered by another. Where no cluster is found, one begins on this machine and ends with us.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.models import PREDICT_BATCH, Prediction
from finetune.utils import ResourceError, require_packages

BLOCK = 512  # images that one worker is given at a time, in whole batches, and that are answered again if it dies
CORES = 2  # of a worker without a GPU


@dataclass(frozen=True)
class RayRequest:
    """What each worker must know; `model` must be there under this name on every machine of the cluster."""

    model: str
    top: int = 5
    imagenet: bool = False
    level: bool = False
    reject: float = 0.0
    batch_size: int = PREDICT_BATCH


def require_ray() -> None:
    """UsageError with the command that installs it, where it is missing."""
    require_packages("--engine ray", "ray", "pyarrow", extra="ray")


class Worker:
    """One process of the pool; Ray makes it, and gives it block after block."""

    def __init__(self, asked: RayRequest, cores: int | None) -> None:
        from finetune.utils import tf

        if cores:  # TensorFlow would take all of the machine, which the other workers share
            tf.config.threading.set_intra_op_parallelism_threads(cores)
        from finetune.cli.showing import load_classifiers

        self.asked = asked
        self.classifiers = load_classifiers(asked.model, asked.imagenet)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from finetune.cli.showing import joint_predictions

        paths = [str(path) for paths in block["paths"] for path in paths]
        asked = self.asked
        found = np.empty(len(paths), object)
        found[:] = list(
            joint_predictions(self.classifiers, paths, asked.top, asked.level, asked.reject, asked.batch_size)
        )
        return {"answer": found}


def ray_predictions(paths: Sequence[str], asked: RayRequest) -> Iterator[Prediction]:
    """One answer per path, in order, as they come; memory does not grow with their number beyond the paths themselves.

    Raises ResourceError when the cluster fails.
    """
    require_ray()
    if not paths:
        return
    with _cluster() as ray:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        most = gpus or max(1, cores // CORES)
        share = {"num_gpus": 1} if gpus else {"num_cpus": min(CORES, cores)}
        # A block is one row: Ray would divide the paths themselves into blocks that end in the middle of a batch.
        rows = [{"paths": list(paths[at : at + BLOCK])} for at in range(0, len(paths), BLOCK)]
        blocks = len(rows)
        done = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            Worker,
            fn_constructor_args=(asked, None if gpus else CORES),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, blocks)),
            **share,
        )
        for block in done.iter_batches(batch_size=None):
            yield from block["answer"]


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS or of this machine, or to a new one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its maker
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it cannot mend comes as an exception
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = str(error).strip().split("\n")[-1]
        raise ResourceError(f"Ray: {type(error).__name__}: {reason[:300]}") from error
    finally:
        if ours:
            ray.shutdown()

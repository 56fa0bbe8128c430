"""`finetune predict --engine ray`: predictions from a pool of workers on a Ray cluster.

    for prediction in ray_predictions(paths, PredictionRequest("runs/flowers-1")):
        prediction.path

Ray Data hands out the paths in blocks, in order. Each worker has the classifier and reads the images itself, with the
reader that is used everywhere here: Ray's own decodes and resizes differently, and so the predictions would differ.
The block of a worker that dies is done by another one. If there is no cluster, one starts on this machine and ends
with us.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from finetune.models import Prediction, PredictionRequest, load_classifiers, predict_jointly
from finetune.utils import ResourceError, tf

BLOCK = 512  # images that a worker is given at a time, in whole batches; they are predicted again if it dies
CORES = 2  # of a worker without a GPU


class Worker:
    """One process of the pool; Ray creates it, and calls it with block after block."""

    def __init__(self, request: PredictionRequest, cores: int | None) -> None:
        if cores:  # TensorFlow would use all cores of the machine, which the other workers need too
            tf.config.threading.set_intra_op_parallelism_threads(cores)
        self.request = request
        self.classifiers = load_classifiers(request.model, imagenet=request.imagenet)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        paths = [str(path) for paths in block["paths"] for path in paths]
        predictions = np.empty(len(paths), object)
        predictions[:] = list(predict_jointly(self.classifiers, paths, self.request))
        return {"prediction": predictions}


def ray_predictions(paths: Sequence[str], request: PredictionRequest) -> Iterator[Prediction]:
    """One prediction per path, in order, as they come. Memory does not grow with their number, but for the paths.

    Raises ResourceError when the cluster fails.
    """
    if not paths:
        return
    with _cluster() as ray:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        workers = gpus or max(1, cores // CORES)
        resources = {"num_gpus": 1} if gpus else {"num_cpus": min(CORES, cores)}
        # A block is one row: Ray would divide the paths themselves into blocks that end in the middle of a batch.
        rows = [{"paths": list(paths[at : at + BLOCK])} for at in range(0, len(paths), BLOCK)]
        blocks = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(request, None if gpus else CORES),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(rows))),
            **resources,
        )
        for block in blocks.iter_batches(batch_size=None):
            yield from block["prediction"]


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS or of this machine, or to a new one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports usage to its maker
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it cannot handle comes as an exception
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    start = not ray.is_initialized()
    try:
        if start:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        yield ray
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = str(error).strip().split("\n")[-1]
        raise ResourceError(f"Ray: {type(error).__name__}: {reason[:300]}") from error
    finally:
        if start:
            ray.shutdown()

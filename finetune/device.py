"""TensorFlow and Keras, imported in one place: quietly, and set up for the machine at hand.

Every other module says `from finetune.device import keras, tf`. The import costs some three seconds, so the light
modules (config, catalog, data, runs, cli) never reach this one before there is real work to do.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from finetune.errors import ResourceError, UsageError

if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise UsageError(
        f"finetune needs Keras on TensorFlow, found KERAS_BACKEND={os.environ['KERAS_BACKEND']}.",
        remedy="unset KERAS_BACKEND",
    )
# TensorFlow's allocator for GPUs, used for main memory too: it keeps what it has once got. The default gives every
# large tensor back to the system, which clears the pages again for the next one; without that a forward pass is up to
# twice as fast (benchmarks/RESULTS.md).
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
__all__ = [
    "GPUS",
    "available_cores",
    "choose",
    "describe",
    "deterministic",
    "keras",
    "peak_memory_mb",
    "precision",
    "quiet",
    "tf",
    "versions",
]
DEBUG = os.environ.get("FINETUNE_DEBUG") == "1"


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """TensorFlow's C++ start-up writes to descriptor 2 whatever its log level; point that at nothing meanwhile."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # no stderr at all (a daemon): nothing to silence
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


if not DEBUG:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with contextlib.nullcontext() if DEBUG else _silent_stderr():
    import keras
    import tensorflow as tf

    GPUS: list[Any] = tf.config.list_physical_devices("GPU")
if not DEBUG:
    tf.get_logger().setLevel("ERROR")
for _gpu in GPUS:
    # TensorFlow otherwise takes all memory of the device at once, from everybody else too.
    with contextlib.suppress(RuntimeError):  # already started by the program that imported us
        tf.config.experimental.set_memory_growth(_gpu, True)

if keras.backend.backend() != "tensorflow":  # imported before us, and set up otherwise
    raise UsageError(f"finetune needs Keras on TensorFlow, found Keras on {keras.backend.backend()}.")
if int(keras.__version__.partition(".")[0]) < 3:  # TensorFlow's own Keras 2, or an old package
    raise ResourceError(
        f"finetune needs Keras 3, found {keras.__version__}.", remedy="pip install --upgrade finetune keras"
    )


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """The block's operations give the same bits each time, if that is `wanted`; afterwards all is as it was."""
    from tensorflow.python.framework import config  # switching it off again has no public name

    before = config.is_op_determinism_enabled()
    if wanted:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        if wanted and not before:
            config.disable_op_determinism()


def choose(wanted: str, number: int = 0) -> None:
    """Lets TensorFlow see what `device: wanted` names: `cpu`, one GPU (`auto`, if there is any, or `gpu`), or `all`.

    `number` tells processes of one machine apart: each takes another GPU. ResourceError for a GPU that is not there.
    """
    if wanted == "gpu" and not GPUS:
        raise ResourceError("device: gpu, but TensorFlow finds no GPU here.", remedy="Use device=auto or device=cpu.")
    one = [GPUS[number % len(GPUS)]] if GPUS else []
    chosen = {"cpu": [], "all": GPUS}.get(wanted, one)
    if chosen == GPUS:
        return
    try:
        tf.config.set_visible_devices(chosen, "GPU")
    except RuntimeError as error:  # this process has computed on them already
        raise ResourceError(
            f"device: {wanted} comes too late: this process already uses {len(GPUS)} GPU(s).",
            remedy="Choose the device in the first training of a process.",
        ) from error
    GPUS[:] = chosen


def quiet() -> contextlib.AbstractContextManager[None]:
    """While in it, what C++ libraries write to stderr goes nowhere; with --debug it is shown."""
    return contextlib.nullcontext() if DEBUG else _silent_stderr()


def precision() -> str:
    """The Keras dtype policy that pays on this device.

    bfloat16 halves traffic and feeds the tensor cores of NVIDIA chips from Ampere (compute capability 8) on, with the
    range of float32, so no loss scaling is needed. On CPUs it was measured slower than float32.
    """
    for gpu in GPUS:
        major, _ = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        if major >= 8:
            return "mixed_bfloat16"
    return str(keras.config.floatx())  # float32, unless the program that imported us has chosen float64


def describe() -> str:
    """One line for people: `CPU, 2 cores` or `GPU NVIDIA H200, mixed_bfloat16`."""
    if GPUS:
        names = {tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in GPUS}
        return f"{len(GPUS)} x GPU {', '.join(sorted(names))}, {precision()}"
    return f"CPU, {available_cores()} cores"


def available_cores() -> int:
    """Cores this process may use; containers and `taskset` often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> int:
    """The most memory that this process has held at once."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def versions() -> dict[str, str]:
    return {"tensorflow": tf.__version__, "keras": keras.__version__, "python": sys.version.split()[0]}

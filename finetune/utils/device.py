"""TensorFlow and Keras, started in one place: at their first use, quietly, and set up for the machine at hand.

Every other module says `from finetune.utils import keras, tf`. That costs nothing; the first use of an attribute
(`tf.function`, `keras.Model`) imports both, which takes some three seconds. So a wrong path, a mistake in a config or
`--help` is answered at once.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from finetune.utils.environment import available_cores, is_debugging
from finetune.utils.errors import ResourceError, UsageError

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and that of Linux within Windows


class LazyModule:
    """A module of TensorFlow or Keras that is imported when it is first used, after `initialize`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        initialize()
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"LazyModule({self._name!r})"


keras: Any = LazyModule("keras")
tf: Any = LazyModule("tensorflow")


@cache
def initialize() -> None:
    """Import TensorFlow and Keras and set them up; only the first call in a process does anything.

    Raises UsageError for Keras on another backend, ResourceError for Keras 2.
    """
    if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise UsageError(
            f"finetune needs Keras on TensorFlow, got KERAS_BACKEND={os.environ['KERAS_BACKEND']}.",
            hint="unset KERAS_BACKEND",
        )
    # TensorFlow's allocator for GPUs, used for main memory too, keeps memory for later tensors. The default gives every
    # large tensor back to the system, which has to clear the pages again; without that a forward pass is up to twice
    # as fast (benchmarks/RESULTS.md).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if not is_debugging():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silence_cpp_logs():
        backend = importlib.import_module("keras")
        tensorflow = importlib.import_module("tensorflow")
        gpus = tensorflow.config.list_physical_devices("GPU")
    if not is_debugging():
        tensorflow.get_logger().setLevel("ERROR")
    for gpu in gpus:
        # Otherwise TensorFlow takes all memory of the device at once, from other processes too.
        with contextlib.suppress(RuntimeError):  # already started by the program that imported us
            tensorflow.config.experimental.set_memory_growth(gpu, True)
    if backend.backend.backend() != "tensorflow":  # imported before us, and set up otherwise
        raise UsageError(f"finetune needs Keras on TensorFlow, got Keras on {backend.backend.backend()}.")
    if int(backend.__version__.partition(".")[0]) < 3:  # TensorFlow's own Keras 2, or an old package
        raise ResourceError(
            f"finetune needs Keras 3, got {backend.__version__}.", hint="pip install --upgrade finetune keras"
        )


@contextlib.contextmanager
def silence_cpp_logs() -> Iterator[None]:
    """Discard what C++ libraries write to stderr in the block, whatever their log level; with --debug it is shown."""
    sys.stderr.flush()
    try:
        saved = None if is_debugging() else os.dup(2)
    except OSError:  # no stderr at all (a daemon): nothing to silence
        saved = None
    if saved is None:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def separate_stderr() -> None:
    """Give Python's messages a file descriptor of their own, so that `silence_cpp_logs` does not hide them too."""
    with contextlib.suppress(OSError, AttributeError):  # a daemon has no stderr
        copy = os.dup(sys.stderr.fileno())
        sys.stderr = open(copy, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: SIM115


def has_gpu() -> bool:
    """Whether TensorFlow can use a GPU; without a GPU driver this is answered without starting TensorFlow."""
    if sys.platform == "linux" and not any(os.path.exists(driver) for driver in GPU_DRIVERS):
        return False
    return bool(visible_gpus())


def visible_gpus() -> list[Any]:
    """The GPUs that TensorFlow may use in this process (see `select_devices`)."""
    return list(tf.config.get_visible_devices("GPU"))


@contextlib.contextmanager
def deterministic_ops(enabled: bool) -> Iterator[None]:
    """If `enabled`, the operations of the block give the same bits each time; afterwards the setting is restored."""
    initialize()
    from tensorflow.python.framework import config  # switching it off again has no public name

    before = config.is_op_determinism_enabled()
    if enabled:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        if enabled and not before:
            config.disable_op_determinism()


def select_devices(device: str, number: int = 0) -> None:
    """Show TensorFlow only the GPUs that the config's `device` names.

    `cpu`: none; `all`: all; `gpu`: one, and ResourceError if there is none; `auto`: one if there is any. `number`
    distinguishes the processes of one machine: each takes another GPU.
    """
    gpus = visible_gpus()
    if device == "gpu" and not gpus:
        raise ResourceError("device: gpu, but TensorFlow finds no GPU here.", hint="Use device=auto or device=cpu.")
    if device == "all":
        selected = gpus
    elif device == "cpu" or not gpus:
        selected = []
    else:
        selected = [gpus[number % len(gpus)]]
    if selected == gpus:
        return
    try:
        tf.config.set_visible_devices(selected, "GPU")
    except RuntimeError as error:  # this process has already computed on them
        raise ResourceError(
            f"device: {device} comes too late: this process already uses {len(gpus)} GPU(s).",
            hint="Choose the device in the first training of a process.",
        ) from error


def dtype_policy() -> str:
    """The fastest Keras dtype policy on this device: `mixed_bfloat16` or `float32`.

    bfloat16 halves traffic and feeds the tensor cores of NVIDIA chips from Ampere (compute capability 8) on, with the
    range of float32, so no loss scaling is needed. On CPUs it was measured slower than float32.
    """
    for gpu in visible_gpus():
        major, _ = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        if major >= 8:
            return "mixed_bfloat16"
    return str(keras.config.floatx())  # float32, unless the program that imported us has chosen float64


def describe_device() -> str:
    """One line for people: `CPU, 2 cores` or `GPU NVIDIA H200, mixed_bfloat16`."""
    gpus = visible_gpus()
    if gpus:
        names = {tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus}
        return f"{len(gpus)} x GPU {', '.join(sorted(names))}, {dtype_policy()}"
    return f"CPU, {available_cores()} cores"


def library_versions() -> dict[str, str]:
    """Versions of TensorFlow, Keras and Python, for run.json and the keys of caches."""
    return {"tensorflow": tf.__version__, "keras": keras.__version__, "python": sys.version.split()[0]}

"""Several devices and several machines: who computes what, and how it is put together again.

    with distribution.joined(config.device):       at the start of a training
        group = distribution.group()
        group.total(compute)                       inside a compiled step: sums of what every device computed
        group.tell(value)                          what the chief says, on every process
        group.agree({"weights": digest})           an error that names who has something else

Every process is a whole `finetune train`: it builds the same classifier, takes its rows of the *same* batches, and
makes the same step with the sum of all gradients. So weights, decisions and random numbers are equal everywhere and
nothing has to be copied. `tf.distribute` does one thing for us, the sum over all devices; all else is built on it.
Weights, optimizer and checkpoints never learn that there are others, which is why nothing of them is forbidden here.

One process without company is the usual case: `ALONE`, where a sum is what it sums.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from finetune.config import AugmentConfig
from finetune.training.distributed.cluster import ProcessPlace
from finetune.utils import (
    ConfigError,
    FinetuneError,
    ResourceError,
    keras,
    select_devices,
    silence_cpp_logs,
    tf,
    visible_gpus,
)

T = TypeVar("T")
E = TypeVar("E", bound=FinetuneError)
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


@dataclass(frozen=True)
class Shard:
    """The rows of a batch that one device works on, inside a compiled step; numbers are scalar tensors.

    Where a batch has fewer rows than there are devices, some get a row that counts for nothing (`weight` 0): kernels
    crash on empty batches.
    """

    count: Any  # rows of the whole batch
    first: Any = 0
    last: Any = None
    weight: Any = 1.0
    offset: Any = 0  # the first row that the process holds, if it does not hold the whole batch

    def rows(self, batch: Any) -> Any:
        """Those of this part, in a whole `batch`."""
        return batch if self.last is None else batch[self.first : self.last]

    def held(self, rows: Any) -> Any:
        """Those of this part, in the `rows` that the process holds."""
        return rows if self.last is None else rows[self.first - self.offset : self.last - self.offset]


@dataclass
class ProcessGroup:
    """The processes that train together, and the devices of this one."""

    place: ProcessPlace = field(default_factory=ProcessPlace)
    strategy: Any = None  # None: one process, one device
    asked: Callable[[], bool] = lambda: False  # whether somebody asked this process to stop
    stopping: bool = False  # somebody asked one of the processes to stop, and all know
    parting: bool = False  # all processes are ending, for the same reason

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        """Processes."""
        return self.place.world_size

    @property
    def chief(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    @property
    def parts(self) -> int:
        """Devices of all processes; a batch is divided into as many parts."""
        return int(self.strategy.num_replicas_in_sync) if self.strategy else 1

    @property
    def alone(self) -> bool:
        return self.parts == 1

    def describe(self) -> str:
        """`2 processes`, or `4 devices`; empty for one."""
        if self.size > 1:
            return f"{self.size} processes" + (f", {self.parts} devices" if self.parts > self.size else "")
        return "" if self.alone else f"{self.parts} devices"

    # --- who does what

    def held(self, count: int) -> slice:
        """The rows of a batch of `count` that this process has to read."""
        if self.alone:
            return slice(0, count)
        first = min(self._bound(self.rank * self._local, count), count - 1)
        return slice(first, max(self._bound((self.rank + 1) * self._local, count), first + 1))

    def share(self, count: int, unit: int) -> slice:
        """Which of `count` things this process does, in whole units of `unit`; together the processes do all."""
        units = -(-count // unit)
        bounds = (self.rank * units // self.size, (self.rank + 1) * units // self.size)
        return slice(*(min(count, unit * bound) for bound in bounds))

    def rounds(self, count: int, unit: int) -> int:
        """How many units the process with the largest `share` has; where all meet after each, so often."""
        return -(-count // (unit * self.size))

    def part(self, place: Any, count: Any, held: Any) -> Shard:
        """The part number `place` of a batch of `count`, of which this process holds `held` rows."""
        start, stop = self._bound(place, count), self._bound(place + 1, count)
        own = tf.minimum(self._bound(self.rank * self._local, count), count - 1)
        empty = start == stop
        first, last = tf.where(empty, own, start), tf.where(empty, own + 1, stop)
        return Shard(count, first, last, tf.cast(~empty, keras.config.floatx()), tf.where(held == count, 0, own))

    @property
    def _local(self) -> int:
        """Devices of this process."""
        return self.parts // self.size

    def _bound(self, place: Any, count: Any) -> Any:
        return place * count // self.parts

    # --- sums: the one thing that is done together

    def total(self, compute: Callable[[Any], Sequence[Any]]) -> list[Any]:
        """The sums over all devices of the tensors that `compute(place)` gives; `place` counts the devices from 0.

        To be called inside a compiled function, the same on every process.
        """
        if self.alone:
            return list(compute(0))

        def one() -> Any:
            context = tf.distribute.get_replica_context()
            own = [tf.identity(tensor) for tensor in compute(context.replica_id_in_sync_group)]
            return context.all_reduce("SUM", own)

        return [self.strategy.experimental_local_results(total)[0] for total in self.strategy.run(one)]

    def total_of_parts(self, compute: Callable[[Shard], Sequence[Any]], *, count: Any, held: Any) -> list[Any]:
        """`total` of what `compute(part)` gives for each part of a batch of `count`; this process holds `held` rows."""
        if self.alone:
            return list(compute(Shard(count)))
        return self.total(lambda place: compute(self.part(place, count, held)))

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all processes; all must have its shape and type."""
        if self.size == 1:
            return array
        with explain_lost_process():
            found: np.ndarray = self._sum(tf.convert_to_tensor(array)).numpy()
        return found

    @cached_property
    def _sum(self) -> Any:
        def once(array: Any, place: Any) -> Any:
            return tf.where(place % self._local == 0, array, tf.zeros_like(array))  # one device speaks for a process

        def total(array: Any) -> Any:
            return self.total(lambda place: [once(array, place)])[0]

        return tf.function(total, autograph=False, reduce_retracing=True)

    def joined(self, rows: np.ndarray, mine: slice, count: int) -> np.ndarray:
        """`count` rows of which this process has those at `mine`."""
        if self.size == 1:
            return rows
        whole = np.zeros((count, *rows.shape[1:]), rows.dtype)
        whole[mine] = rows
        return self.sum(whole)

    def gather(self, value: Any) -> list[Any]:
        """What every process has for `value`, by rank; anything that JSON can hold."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        lengths = self.joined(np.array([len(text)]), slice(self.rank, self.rank + 1), self.size)
        letters = np.zeros((1, lengths.max()), np.int32)
        letters[0, : len(text)] = np.frombuffer(text, np.uint8)
        table = self.joined(letters, slice(self.rank, self.rank + 1), self.size).astype(np.uint8)
        return [json.loads(row[:length].tobytes()) for row, length in zip(table, lengths, strict=True)]

    def tell(self, value: T) -> T:
        """What the chief has for `value`; anything that JSON can hold."""
        found: T = self.gather(value if self.chief else None)[0]
        return found

    def spread(self, variables: Sequence[Any]) -> None:
        """Gives `variables` the values that they have on the chief."""
        if self.size > 1:
            for variable in variables:
                own = variable.numpy()
                variable.assign(self.sum(own if self.chief else np.zeros_like(own)))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any process."""
        return bool(self.sum(np.array([int(flag)]))[0])

    # --- agreement

    def agree(self, facts: Mapping[str, str], error: type[FinetuneError] = FinetuneError, *, hint: str = "") -> None:
        """Raises `error`, on all processes, if one of them has another value than the chief for any of `facts`."""
        everyone = self.gather(dict(facts))
        wrong = [
            f"\n  {name}: {_short(theirs.get(name))} on {self.name(rank)}, {_short(everyone[0].get(name))} on the chief"
            for rank, theirs in enumerate(everyone)
            for name in sorted({*theirs, *everyone[0]})
            if theirs.get(name) != everyone[0].get(name)
        ]
        if wrong:
            what = f"The processes of this training do not have the same:{''.join(wrong)}"
            raise self.everywhere(error(what, hint=hint))

    def everywhere(self, error: E) -> E:
        """`error`, which all processes are about to raise."""
        self.parting = True
        return error

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes end the block, or all raise what one of them raised."""
        trouble: FinetuneError | None = None
        try:
            yield
        except FinetuneError as error:
            if self.size == 1:
                raise
            trouble = error
        told = None if trouble is None else [trouble.message, trouble.hint, trouble.exit_code]
        troubles = self.gather(told)
        if trouble:
            raise self.everywhere(trouble)
        for rank, other in enumerate(troubles):
            if other:
                what, hint, exit_code = other
                raise self.everywhere(Elsewhere(f"{self.name(rank)}: {what}", hint=hint, exit_code=exit_code))

    def part_company(self) -> None:
        """Waits until all processes are about to end: one that is gone too early spoils the last sum of the others."""
        with suppress(ResourceError):
            self.sum(np.zeros(1))

    def name(self, rank: int) -> str:
        """`process 1 of 2 (node7:29400)`."""
        return f"process {rank} of {self.size} ({self.place.addresses[rank]})"


class Elsewhere(FinetuneError):
    """Another process of the group has failed; its message and exit code."""

    def __init__(self, what: str, *, hint: str, exit_code: int) -> None:
        super().__init__(what, hint=hint)
        self.exit_code = exit_code


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) < 60 else f"{value[:12]}..."


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """What TensorFlow says when another process is gone, in our words."""
    try:
        yield
    except LOST as error:
        raise ResourceError(
            f"Another process of this training has ended or cannot be reached: {_who(str(error))}",
            hint="Its own output tells why. Start all of them again, with --resume, to go on from the last checkpoint.",
        ) from error


def _who(message: str) -> str:
    tasks = [line for line in message.splitlines() if line.startswith("/job:worker/")]
    ranks = sorted({line.rpartition(":")[2].strip() for line in tasks})
    reason = message.partition("aborted by:")[2] or message
    return f"process {', '.join(ranks)}" if ranks else " ".join(reason.split())[:120]


# --------------------------------------------------------------------------------------------------- who is there

ALONE = ProcessGroup()
_current = ALONE
_joined: dict[ProcessPlace, Any] = {}  # TensorFlow can join a cluster once in the life of a process


def process_group() -> ProcessGroup:
    """The group that this process belongs to; `ALONE` outside of `joined`."""
    return _current


@contextmanager
def join_group(place: ProcessPlace, wanted: str) -> Iterator[ProcessGroup]:
    """Inside, `group()` is the group of all that are in the same cluster, on the devices that `device: wanted` says.

    Waits until all its processes are there. To be entered before TensorFlow has computed anything. Raises
    ResourceError for a device that is not there, or if the others do not come.
    """
    global _current
    select_devices(wanted, place.local_rank)
    before, _current = _current, ProcessGroup(place, _strategy(place, wanted))
    try:
        yield _current
        _current.parting = True
    finally:
        if _current.parting:
            _current.part_company()
        _current = before


@contextmanager
def use_devices(wanted: str) -> Iterator[ProcessGroup]:
    """The group that was `joined`; outside of one, that of the devices of this process alone."""
    if _current is ALONE:
        with join_group(ProcessPlace(), wanted) as alone:
            yield alone
    else:
        yield _current


def _strategy(place: ProcessPlace, wanted: str) -> Any:
    if place.world_size > 1:
        if place not in _joined:
            _joined[place] = _join(place)
        return _joined[place]
    if wanted == "all":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy([each.name for each in devices])
    return None


def _join(place: ProcessPlace) -> Any:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(place.addresses)}),
        task_type="worker",
        task_id=place.rank,
        num_accelerators={"GPU": len(visible_gpus())},
        rpc_layer="grpc",
    )
    try:
        with silence_cpp_logs(), _interruptible():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:
        raise ResourceError(
            f"Cannot join the other processes at {', '.join(place.addresses)}: {error}",
            hint="Training on several machines must be the first thing that a process does with TensorFlow.",
        ) from error
    except tf.errors.OpError as error:
        raise ResourceError(
            f"The {place.world_size} processes did not find each other at {', '.join(place.addresses)}: "
            f"{' '.join(str(error).split())[:200]}",
            hint="Each must be able to listen at its own address, which nothing else uses, and reach the others.",
        ) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """While inside, a signal ends the process: it waits where Python's handlers never run, and has nothing to lose yet.

    Afterwards they are back, also where TensorFlow has put one of its own (SIGTERM, for preemption).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------- what cannot be shared


def refuse_if_not_exact(group: ProcessGroup, layers: Sequence[Any], batch_size: int, count: int) -> None:
    """ConfigError for what would not give the same result as one process on one device, with the reason.

    `layers` are those above the cut, `count` the number of training images.
    """
    if group.alone:
        return
    where = group.describe()
    learns = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    if learns and group.parts > group.size:
        raise ConfigError(
            f"model.batch_norm=train cannot be used on {where}: the devices of a process share its statistics.",
            hint="Use batch_norm=frozen or recalibrate, or one process per device: --nproc.",
        )
    if learns and 0 < count % batch_size < group.parts:
        raise ConfigError(
            f"model.batch_norm=train on {where}: the last batch of an epoch has {count % batch_size} images, and "
            "statistics of a device without any cannot be told.",
            hint=f"Choose another batch_size than {batch_size}.",
        )
    random = [layer for layer in layers if hasattr(layer, "seed_generator") and type(layer) is not keras.layers.Dropout]
    if random:
        raise ConfigError(
            f"{type(random[0]).__name__} ({random[0].name}) draws random numbers per batch, which cannot be the same "
            f"on {where} as on one.",
            hint="Use another backbone, or train on one device.",
        )


def refuse_mixing(group: ProcessGroup, augment: AugmentConfig) -> None:
    """ConfigError for mixing without cached features: every process would have to read every image."""
    if group.size > 1 and (augment.mixup or augment.cutmix):
        raise ConfigError(
            f"augment.mixup and cutmix on {group.describe()} need cached features: "
            "an image's partner may be with another process.",
            hint="Use augment.views=4 and cache=disk, or mixup=0 and cutmix=0.",
        )


class SynchronizedLayers:
    """Layers that treat a batch as a whole, made to do so on a part of it: rows are dropped as if all were here
    (dropout, drop-path), and statistics are those of all (BatchNorm that trains)."""

    def __init__(self, group: ProcessGroup, layers: Sequence[Any]) -> None:
        own = () if group.alone else layers
        self._dropouts = [layer for layer in own if type(layer) is keras.layers.Dropout and layer.rate > 0]
        self._norms = [layer for layer in own if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
        self._seeds: list[Any] = []

    def draw(self) -> None:
        """Draws the random numbers of a step; once for all devices, hence outside of `Group.total`."""
        self._seeds = [layer.seed_generator.next() for layer in self._dropouts]

    @contextmanager
    def on(self, part: Shard) -> Iterator[None]:
        """While inside, the layers act on `part`. Meant to surround the tracing of a step."""
        for layer in self._norms:
            layer.synchronized = True
        for layer, seed in zip(self._dropouts, self._seeds, strict=True):
            layer.call = _dropout(layer, part, seed)
        try:
            yield
        finally:
            for layer in self._norms:
                layer.synchronized = False
            for layer in self._dropouts:
                del layer.call  # the method of the class comes back


def _dropout(layer: Any, part: Shard, seed: Any) -> Callable[..., Any]:
    def call(inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        shape, fixed = tf.shape(inputs), layer.noise_shape or (None,) * inputs.shape.rank
        sides = [part.count if at == 0 else shape[at] if side is None else side for at, side in enumerate(fixed)]
        kept = tf.nn.experimental.stateless_dropout(tf.ones(sides, inputs.dtype), layer.rate, _as_int32(seed))
        return inputs * part.rows(kept)

    return call


def _as_int32(seed: Any) -> Any:
    """As Keras does it, for the same numbers."""
    return tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)

"""The processes that train together, and their devices: rank, world size, broadcast, all-reduce, barrier.

    with join_group(place, config.device) as group:      at the start, before TensorFlow has computed anything
        group.sum_over_shards(compute, ...)               in a compiled step: the sum of what each device computed
        group.broadcast(value)                            the value of rank 0, on every rank
        group.assert_same_on_all_ranks({"weights": sha})  an error that names the rank that differs
        with group.synchronized():                        all ranks leave the block, or all raise the error of one

Every process is a whole `finetune train`: it builds the same classifier, takes its rows of the *same* batches, and
makes the same step with the sum of all gradients. So weights, decisions and random numbers are equal everywhere and
nothing has to be copied. `tf.distribute` does one thing for us, the sum over all devices (an all-reduce); everything
else is built on it. Weights, optimizer and checkpoints do not know that there are other processes. One process
with one device is the usual case: `SINGLE`, where a sum is what it sums.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from finetune.training.distributed.cluster import ProcessPlace
from finetune.utils import (
    FinetuneError,
    ResourceError,
    TrainingDiverged,
    keras,
    select_devices,
    silence_cpp_logs,
    tf,
    visible_gpus,
)

T = TypeVar("T")
LOST_PROCESS = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")  # of tf.errors


@dataclass(frozen=True)
class BatchShard:
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
        """The rows of this shard, of a whole `batch`."""
        return batch if self.last is None else batch[self.first : self.last]

    def held(self, rows: Any) -> Any:
        """The rows of this shard, of the `rows` that the process holds."""
        return rows if self.last is None else rows[self.first - self.offset : self.last - self.offset]


@dataclass
class ProcessGroup:
    """The processes that train together, and the devices of this one."""

    place: ProcessPlace = field(default_factory=ProcessPlace)
    strategy: Any = None  # of tf.distribute; None: one process, one device
    stop_requested: Callable[[], bool] = lambda: False  # whether somebody asked this process to stop
    stopping: bool = False  # somebody asked one of the processes to stop, and all know
    all_leave: bool = False  # all processes are ending, for the same reason

    @property
    def rank(self) -> int:
        """The number of this process, from 0. Rank 0 is the one that speaks and writes."""
        return self.place.rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self.place.world_size

    @property
    def num_replicas(self) -> int:
        """Devices of all processes; a batch is divided into as many shards."""
        return int(self.strategy.num_replicas_in_sync) if self.strategy else 1

    @property
    def is_single_device(self) -> bool:
        return self.num_replicas == 1

    def describe(self) -> str:
        """`2 processes`, or `4 devices`; empty for one."""
        if self.world_size > 1:
            devices = f", {self.num_replicas} devices" if self.num_replicas > self.world_size else ""
            return f"{self.world_size} processes{devices}"
        return "" if self.is_single_device else f"{self.num_replicas} devices"

    def process_name(self, rank: int) -> str:
        """`process 1 of 2 (node7:29400)`."""
        return f"process {rank} of {self.world_size} ({self.place.addresses[rank]})"

    # --- which rows belong to whom

    def rows_of_rank(self, count: int) -> slice:
        """The rows of a batch of `count` that this process has to read; at least one."""
        if self.is_single_device:
            return slice(0, count)
        first = min(self._first_row(self.rank * self._local_replicas, count), count - 1)
        return slice(first, max(self._first_row((self.rank + 1) * self._local_replicas, count), first + 1))

    def slice_of_rank(self, count: int, unit: int) -> slice:
        """Which of `count` images this process works on, in whole batches of `unit`; together the ranks do all."""
        units = -(-count // unit)
        first, last = (units * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return slice(min(count, unit * first), min(count, unit * last))

    def shard(self, replica: Any, count: Any, held: Any) -> BatchShard:
        """The shard of device number `replica`, of a batch of `count` of which this process holds `held` rows."""
        start, stop = self._first_row(replica, count), self._first_row(replica + 1, count)
        own = tf.minimum(self._first_row(self.rank * self._local_replicas, count), count - 1)
        empty = start == stop
        first, last = tf.where(empty, own, start), tf.where(empty, own + 1, stop)
        return BatchShard(count, first, last, tf.cast(~empty, keras.config.floatx()), tf.where(held == count, 0, own))

    @property
    def _local_replicas(self) -> int:
        """Devices of this process."""
        return self.num_replicas // self.world_size

    def _first_row(self, replica: Any, count: Any) -> Any:
        return replica * count // self.num_replicas

    # --- sums: the one thing that tf.distribute does

    def sum_over_replicas(self, compute: Callable[[Any], Sequence[Any]]) -> list[Any]:
        """The sums over all devices of the tensors that `compute(replica)` gives; replicas count from 0.

        To be called inside a compiled function, the same on every process.
        """
        if self.is_single_device:
            return list(compute(0))

        def compute_and_reduce() -> Any:
            context = tf.distribute.get_replica_context()
            tensors = [tf.identity(tensor) for tensor in compute(context.replica_id_in_sync_group)]
            return context.all_reduce("SUM", tensors)

        sums = self.strategy.run(compute_and_reduce)
        return [self.strategy.experimental_local_results(total)[0] for total in sums]

    def sum_over_shards(self, compute: Callable[[BatchShard], Sequence[Any]], *, count: Any, held: Any) -> list[Any]:
        """The sums of what `compute(shard)` gives for each shard of a batch of `count`; this process holds `held` rows.

        To be called inside a compiled function.
        """
        if self.is_single_device:
            return list(compute(BatchShard(count)))
        return self.sum_over_replicas(lambda replica: compute(self.shard(replica, count, held)))

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all processes; all must have its shape and type."""
        if self.world_size == 1:
            return array
        with explain_lost_process():
            total: np.ndarray = self._compiled_all_reduce(tf.convert_to_tensor(array)).numpy()
        return total

    @cached_property
    def _compiled_all_reduce(self) -> Any:
        def once_per_process(array: Any, replica: Any) -> Any:
            return tf.where(replica % self._local_replicas == 0, array, tf.zeros_like(array))

        def total(array: Any) -> Any:
            return self.sum_over_replicas(lambda replica: [once_per_process(array, replica)])[0]

        return tf.function(total, autograph=False, reduce_retracing=True)

    def concatenate(self, rows: np.ndarray, own: slice, count: int) -> np.ndarray:
        """All `count` rows, of which this process has those at `own` and the others have the rest."""
        if self.world_size == 1:
            return rows
        whole = np.zeros((count, *rows.shape[1:]), rows.dtype)
        whole[own] = rows
        return self.all_reduce(whole)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; anything that JSON can hold.

        As bytes in an array with a row for each rank: an all-reduce is all there is.
        """
        if self.world_size == 1:
            return [value]
        own_row = slice(self.rank, self.rank + 1)
        text = json.dumps(value).encode()
        lengths = self.concatenate(np.array([len(text)]), own_row, self.world_size)
        letters = np.zeros((1, lengths.max()), np.int32)
        letters[0, : len(text)] = np.frombuffer(text, np.uint8)
        table = self.concatenate(letters, own_row, self.world_size).astype(np.uint8)
        return [json.loads(row[:length].tobytes()) for row, length in zip(table, lengths, strict=True)]

    def broadcast(self, value: T) -> T:
        """The value of rank 0, on every rank; anything that JSON can hold."""
        received: T = self.all_gather(value if self.rank == 0 else None)[0]
        return received

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Give `variables` the values that they have on rank 0."""
        if self.world_size > 1:
            for variable in variables:
                own = variable.numpy()
                variable.assign(self.all_reduce(own if self.rank == 0 else np.zeros_like(own)))

    # --- all or none

    def assert_same_on_all_ranks(
        self, facts: Mapping[str, str], error: type[FinetuneError] = FinetuneError, *, hint: str = ""
    ) -> None:
        """Raise `error`, on all ranks, if one of them has another value than rank 0 for any of `facts`."""
        facts_by_rank = self.all_gather(dict(facts))
        expected = facts_by_rank[0]
        differences = [
            f"\n  {name}: {_shorten(own.get(name))} on {self.process_name(rank)}, "
            f"{_shorten(expected.get(name))} on process 0"
            for rank, own in enumerate(facts_by_rank)
            for name in sorted({*own, *expected})
            if own.get(name) != expected.get(name)
        ]
        if differences:
            self.all_leave = True
            raise error(f"The processes of this training do not have the same:{''.join(differences)}", hint=hint)

    @contextmanager
    def synchronized(self) -> Iterator[None]:
        """All ranks leave the block together, or all raise the FinetuneError of one of them."""
        own_error: FinetuneError | None = None
        try:
            yield
        except FinetuneError as error:
            if self.world_size == 1:
                raise
            own_error = error
        errors = self.all_gather(
            None if own_error is None else [own_error.message, own_error.hint, own_error.exit_code]
        )
        self.all_leave |= any(errors)
        if own_error:
            raise own_error
        for rank, other in enumerate(errors):
            if other:
                message, hint, exit_code = other
                raise ErrorOnOtherRank(f"{self.process_name(rank)}: {message}", hint=hint, exit_code=exit_code)

    def barrier(self) -> None:
        """Wait until all ranks are here; raise the error of one that fails on its way to it."""
        with self.synchronized():
            pass

    def wait_for_the_end(self) -> None:
        """Wait until all processes are about to end: one that has left too early spoils the last sum of the others."""
        with suppress(ResourceError):
            self.all_reduce(np.zeros(1))


class ErrorOnOtherRank(FinetuneError):
    """Another process of the group has failed; its message and exit code."""

    def __init__(self, message: str, *, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def _shorten(value: str | None) -> str:
    if value is None:
        return "none"
    return value if len(value) < 60 else f"{value[:12]}..."


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """TensorFlow's error when another process is gone, as a ResourceError."""
    try:
        yield
    except tf.errors.OpError as error:
        if type(error).__name__ not in LOST_PROCESS:
            raise
        raise ResourceError(
            f"Another process of this training has ended or cannot be reached: {_name_lost_process(str(error))}",
            hint="Its own output says why. Start all of them again with --resume, from the last checkpoint.",
        ) from error


def _name_lost_process(message: str) -> str:
    tasks = [line for line in message.splitlines() if line.startswith("/job:worker/")]
    ranks = sorted({line.rpartition(":")[2].strip() for line in tasks})
    reason = message.partition("aborted by:")[2] or message
    return f"process {', '.join(ranks)}" if ranks else " ".join(reason.split())[:120]


# ------------------------------------------------------------------------------------------------ the current group

SINGLE = ProcessGroup()
_current = ContextVar("process_group", default=SINGLE)  # each thread has a value of its own
_strategies: dict[ProcessPlace, Any] = {}  # TensorFlow can join a cluster once in the life of a process


def process_group() -> ProcessGroup:
    """The group that this process belongs to; `SINGLE` outside of `join_group`."""
    return _current.get()


@contextmanager
def join_group(place: ProcessPlace, device: str) -> Iterator[ProcessGroup]:
    """Inside, `process_group()` is the group of all that are in the same cluster, on the devices that `device` names.

    Waits until all its processes are there. To be entered before TensorFlow has computed anything. Raises
    ResourceError for a device that is not there, or if the others do not come.
    """
    select_devices(device, place.local_rank)
    group = ProcessGroup(place, _strategy(place, device))
    outer = _current.set(group)
    try:
        yield group
        group.all_leave = True
    except TrainingDiverged:  # noticed in sums, which all have
        group.all_leave = True
        raise
    finally:
        if group.all_leave:
            group.wait_for_the_end()
        _current.reset(outer)


@contextmanager
def use_devices(device: str) -> Iterator[ProcessGroup]:
    """The group that was joined; outside of one, that of the devices of this process alone."""
    if process_group() is not SINGLE:
        yield process_group()
        return
    with join_group(ProcessPlace(), device) as group:
        yield group


def _strategy(place: ProcessPlace, device: str) -> Any:
    if place.world_size > 1:
        if place not in _strategies:
            _strategies[place] = _join_cluster(place)
        return _strategies[place]
    if device == "all":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy([logical_device.name for logical_device in devices])
    return None


def _join_cluster(place: ProcessPlace) -> Any:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(place.addresses)}),
        task_type="worker",
        task_id=place.rank,
        num_accelerators={"GPU": len(visible_gpus())},
        rpc_layer="grpc",
    )
    try:
        with silence_cpp_logs(), _default_signal_handlers():
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
def _default_signal_handlers() -> Iterator[None]:
    """Inside, a signal ends the process: it waits in C++, where Python's handlers never run, and has nothing to lose.

    Afterwards the handlers are back, also where TensorFlow has put one of its own (SIGTERM, for preemption).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

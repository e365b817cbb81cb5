"""The runtime of a rank: its device, precision and threads, collectives, and stopping all ranks at the same step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.distributed.device import configure_torch, fingerprint, restored_torch_state, should_use_cpu
from mnist_dist.distributed.launcher import is_ancestor, is_called_by_launcher
from mnist_dist.distributed.mixed_precision import MixedPrecision
from mnist_dist.distributed.network import set_gloo_interface
from mnist_dist.distributed.rendezvous import (
    create_accelerator,
    destroy_process_group,
    open_control_group,
    ranks_not_in_store,
    store_has_key,
)
from mnist_dist.distributed.shared_memory import SharedMemoryGather, open_shared_memory
from mnist_dist.distributed.step_timer import build_step_timer
from mnist_dist.distributed.thread_pool import ThreadPool
from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog.comm_errors import rendezvous_errors
from mnist_dist.distributed.watchdog.joining import announce_joining
from mnist_dist.distributed.watchdog.peer_monitor import open_peer_monitor
from mnist_dist.utils.errors import Stopped, TrainingError, UserError
from mnist_dist.utils.exit import skip_exit_hooks
from mnist_dist.utils.signals import stop_on_signals

# torch 2.14 renamed all_gather_into_tensor, and warns of the old name.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

T = TypeVar("T")
R = TypeVar("R")


class Runtime:
    """One rank of a run. `start_runtime` creates it, and destroys the process group however the run ends.

    Every rank must call the collectives, in the same order. On one rank they do nothing.

    Args:
        accelerator: has initialised the process group.
        topology: rank, world size and machines.
        threads: CPU threads of this process.
        shards: number of fixed shards of a global batch (train.shards, resolved); 0 without fixed shards.
        timeout: of collectives on the control group and through shared memory.
    """

    def __init__(
        self, accelerator: Accelerator, topology: Topology, threads: int, shards: int, timeout: timedelta
    ) -> None:
        self.accelerator = accelerator
        self.topology = topology
        self.device: torch.device = accelerator.device
        self.mixed_precision = MixedPrecision(accelerator)
        self.precision = self.mixed_precision.name
        self.threads = threads
        self.rank, self.world_size, self.is_main = topology.rank, topology.world_size, topology.is_main
        self.shards = shards
        self.num_local_shards = max(shards // self.world_size, 1)
        self.thread_pool = ThreadPool(min(threads, self.num_local_shards) if self.device.type == "cpu" else 1)
        self.step_timer = build_step_timer(self.device, self.world_size, sharded=topology.fsdp is not None)
        self.timeout = timeout.total_seconds()
        self.shared_memory: SharedMemoryGather | None = None
        self.on_exit = contextlib.ExitStack()
        self.stop_flag = torch.zeros((), dtype=torch.int32)
        self.stop_work: tuple[Any, Tensor] | None = None  # the all-reduce of stop flags in flight
        self.control_group: Any = self.create_control_group(timeout) if self.world_size > 1 else None

    def create_control_group(self, timeout: timedelta) -> Any:
        """The group of Python objects and stop flags."""
        # In torch 2.15 the gloo backend can abort a process that exits (`terminate called without an active
        # exception`; seen in 13 of 90 runs of a bare DistributedDataParallel loop): the run would count as failed.
        skip_exit_hooks()
        return open_control_group(timeout)

    @property
    def device_name(self) -> str:
        """Name of the GPU, or type of another device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def fingerprint(self) -> dict[str, str]:
        """What decides how kernels round on this rank: see `device.fingerprint`."""
        return fingerprint(self.device, self.precision)

    def describe(self) -> dict[str, str]:
        """Launcher, processes, device and precision, for the console."""
        backend = f", {dist.get_backend()}" if self.world_size > 1 else ""
        backend += " and shared memory" if self.shared_memory else ""
        machines = f" on {self.topology.machines} machine{'s' * (self.topology.machines > 1)}"
        return {
            "launcher": self.topology.describe(),
            "processes": f"{self.world_size}{machines}{backend}",
            "device": f"{self.device_name}, {self.threads} CPU thread{'s' * (self.threads > 1)} each",
            "precision": self.precision + ("" if self.topology.fsdp else ", channels last"),
        }

    def to_device(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in channels-last memory format, in which convolutions are fastest."""
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function to each item on the thread pool, which has at most one thread per shard of this rank."""
        return self.thread_pool.map(function, items)

    # Collectives on tensors

    def enable_shared_memory(self, capacity: int) -> None:
        """Use shared memory for later collectives, if all ranks are CPU processes of one machine.

        Args:
            capacity: largest size of a rank's tensor, in bytes; `all_gather` and `all_reduce_max` of larger ones do not
                use it.
        """
        if self.device.type == "cpu" and self.world_size > self.topology.machines == 1:
            self.shared_memory = open_shared_memory(self.rank, capacity, self.timeout, self.all_gather_object)
            if self.shared_memory is not None:
                self.on_exit.callback(self.shared_memory.close)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place; returns it."""
        if self.world_size > 1:
            with self.step_timer.measure():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum of a tensor over all ranks, in place; returns it."""
        if self.world_size > 1:
            with self.step_timer.measure():
                if self.shared_memory is not None and tensor.nbytes <= self.shared_memory.capacity:
                    tensor.copy_(self.shared_memory.all_gather(tensor[None])[0].amax(0))
                else:
                    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks in rank order: (n, P) on each rank, (world_size * n, P) in all."""
        return self.all_gather_with_stop(rows)[0]

    def all_gather_with_stop(self, rows: Tensor) -> tuple[Tensor, bool | None]:
        """As `all_gather`, and whether any rank was asked to stop; None if the stop flags were not exchanged.

        Shared memory exchanges them at no cost, which saves the all-reduce of `should_stop`.
        """
        if self.world_size == 1:
            return rows, None
        with self.step_timer.measure():
            if self.shared_memory is not None and rows.nbytes <= self.shared_memory.capacity:
                return self.shared_memory.all_gather(rows, bool(self.stop_flag))
            gathered = rows.new_empty(self.world_size * len(rows), rows.shape[1])
            all_gather_single(gathered, rows)
            return gathered, None

    # Collectives on small Python objects

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        with self.step_timer.measure():
            dist.broadcast_object_list(box, src=0, group=self.control_group)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        with self.step_timer.measure():
            dist.all_gather_object(box, value, group=self.control_group)
        return box

    def run_on_main(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0 only; return its result on every rank.

        Raises:
            UserError, TrainingError: what the action raised, on every rank.
        """
        result: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = action()
            except (UserError, TrainingError) as caught:
                error = caught
        result, failure = self.broadcast((result, (type(error), str(error)) if error else None))
        if failure is not None:
            kind, message = failure
            raise (UserError(message) if kind is UserError else TrainingError(message, everywhere=True)) from error
        return result  # type: ignore[return-value]

    # Stopping together

    def request_stop(self) -> None:
        """Ask all ranks to stop at the next step boundary. Safe in a signal handler: it only sets a flag."""
        self.stop_flag.fill_(1)

    def should_stop(self, from_gradients: bool | None = None) -> bool:
        """Whether any rank was asked to stop. Every rank must call it once per step; all get the same answer.

        Each call starts an all-reduce of the stop flags and returns the result of the one before. So the answer comes
        one step late, and no step waits for it.

        Args:
            from_gradients: the answer of `all_gather_with_stop` in this step, if it has one. It is returned, and no
                all-reduce is started.
        """
        if self.topology.launcher_pid and not is_ancestor(self.topology.launcher_pid):
            self.request_stop()  # the launcher was killed, and nothing else would end this process
        if self.control_group is None:
            return bool(self.stop_flag)
        if from_gradients is not None:
            return from_gradients
        answer = self.wait_for_stop_flags()
        flag = self.stop_flag.clone()
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.control_group, async_op=True)
        self.stop_work = work, flag
        return answer

    def wait_for_stop_flags(self) -> bool:
        """Wait for the all-reduce that the previous call of `should_stop` started; return its result."""
        if self.stop_work is None:
            return False
        (work, flag), self.stop_work = self.stop_work, None
        with self.step_timer.measure():
            work.wait()
        return bool(flag)

    @contextlib.contextmanager
    def finish_stop_exchange(self) -> Iterator[None]:
        """At the end of the block, see to the all-reduce of stop flags that the last `should_stop` started.

        To destroy a group with work in flight can abort the process, or blocks until run.timeout has passed.
        """
        try:
            yield
        except Stopped:
            with contextlib.suppress(RuntimeError):  # a rank that is lost now has its checkpoint
                self.wait_for_stop_flags()  # every rank stops at this step
            raise
        except BaseException:
            # The other ranks may never join it. Referenced here, the groups live until the process ends.
            abandoned_groups.append((self.control_group, dist.group.WORLD, self.stop_work))
            raise
        self.wait_for_stop_flags()


abandoned_groups: list[object] = []


@contextlib.contextmanager
def start_runtime(config: Config, topology: Topology) -> Iterator[Runtime]:
    """Join the run's process group; destroy it at the end of the block, also after an error.

    Within the block, the signals of `utils.signals` request a stop, and the peer monitor watches for lost ranks. At the
    end, the settings that torch has for the whole process are as they were.

    Raises:
        UserError: this machine lacks the device or the precision, or accelerate sees another number of processes.
        TrainingError: another rank did not join in time, has exited, or does not answer.
    """
    with restored_torch_state(), join_process_group(config, topology) as runtime:
        yield runtime


@contextlib.contextmanager
def join_process_group(config: Config, topology: Topology) -> Iterator[Runtime]:
    """As `start_runtime`, without restoring torch's settings."""
    cpu = should_use_cpu(config, topology)
    shards = 0 if topology.fsdp else config.shards(topology.world_size, cpu)
    threads = configure_torch(config, topology, shards)
    if topology.machines > 1:
        set_gloo_interface(topology.address)
    try:
        with (
            announce_joining(topology, config.run.timeout, partial(ranks_not_in_store, topology)),
            rendezvous_errors(topology, config.run.timeout, partial(store_has_key, topology)),
        ):
            accelerator = create_accelerator(config, topology, cpu)
            runtime = Runtime(accelerator, topology, threads, shards, timedelta(seconds=config.run.timeout))
            peer_monitor = open_peer_monitor(topology, config.run.timeout, runtime.all_gather_object)
        # A notebook's Ctrl-C reaches its processes from the system, and milliseconds later from notebook_launcher.
        signals = stop_on_signals(runtime.request_stop, repeat_seconds=1.0 if is_called_by_launcher() else 0.0)
        with signals, peer_monitor, runtime.thread_pool, runtime.on_exit:
            with runtime.finish_stop_exchange():
                yield runtime
    finally:
        destroy_process_group()

"""The processes of a run. Everything else asks this room for the device, for its share of the work, and for sums over
all processes; only `meeting.py`, where they meet, knows accelerate and torch.distributed too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_dist.config.schema import Config
from mnist_dist.distributed.comm_timer import CommTimer
from mnist_dist.distributed.device import configure_torch, fingerprint, use_cpu
from mnist_dist.distributed.mixed_precision import AUTOCAST, Stepper
from mnist_dist.distributed.network import set_gloo_interface
from mnist_dist.distributed.rendezvous import destroy_process_group, is_in_store, open_accelerator
from mnist_dist.distributed.shared_memory import SharedMemoryGather, open_shared_memory
from mnist_dist.distributed.thread_pool import ThreadPool
from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog.comm_errors import rendezvous_errors
from mnist_dist.distributed.watchdog.peer_monitor import open_peer_monitor
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.exit import skip_exit_hooks
from mnist_dist.utils.signals import stop_on_signals

T = TypeVar("T")
R = TypeVar("R")


class Runtime:
    """This process among the others of a run. Use `start_runtime`, which also ends the process group on every path."""

    def __init__(
        self, accelerator: Accelerator, topology: Topology, threads: int, shards: int, timeout: timedelta
    ) -> None:
        self.accelerator = accelerator
        self.topology = topology
        self.device: torch.device = accelerator.device
        self.precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
        self.threads = threads
        self.rank, self.world_size, self.is_main = topology.rank, topology.world_size, topology.is_main
        self.shards = shards
        self.local_shards = max(shards // self.world_size, 1)
        self.thread_pool = ThreadPool(min(threads, self.local_shards) if self.device.type == "cpu" else 1)
        self.comm_timer = CommTimer()
        self.stop_flag = torch.zeros((), dtype=torch.int32)
        self.stop_work: tuple[Any, Tensor] | None = None
        self.control: Any = None
        self.timeout = timeout.total_seconds()
        self.memory = contextlib.ExitStack()
        self.shared: SharedMemoryGather | None = None
        self.asked: bool | None = None  # whether a stop was asked for, where this step's exchange said it already
        if self.world_size > 1:
            # In torch 2.15 the gloo backend can abort a process that exits (`terminate called without an active
            # exception`; seen in 13 of 90 runs of a bare DistributedDataParallel loop): the run would count as failed.
            skip_exit_hooks()
            # Control messages have a group of their own on the host, so that they never wait for the device.
            self.control = dist.new_group(backend="gloo", timeout=timeout)

    # What the user sees at the start

    @property
    def device_name(self) -> str:
        """The GPU's name, or the kind of device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def fingerprint(self) -> dict[str, str]:
        """What decides how this process's kernels round."""
        return fingerprint(self.device, self.precision)

    def describe(self) -> dict[str, str]:
        """The resolved topology, for the console."""
        backend = f", {dist.get_backend()}" if self.world_size > 1 else ""
        backend += " and shared memory" if self.shared else ""
        machines = f" on {self.topology.machines} machine{'s' * (self.topology.machines > 1)}"
        return {
            "launcher": self.topology.describe(),
            "processes": f"{self.world_size}{machines}{backend}",
            "device": f"{self.device_name}, {self.threads} CPU thread{'s' * (self.threads > 1)} each",
            "precision": self.precision + ("" if self.topology.fsdp else ", channels last"),
        }

    # The model and its optimizer

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory format that convolutions are fastest in."""
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def wrap(self, model: nn.Module) -> nn.Module:
        """A placed model for data-parallel training in mixed precision."""
        return self.accelerator.prepare_model(model, device_placement=False)

    def stepper(self, optimizer: Optimizer) -> Any:
        """What makes an optimizer's steps in mixed precision.

        The optimizer is not moved: that would cut its ties to the parameters' memory.
        """
        if self.accelerator.scaler is None:  # accelerate's wrapper would look for a package at each step, for 0.2 ms
            return Stepper(optimizer.step)
        return self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass, for a model that was not wrapped. Threads may be in it at once."""
        # Not accelerate's, which takes 0.25 ms to enter. Casts are not kept: no weight is used twice in a pass, and
        # threads would share what is kept.
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype, cache_enabled=False) if dtype else contextlib.nullcontext()

    def no_sync(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Put forward and backward of one part of a step in here: only the last one averages over the processes."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def scale(self, loss: Tensor) -> Tensor:
        """What to compute the gradients of: the loss, scaled in fp16."""
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def unscale(self, norm: Tensor) -> Tensor:
        """The norm of a gradient of what `scale` gave, as if it had not been scaled; does not wait for the device."""
        return norm if self.accelerator.scaler is None else norm / self.scale(torch.ones_like(norm))

    def clip(self, model: nn.Module, limit: float) -> Tensor:
        """Scale the whole gradient down to L2 norm `limit` if it is larger; gives the norm before, on the device."""
        return self.accelerator.clip_grad_norm_(model.parameters(), limit)

    def scaler_state(self) -> dict[str, Any]:
        """The gradient scaler's plain numbers (fp16), else empty."""
        scaler = self.accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Continue with the scale that `scaler_state` gave."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

    # The threads of this process

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function to each item; where there are shards, on this process's threads."""
        return self.thread_pool.map(function, items)

    # Exchanges between all processes: every process must call them, in the same order

    def enable_shared_memory(self, capacity: int) -> None:
        """Have exchanges of so many bytes at most go through memory, where all processes share one."""
        if self.device.type == "cpu" and self.world_size > self.topology.machines == 1:
            self.shared = open_shared_memory(self.rank, capacity, self.timeout, self.all_gather_object)
            if self.shared is not None:
                self.memory.callback(self.shared.close)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world_size > 1:
            with self.comm_timer.exchange():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum of a tensor over all processes, in place."""
        if self.world_size > 1:
            with self.comm_timer.exchange():
                if self.shared is not None and tensor.nbytes <= self.shared.capacity:
                    tensor.copy_(self.shared.gather(tensor[None]).amax(0))
                else:
                    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows (n, P) of every process, by rank: (world_size * n, P)."""
        if self.world_size == 1:
            return rows
        if self.shared is not None and rows.nbytes <= self.shared.capacity:
            with self.comm_timer.exchange():
                gathered = self.shared.gather(rows, asking=bool(self.stop_flag))
            self.asked = self.shared.asked
            return gathered
        gathered = rows.new_empty(self.world_size * len(rows), rows.shape[1])
        with self.comm_timer.exchange():
            dist.all_gather_into_tensor(gathered, rows)
        return gathered

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every process. For small plain Python values."""
        if self.world_size == 1:
            return value
        box = [value]
        with self.comm_timer.exchange():
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Every process's value, by rank, on every process. For small plain Python values."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        with self.comm_timer.exchange():
            dist.all_gather_object(box, value, group=self.control)
        return box

    def run_on_main(self, action: Callable[[], T]) -> T:
        """Run something on rank 0 alone and give every process its result, or its error."""
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

    def check_ranks_agree_on(self, what: str, values: dict[str, Any]) -> None:
        """Stop if some process has other values than rank 0.

        Raises:
            UserError: names the keys that differ and the ranks.
        """
        self.check_ranks_agree({what: values})

    def check_ranks_agree(self, claims: dict[str, dict[str, Any]]) -> list[float]:
        """The same of several things, by name, in one exchange; the first that differs counts.

        Gives every process's clock by rank, read as close together as the processes are, in seconds since 1970.
        """
        answers = self.all_gather_object((claims, time.time()))
        for what, first in answers[0][0].items():
            for rank, (theirs, _) in enumerate(answers[1:], start=1):
                other = theirs.get(what, {})
                keys = sorted(key for key in first.keys() | other.keys() if other.get(key) != first.get(key))
                if keys:
                    shown = ", ".join(f"{k}={other.get(k)!r} against {first.get(k)!r}" for k in keys[:3])
                    raise UserError(f"{what} of rank {rank} differs from rank 0's: {shown}; start all with the same")
        return [clock for _, clock in answers]

    # Stopping together

    def request_stop(self) -> None:
        """Ask all processes to stop at the next step boundary. Safe in a signal handler: it only sets a flag."""
        self.stop_flag.fill_(1)

    def should_stop(self) -> bool:
        """Whether any process was asked to stop. Call it once a step, on every process.

        The answer is the one that this step's exchange of gradients brought along or, without one, the one asked for at
        the previous call, so that the exchange overlaps with the step between; it is the same on every process.
        """
        if self.topology.launcher and os.getppid() != self.topology.launcher:
            self.request_stop()  # the launcher was killed and took nobody along: do not train on unseen
        if self.control is None:
            return bool(self.stop_flag)
        if self.asked is not None:
            answer, self.asked = self.asked, None
            return answer
        answer = self.answer()
        flag = self.stop_flag.clone()
        self.stop_work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.control, async_op=True), flag
        return answer

    def answer(self) -> bool:
        """What the last call's question found out; no question is open then."""
        if self.stop_work is None:
            return False
        (work, flag), self.stop_work = self.stop_work, None
        with self.comm_timer.exchange():
            work.wait()
        return bool(flag)


@contextlib.contextmanager
def start_runtime(config: Config, topology: Topology) -> Iterator[Runtime]:
    """Join the run's process group, and leave it at the end, whatever happens.

    Raises:
        UserError: a precision or a number of processes that this machine cannot do.
        TrainingError: another process did not arrive in time, ended early, or stopped answering.
    """
    cpu = use_cpu(config, topology)
    shards = 0 if topology.fsdp else config.shards(topology.world_size, cpu)
    threads = configure_torch(config, topology, shards)
    if topology.machines > 1:
        set_gloo_interface(topology.address)
    try:
        with rendezvous_errors(topology, config.run.timeout, partial(is_in_store, topology)):
            accelerator = open_accelerator(config, topology, cpu)
            if accelerator.num_processes != topology.world_size:
                raise UserError(
                    f"the launcher started {topology.world_size} processes, but accelerate sees "
                    f"{accelerator.num_processes}: they would train apart and overwrite each other; use a file from "
                    "launch/"
                )
            runtime = Runtime(accelerator, topology, threads, shards, timedelta(seconds=config.run.timeout))
            peer_monitor = open_peer_monitor(topology, config.run.timeout, runtime.all_gather_object)
        with stop_on_signals(runtime.request_stop), peer_monitor, runtime.thread_pool, runtime.memory:
            yield runtime
            runtime.answer()  # a group that is destroyed with work in flight can abort the process
    finally:
        destroy_process_group()

"""Rank 0 of a run of any size, alone in this process: torch's fake process group, whose collectives return at once.

Nothing comes from the other ranks, so what a step computes means nothing. But it is the real step of the real strategy:
it shows whether a rank can do it, what memory it takes and what it sends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mnist_dist.config.schema import Config
from mnist_dist.distributed.device import configure_torch, restored_torch_state
from mnist_dist.distributed.rendezvous import create_accelerator, destroy_process_group
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.optim.eager import without_dynamo
from mnist_dist.utils.environment import restored_environment

T = TypeVar("T")

COMPRESSED = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NoFakeGroup(Exception):
    """This version of torch has no fake process group."""


class FakeGroupRuntime(Runtime):
    """A `Runtime` whose collectives are those of the fake group."""

    def create_control_group(self, timeout: timedelta) -> Any:
        """A fake group, too."""
        return dist.new_group(backend="fake")

    def broadcast(self, value: T) -> T:
        """The value of rank 0, which this is."""
        return value

    def all_gather_object(self, value: T) -> list[T]:
        """The value of this rank, as if all others had the same."""
        return [value] * self.world_size

    def enable_shared_memory(self, capacity: int) -> None:
        """Does nothing: there is no other process to share memory with."""


@contextlib.contextmanager
def start_fake_runtime(config: Config, topology: Topology, shards: int, cpu: bool) -> Iterator[FakeGroupRuntime]:
    """Be rank 0 of `topology.world_size` ranks; at the end of the block, the process is left as it was.

    Args:
        topology: of rank 0.
        shards: number of fixed shards of a global batch; 0 without them.
        cpu: whether to compute on the CPU.

    Raises:
        UserError: this machine lacks the precision.
        NoFakeGroup: torch, which keeps it for its own tests, has none.
    """
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise NoFakeGroup from error
    # DistributedDataParallel gets its own hook below, and takes only one.
    plain = config.model_copy(update={"train": config.train.model_copy(update={"compress": "no"})})
    with restored_environment(), restored_torch_state():
        threads = configure_torch(config, topology, shards)
        try:
            if topology.world_size > 1:
                numbers = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": topology.world_size}
                numbers["LOCAL_WORLD_SIZE"] = topology.local_world_size
                os.environ.update({name: str(number) for name, number in numbers.items()})
                dist.init_process_group("fake", rank=0, world_size=topology.world_size, store=FakeStore())
            accelerator = create_accelerator(plain, topology, cpu)
            prepare_model, dtype = accelerator.prepare_model, COMPRESSED[config.train.compress]

            def prepare(model: nn.Module, **options: Any) -> nn.Module:
                wrapped: nn.Module = prepare_model(model, **options)
                if isinstance(wrapped, nn.parallel.DistributedDataParallel):
                    # Its own all-reduce would wait for a result, which the fake group does not give.
                    wrapped.register_comm_hook(dtype, lambda dtype, bucket: send_bucket(dtype, bucket))
                return wrapped

            accelerator.prepare_model = prepare
            timeout = timedelta(seconds=config.run.timeout)
            runtime = FakeGroupRuntime(accelerator, topology, threads, shards, timeout)
            with runtime.thread_pool, runtime.on_exit:
                yield runtime
        finally:
            destroy_process_group()


def send_bucket(dtype: torch.dtype | None, bucket: Any) -> torch.futures.Future[Tensor]:
    """All-reduce a `GradBucket` of DistributedDataParallel, rounded to `dtype` if it is given."""
    gradients: Tensor = bucket.buffer()
    dist.all_reduce(gradients if dtype is None else gradients.to(dtype))
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


class TrafficCounter(TorchDispatchMode):
    """Within the block, counts what this rank sends by collectives, if these are done over a ring of all ranks.

    Args:
        world_size: number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size
        self.sent = 0.0
        """Bytes. A rank receives as many."""
        self.gathered = 0
        """Bytes of the largest tensor that an all-gather filled."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.add(func.__name__, max(map(count_bytes, args)))
        return func(*args, **(kwargs or {}))

    def add(self, name: str, size: int) -> None:
        """Count a collective over `size` bytes. An all-reduce is a reduce-scatter and an all-gather."""
        passes = 2 if "allreduce" in name else 1
        self.sent += passes * size * (self.world_size - 1) / self.world_size
        if "allgather" in name:
            self.gathered = max(self.gathered, size)


# torch wraps the method for its compiler, which takes 150 MB and a second to import.
TrafficCounter.__torch_dispatch__ = without_dynamo(TrafficCounter.__torch_dispatch__)  # type: ignore[method-assign]


def count_bytes(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in a list; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(count_bytes, value)) if isinstance(value, list | tuple) else 0

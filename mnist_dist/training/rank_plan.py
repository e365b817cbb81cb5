"""What the settings, the launcher's variables and this machine make of N processes that are not started."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from mnist_dist.config.fsdp import read_fsdp
from mnist_dist.config.schema import Config
from mnist_dist.distributed.cpu_count import default_threads
from mnist_dist.distributed.device import count_gpus, find_accelerator, native_precision, should_use_cpu
from mnist_dist.distributed.rendezvous import resolve_precision
from mnist_dist.distributed.topology import Topology


@dataclass(frozen=True)
class RankPlan:
    """How N processes would be set up."""

    topology: Topology
    """Of rank 0."""
    shards: int
    """Fixed shards of a global batch; 0 without them."""
    device: str
    """Type of the processes' device."""
    is_here: bool
    """Whether this machine has such a device."""
    precision: str
    """`no`, `fp16` or `bf16`."""
    cores: int
    """CPU cores of this machine that a run may use."""


def plan_ranks(config: Config, topology: Topology, world_size: int) -> RankPlan:
    """Plan `world_size` processes on machines like this one; with run.device=cuda also where this one has no GPU.

    Args:
        topology: of this process, which is alone.

    Raises:
        UserError: the device or the precision cannot be had.
    """
    gpus = count_gpus()
    fsdp = read_fsdp(os.environ) if world_size > 1 else None
    topology = replace(topology, world_size=world_size, local_world_size=min(world_size, gpus or world_size), fsdp=fsdp)
    is_here = config.run.device != "cuda" or find_accelerator() == "cuda"
    cpu = is_here and should_use_cpu(config, topology)
    if cpu:
        topology = replace(topology, local_world_size=world_size)
    device = "cpu" if cpu else find_accelerator() if is_here else "cuda"
    precision = resolve_precision(config, cpu, native_precision(cpu) if is_here else "bf16")
    shards = 0 if fsdp else config.shards(world_size, cpu)
    return RankPlan(topology, shards, device, is_here, precision, cores=default_threads(Topology()))

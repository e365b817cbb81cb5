"""Which of how many processes this is, as the launcher's environment says it. Read once, before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from mnist_dist.errors import UserError

ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""What `accelerate launch` sets for engines that cut up the model; on CPUs accelerate itself would pass over some."""


@dataclass(frozen=True)
class Topology:
    """This process's place. One process without a launcher is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = ""
    cpu_asked: bool = False
    """Whether `accelerate launch` was told to use the CPU."""
    launcher: int = 0
    """Process id of the torchrun or `accelerate launch` that started this process; 0 without one."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this process acts for its machine: fetching data, reporting what is wrong here."""
        return self.local_rank == 0

    @property
    def machines(self) -> int:
        """Number of machines, all with as many processes as this one."""
        return -(-self.world_size // self.local_world_size)

    def default_threads(self) -> int:
        """CPU threads for each process: the physical cores that this machine lets us use, over its processes.

        Launchers set OMP_NUM_THREADS=1 where nothing is said, which halves the speed of a small machine.
        """
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(psutil.cpu_count(logical=False) or allowed, allowed)
        return max(cores // self.local_world_size, 1)


def read_topology(environment: Mapping[str, str] = os.environ) -> Topology:
    """The topology that torchrun or `accelerate launch` describes in the environment.

    Raises:
        UserError: the variables are not numbers, contradict each other, or ask for what is not supported.
    """
    for name, engine in ENGINES.items():
        if environment.get(name, "").lower() in ("1", "true", "yes"):
            raise UserError(
                f"{name}={environment[name]} (environment): {engine} is not supported, each process has the whole "
                "model; start with a file from launch/"
            )

    def number(name: str, default: int) -> int:
        text = environment.get(name, "")
        try:
            return int(text) if text else default
        except ValueError:
            raise UserError(f"{name}={text!r} (environment): must be a whole number, as the launcher sets it") from None

    rank, world_size = number("RANK", 0), number("WORLD_SIZE", 1)
    local_rank, local_world_size = number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", world_size)
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={rank} (environment): must be from 0 to WORLD_SIZE-1, and WORLD_SIZE={world_size}")
    if not 0 <= local_rank < local_world_size <= world_size:
        raise UserError(
            f"LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE={local_world_size}, WORLD_SIZE={world_size} (environment): "
            "must satisfy 0 <= LOCAL_RANK < LOCAL_WORLD_SIZE <= WORLD_SIZE"
        )
    address = environment.get("MASTER_ADDR", "")
    if world_size > 1 and not address:
        raise UserError(f"WORLD_SIZE={world_size} (environment), but MASTER_ADDR is not set; start with a launcher")
    return Topology(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        address=f"{address}:{environment.get('MASTER_PORT', '29500')}" if address else "",
        cpu_asked=environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"),
        launcher=os.getppid() if environment.keys() & {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} else 0,
    )


def yield_while_waiting() -> None:
    """Let waiting CPU threads sleep instead of spin. Call it before torch is imported, whose OpenMP reads it once.

    On a machine that does something else too, spinning threads wait for ones that are not running: the first epoch of
    the default recipe took 80 s beside other work on two cores, and 12 s with threads that sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

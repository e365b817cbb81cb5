"""Which of how many processes this is, as the launcher's environment says it. Read once, before torch is imported."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from mnist_dist.config.fsdp import Fsdp, read_fsdp
from mnist_dist.distributed.cluster_environment import ClusterEnvironment, detect_cluster
from mnist_dist.utils.errors import UserError


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
    started_by: str = ""
    """The launcher's name, for people; empty without one."""
    place: ClusterEnvironment | None = None
    """What another launcher than torchrun said, where that is what counts."""
    fsdp: Fsdp | None = None
    """How the model is to be cut up, where several processes were told to."""

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
        """Number of machines; where no launcher says it, all with as many processes as this one."""
        return (self.place and self.place.machines) or -(-self.world_size // self.local_world_size)

    @property
    def machine(self) -> int:
        """Which machine this is, from 0; where no launcher says it, ranks are counted up machine by machine."""
        known = self.place is not None and self.place.machine >= 0
        return self.place.machine if self.place and known else self.rank // self.local_world_size

    def describe(self) -> str:
        """The launcher and what it said, for the console."""
        started_by = self.started_by or "none"
        if self.world_size == 1:
            return started_by
        return f"{started_by}, rank {self.rank} of {self.world_size}, meeting at {self.address}"

    def default_threads(self) -> int:
        """CPU threads for each process: the physical cores that machine and container let us use, over its processes.

        Launchers set OMP_NUM_THREADS=1 where nothing is said, which halves the speed of a small machine.
        """
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(psutil.cpu_count(logical=False) or allowed, allowed, cpu_limit())
        return max(int(cores // self.local_world_size), 1)


def cpu_limit(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that a container may use by its cgroup (version 2, else 1); infinity where nothing limits it."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            return int(quota) / int(period)
    return math.inf


def resolve_topology() -> Topology:
    """This process's topology, which torch's env:// and accelerate are told too, whatever launcher said it.

    Raises:
        UserError: as `read_topology`.
    """
    topology = read_topology()
    if topology.place:
        host, _, port = topology.address.rpartition(":")
        os.environ.update(
            RANK=str(topology.rank),
            WORLD_SIZE=str(topology.world_size),
            LOCAL_RANK=str(topology.local_rank),
            LOCAL_WORLD_SIZE=str(topology.local_world_size),
            MASTER_ADDR=host,
            MASTER_PORT=port,
        )
    return topology


def read_topology(environment: Mapping[str, str] = os.environ) -> Topology:
    """The topology that the environment describes: torchrun's and `accelerate launch`'s, or another launcher's.

    What torchrun says counts also inside another launcher, as with one torchrun a machine started by srun. RANK that
    was set without it must agree with the launcher that there is.

    Raises:
        UserError: the variables are not numbers, contradict each other, or ask for what is not supported.
    """
    fsdp = read_fsdp(environment)
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    is_given = bool(environment.get("RANK") or environment.get("WORLD_SIZE"))
    cpu_asked = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    launcher = os.getppid() if by_torchrun or by_accelerate else 0
    place = None if by_torchrun and is_given else detect_cluster(environment)
    if place:
        if is_given:
            check_agreement(environment, place)
        return Topology(
            rank=place.rank,
            world_size=place.world_size,
            local_rank=place.local_rank,
            local_world_size=place.local_world_size,
            address=f"{place.address}:{place.port}",
            cpu_asked=cpu_asked,
            launcher=launcher,
            started_by=place.launcher,
            place=place,
            fsdp=fsdp,
        )
    rank, world_size, local_rank, local_world_size = read_ranks(environment)
    address = environment.get("MASTER_ADDR", "")
    if world_size > 1 and not address:
        raise UserError(f"WORLD_SIZE={world_size} (environment), but MASTER_ADDR is not set; start with a launcher")
    by_hand = "RANK in the environment" if is_given else ""
    return Topology(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        address=f"{address}:{environment.get('MASTER_PORT', '29500')}" if address else "",
        cpu_asked=cpu_asked,
        launcher=launcher,
        started_by="accelerate launch" if by_accelerate else "torchrun" if by_torchrun else by_hand,
        fsdp=fsdp if world_size > 1 else None,
    )


def check_agreement(environment: Mapping[str, str], place: ClusterEnvironment) -> None:
    """Raise UserError where RANK or WORLD_SIZE was set to something else than the launcher says."""
    for name, value, theirs in (
        ("RANK", place.rank, place.rank_name),
        ("WORLD_SIZE", place.world_size, place.size_name),
    ):
        text = environment.get(name, "")
        if text and text != str(value):
            raise UserError(f"{name}={text} (environment), but {theirs}={value}: unset {name}, which is not needed")


def read_ranks(environment: Mapping[str, str]) -> tuple[int, int, int, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without the last two, all processes are on one machine.

    Raises:
        UserError: they are not numbers, or contradict each other.
    """

    def number(name: str, default: int) -> int:
        text = environment.get(name, "")
        try:
            return int(text) if text else default
        except ValueError:
            raise UserError(f"{name}={text!r} (environment): must be a whole number, as the launcher sets it") from None

    rank, world_size = number("RANK", 0), number("WORLD_SIZE", 1)
    local_rank, local_world_size = number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", world_size)
    if world_size > 1 and not environment.get("RANK"):
        raise UserError(f"RANK is not set (environment), but WORLD_SIZE={world_size} is; start with a launcher")
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={rank} (environment): must be from 0 to WORLD_SIZE-1, and WORLD_SIZE={world_size}")
    if not 0 <= local_rank < local_world_size <= world_size:
        raise UserError(
            f"LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE={local_world_size}, WORLD_SIZE={world_size} (environment): "
            "must satisfy 0 <= LOCAL_RANK < LOCAL_WORLD_SIZE <= WORLD_SIZE"
        )
    return rank, world_size, local_rank, local_world_size


def yield_while_waiting() -> None:
    """Let waiting CPU threads sleep instead of spin. Call it before torch is imported, whose OpenMP reads it once.

    On a machine that does something else too, spinning threads wait for ones that are not running: the first epoch of
    the default recipe took 80 s beside other work on two cores, and 12 s with threads that sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""Rank, world size and machine of this process, from the launcher's environment; read before torch is imported."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mnist_dist.config.fsdp import FSDPConfig, is_on, read_fsdp
from mnist_dist.distributed.cluster_environment import ClusterEnvironment, detect_cluster, read_int
from mnist_dist.distributed.launcher import find_launcher, leave_debug_group
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.exit import rely_on_local_main

_runs = itertools.count()


@dataclass(frozen=True)
class Topology:
    """Ranks and sizes as torch names them. A process without a launcher is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = ""
    """HOST:PORT of the rendezvous (MASTER_ADDR, MASTER_PORT); may be empty for a single process."""
    use_cpu: bool = False
    """Whether `accelerate launch` was told to use the CPU (`--cpu`, or `use_cpu` in its file)."""
    launcher_pid: int = 0
    """Process id of the torchrun or `accelerate launch` that started this process; 0 without one."""
    worker_pid: int = 0
    """Process id of the process that it started: this one, or one in between; 0 without a launcher."""
    restart_count: int = 0
    """How often that launcher has restarted its processes because one failed."""
    launcher_name: str = ""
    """For the console; empty without a launcher."""
    cluster: ClusterEnvironment | None = None
    """What a launcher other than torchrun set, if the ranks come from it."""
    fsdp: FSDPConfig | None = None
    """The launcher's FSDP settings; None if the model is not to be sharded, and for a single process."""
    earlier_runs: int = field(default=0, compare=False)
    """How many runs this process has started before: a program may train and evaluate several times."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this process does what its machine needs once: fetching the data, reporting errors."""
        return self.local_rank == 0

    @property
    def machines(self) -> int:
        """Number of machines. If no launcher sets it, all are assumed to have as many processes as this one."""
        return (self.cluster and self.cluster.machines) or -(-self.world_size // self.local_world_size)

    @property
    def machine_rank(self) -> int:
        """Number of this machine, from 0. If no launcher sets it, ranks are assumed to be consecutive on a machine."""
        if self.cluster and self.cluster.machine_rank >= 0:
            return self.cluster.machine_rank
        return self.rank // self.local_world_size

    def describe(self) -> str:
        """Launcher, rank and rendezvous, for the console."""
        launcher = self.launcher_name or "none"
        if self.world_size == 1:
            return launcher
        return f"{launcher}, rank {self.rank} of {self.world_size}, rendezvous at {self.address}"


def resolve_topology() -> Topology:
    """Read the topology; if it comes from another launcher than torchrun, set torch's variables (RANK, ...) to it.

    A process of accelerate.debug_launcher leaves the group that it was started in.

    Raises:
        UserError: as `read_topology`.
    """
    for name in ("MASTER_ADDR", "PET_MASTER_ADDR"):
        if os.environ.get(name, "").startswith("["):  # an IPv6 address as in a URL; torch takes it without brackets
            os.environ[name] = os.environ[name].strip("[]")
    leave_debug_group()
    topology = read_topology()
    if topology.cluster:
        rely_on_local_main()
        host, _, port = topology.address.rpartition(":")
        os.environ.update(
            RANK=str(topology.rank),
            WORLD_SIZE=str(topology.world_size),
            LOCAL_RANK=str(topology.local_rank),
            LOCAL_WORLD_SIZE=str(topology.local_world_size),
            MASTER_ADDR=host,
            MASTER_PORT=port,
        )
    return replace(topology, earlier_runs=next(_runs))


def read_topology(environment: Mapping[str, str] = os.environ) -> Topology:
    """The topology that the environment describes, as set by torchrun, `accelerate launch` or another launcher.

    torchrun's variables win inside another launcher, as where srun starts one torchrun per machine. RANK and WORLD_SIZE
    that were not set by torchrun must agree with the other launcher's variables.

    Raises:
        UserError: variables are not numbers, contradict each other, or ask for what is not supported.
    """
    fsdp = read_fsdp(environment)
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    is_given = bool(environment.get("RANK") or environment.get("WORLD_SIZE"))
    use_cpu = is_on(environment, "ACCELERATE_USE_CPU")
    launcher_pid, worker_pid = find_launcher() if by_torchrun or by_accelerate else (0, 0)
    restart_count = read_int(environment, "TORCHELASTIC_RESTART_COUNT", default=0) if launcher_pid else 0
    cluster = None if by_torchrun and is_given else detect_cluster(environment)
    if cluster:
        if is_given:
            check_same_ranks(environment, cluster)
        return Topology(
            rank=cluster.rank,
            world_size=cluster.world_size,
            local_rank=cluster.local_rank,
            local_world_size=cluster.local_world_size,
            address=f"{cluster.main_address}:{cluster.main_port}",
            use_cpu=use_cpu,
            launcher_pid=launcher_pid,
            worker_pid=worker_pid,
            restart_count=restart_count,
            launcher_name=cluster.launcher_name,
            cluster=cluster,
            fsdp=fsdp,
        )
    rank, world_size, local_rank, local_world_size = read_ranks(environment)
    address = environment.get("MASTER_ADDR", "")
    if world_size > 1 and not address:
        raise UserError(f"WORLD_SIZE={world_size} (environment), but MASTER_ADDR is not set; start with a launcher")
    name = "RANK in the environment" if is_given else ""
    if launcher_pid or by_torchrun:
        name = "accelerate launch" if by_accelerate else "torchrun"
    return Topology(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        address=f"{address}:{environment.get('MASTER_PORT', '29500')}" if address else "",
        use_cpu=use_cpu,
        launcher_pid=launcher_pid,
        worker_pid=worker_pid,
        restart_count=restart_count,
        launcher_name=name,
        fsdp=fsdp if world_size > 1 else None,
    )


def check_same_ranks(environment: Mapping[str, str], cluster: ClusterEnvironment) -> None:
    """Raise UserError if RANK or WORLD_SIZE is set to another value than the launcher's own variable."""
    for name, value, theirs in (
        ("RANK", cluster.rank, cluster.rank_variable),
        ("WORLD_SIZE", cluster.world_size, cluster.world_size_variable),
    ):
        text = environment.get(name, "")
        if text and text != str(value):
            raise UserError(f"{name}={text} (environment), but {theirs}={value}: unset {name}, which is not needed")


def read_ranks(environment: Mapping[str, str]) -> tuple[int, int, int, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. Without the last two, one machine is assumed.

    Raises:
        UserError: they are not numbers, or contradict each other.
    """
    rank = read_int(environment, "RANK", default=0)
    world_size = read_int(environment, "WORLD_SIZE", default=1)
    local_rank = read_int(environment, "LOCAL_RANK", default=rank)
    local_world_size = read_int(environment, "LOCAL_WORLD_SIZE", default=world_size)
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


def set_omp_wait_policy() -> None:
    """Make waiting OpenMP threads sleep instead of spin. Call it before torch is imported: OpenMP reads it once.

    On a busy machine, spinning threads keep the cores from the ones they wait for: the first epoch of the default
    recipe took 80 s beside other work on two cores, and 12 s with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

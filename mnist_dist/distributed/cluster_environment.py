"""Where launchers other than torchrun say which process this is: Slurm's srun, MPI's mpirun, Kubeflow.

Each launcher sets environment variables of its own; here they become one `ClusterEnvironment`. If launchers are nested,
the innermost one counts: mpirun starts its helpers on other machines by srun, whose variables processes inherit.

The variables' meanings, and where they are written down:
- srun(1), "Output environment variables" (slurm.schedmd.com/srun.html); which of them only a step has, and a batch
  script or an salloc shell has not: `env_array_for_step` in Slurm's src/common/env.h.
- Open MPI, "Environment variables set for MPI applications" (docs.open-mpi.org, tuning-apps/environment-var); seen as
  said with Debian's 4.1.4, which sets PMIX_NAMESPACE too, the same for all processes of an mpirun.
- MPICH's and Intel MPI's hydra: PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS; seen with Debian's MPICH 4.0.2.
- PET_*: torchrun's own defaults (torch/distributed/argparse_util.py), set by Kubeflow's Trainer v2 for every machine
  (kubeflow/trainer, pkg/runtime/framework/plugins/torch).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from mnist_dist.utils.errors import UserError

ONE_MACHINE = "127.0.0.1"
TORCH_PORT = 29500
"""What torch takes where nothing is said."""

HOST = r"(?:[\w.-]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"
HOSTS = re.compile(rf"({HOST})(?:,{HOST})*")
TASKS = re.compile(r"([1-9]\d{0,6})(?:\(x([1-9]\d{0,6})\))?")


@dataclass(frozen=True)
class ClusterEnvironment:
    """Which of how many processes this is, as a launcher says it. Only for two processes or more."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    rank_name: str
    """The variable that says the rank, for messages."""
    size_name: str
    """The variable that says how many processes there are."""
    machine: int = -1
    """Which machine this is, from 0; -1 where the launcher does not say it."""
    machines: int = 0
    """Number of machines; 0 where the launcher does not say it."""


def detect_cluster(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """The place that the innermost launcher gives this process; None for one process, and without such a launcher.

    Raises:
        UserError: names a variable that is missing, no number, or contradicts another.
    """
    srun = srun_environment(environment)
    if srun and (environment.get("PMI_RANK"), environment.get("PMI_SIZE")) == (str(srun.rank), str(srun.world_size)):
        return srun  # `srun --mpi=pmi2` sets both, and only srun says which machine this is
    return mpi_environment(environment) or srun or kubeflow_environment(environment)


def srun_environment(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """This task of a step, as srun says it.

    A batch script and an salloc shell are no steps: there SLURM_NTASKS is what the job may start.
    """
    if not environment.keys() & {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"}:
        return None
    size_name = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if environment.get(name)), "")
    if not size_name or (world_size := whole(environment, size_name)) == 1:
        return None
    rank, local_rank = whole(environment, "SLURM_PROCID", size_name), whole(environment, "SLURM_LOCALID", size_name)
    tasks = read_tasks(environment, "SLURM_STEP_TASKS_PER_NODE", size_name)
    machine = whole(environment, "SLURM_NODEID", size_name) if len(tasks) > 1 else 0
    check_below(environment, "SLURM_PROCID", world_size, size_name)
    if machine >= len(tasks) or local_rank >= tasks[machine]:
        raise UserError(
            f"SLURM_NODEID={machine}, SLURM_LOCALID={local_rank} (environment): there is no such task in "
            f"SLURM_STEP_TASKS_PER_NODE={environment['SLURM_STEP_TASKS_PER_NODE']!r}"
        )
    step = whole(environment, "SLURM_STEP_ID" if environment.get("SLURM_STEP_ID") else "SLURM_STEPID", default=0)
    job = whole(environment, "SLURM_JOB_ID", default=0)
    address = environment.get("MASTER_ADDR") or (
        ONE_MACHINE if len(tasks) == 1 else first_host(environment, "SLURM_STEP_NODELIST", size_name)
    )
    return ClusterEnvironment(
        "srun",
        rank,
        world_size,
        local_rank,
        tasks[machine],
        address,
        port_of(environment, 10 * job + step),  # two steps of one job may meet on the same machine
        "SLURM_PROCID",
        size_name,
        machine,
        len(tasks),
    )


def mpi_environment(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """This process of an mpirun: Open MPI's, MPICH's or Intel MPI's."""
    ompi = "OMPI_COMM_WORLD_"
    kinds = {
        "Open MPI": (f"{ompi}RANK", f"{ompi}SIZE", f"{ompi}LOCAL_RANK", f"{ompi}LOCAL_SIZE"),
        "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    }
    for launcher, names in kinds.items():
        found = next((name for name in names[:2] if environment.get(name)), "")
        if not found:
            continue
        rank_name, size_name, local_rank_name, local_size_name = names
        world_size = whole(environment, size_name, found)
        if world_size == 1:
            return None
        rank, local_rank, local_world_size = (
            whole(environment, name, size_name) for name in (rank_name, local_rank_name, local_size_name)
        )
        check_below(environment, rank_name, world_size, size_name)
        check_below(environment, local_rank_name, local_world_size, local_size_name)
        address = environment.get("MASTER_ADDR", "") or (ONE_MACHINE if local_world_size == world_size else "")
        if not address:
            raise UserError(
                f"MASTER_ADDR is not set (environment), but {launcher} started processes on several machines "
                f"({size_name}={world_size}, {local_size_name}={local_world_size}): hand them the address of rank 0's "
                "machine, as mpirun -x MASTER_ADDR=10.0.0.1 or mpiexec -genv MASTER_ADDR 10.0.0.1"
            )
        name = environment.get("PMIX_NAMESPACE", "")
        port = port_of(environment, zlib.crc32(name.encode()) if name else None)
        places = rank, world_size, local_rank, local_world_size
        return ClusterEnvironment(launcher, *places, address, port, rank_name, size_name)
    return None


def kubeflow_environment(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """The one process of a machine of Kubeflow's: torchrun would start it, and reads the same variables."""
    if not environment.keys() & {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK"}:
        return None
    each, machines = environment.get("PET_NPROC_PER_NODE") or "1", environment.get("PET_NNODES") or "1"
    for name, text in (("PET_NPROC_PER_NODE", each), ("PET_NNODES", machines)):
        if (name == "PET_NPROC_PER_NODE" and text != "1") or ":" in text:
            raise UserError(
                f"{name}={text!r} (environment): torchrun starts that many processes, and reads PET_* itself; "
                "start by torchrun -m mnist_dist.train instead of python -m mnist_dist.train"
            )
    world_size = whole(environment, "PET_NNODES", default=1)
    if world_size == 1:
        return None
    rank = whole(environment, "PET_NODE_RANK", "PET_NNODES")
    check_below(environment, "PET_NODE_RANK", world_size, "PET_NNODES")
    address = environment.get("PET_MASTER_ADDR") or environment.get("MASTER_ADDR", "")
    if not address:
        raise UserError(f"PET_MASTER_ADDR is not set (environment), but PET_NNODES={world_size}")
    port_name = "PET_MASTER_PORT" if environment.get("PET_MASTER_PORT") else "MASTER_PORT"
    port = whole(environment, port_name, default=TORCH_PORT)
    names = "PET_NODE_RANK", "PET_NNODES"
    return ClusterEnvironment("Kubeflow (PET_*)", rank, world_size, 0, 1, address, port, *names, rank, world_size)


def whole(environment: Mapping[str, str], name: str, because: str = "", default: int | None = None) -> int:
    """A variable's value, a whole number of at least 0.

    Args:
        because: a variable that is set, wherefore this one must be set too.
        default: what an unset one counts as; None refuses it.

    Raises:
        UserError: no such number, or not set.
    """
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text:
        raise UserError(f"{name} is not set (environment), but {because}={environment.get(because)} is: {HAND_ON}")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"{name}={text!r} (environment): must be a whole number, as the launcher sets it")
    return int(text)


HAND_ON = "the launcher sets both; hand its whole environment on"


def check_below(environment: Mapping[str, str], name: str, size: int, size_name: str) -> None:
    """Raise UserError for a rank that is not below its size."""
    if int(environment[name]) >= size:
        raise UserError(
            f"{name}={environment[name]} (environment): must be from 0 to {size_name}-1, and {size_name}={size}"
        )


def read_tasks(environment: Mapping[str, str], name: str, size_name: str) -> list[int]:
    """The tasks on each machine of a step: `2(x3),1` is [2, 2, 2, 1].

    Raises:
        UserError: not written like that, or not as many in all as there are tasks.
    """
    text = environment.get(name, "")
    if not text:
        whole(environment, name, size_name)
    parts = [TASKS.fullmatch(part) for part in text.split(",")]
    counts = [(int(part[1]), int(part[2] or 1)) for part in parts if part]
    if len(counts) < len(parts):
        raise UserError(f"{name}={text!r} (environment): must be tasks per machine, as 2(x3),1")
    if (total := sum(tasks * times for tasks, times in counts)) != int(environment[size_name]):
        raise UserError(f"{name}={text!r} (environment): are {total} tasks, but {size_name}={environment[size_name]}")
    return [tasks for tasks, times in counts for _ in range(times)]


def first_host(environment: Mapping[str, str], name: str, size_name: str) -> str:
    """The first machine of Slurm's list, where rank 0 is: `n1` of `n[1-3,7]`, `a07` of `a[07-09],b`.

    Raises:
        UserError: not written like that, or not set.
    """
    text = environment.get(name, "")
    if not text:
        whole(environment, name, size_name)
    hosts = HOSTS.fullmatch(text)
    if hosts is None:
        raise UserError(
            f"{name}={text!r} (environment): must be machines, as n[1-3,7],m1; or name rank 0's in MASTER_ADDR"
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", hosts[1])


def port_of(environment: Mapping[str, str], number: int | None) -> int:
    """MASTER_PORT, else one that jobs on the same machine do not share, below those that systems give to others."""
    return whole(environment, "MASTER_PORT", default=TORCH_PORT if number is None else 15000 + number % 15000)

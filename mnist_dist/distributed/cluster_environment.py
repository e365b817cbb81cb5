"""Ranks as launchers other than torchrun set them: Slurm's srun, MPI's mpirun, Kubeflow.

Each launcher sets environment variables of its own; here they become one `ClusterEnvironment`. If launchers are nested,
the innermost one counts: mpirun starts its daemons on other machines with srun, whose variables processes inherit.
The idea is that of Lightning's ClusterEnvironment. Here the variables are also checked against each other, so that a
wrong one is refused in one line that names it.

Where the variables are documented:
- srun(1), "Output environment variables" (slurm.schedmd.com/srun.html). Which of them are set in steps only, not in a
  batch script or an salloc shell: `env_array_for_step` in Slurm's src/common/env.h.
- Open MPI, "Environment variables set for MPI applications" (docs.open-mpi.org, tuning-apps/environment-var). Debian's
  4.1.4 sets PMIX_NAMESPACE too, to the same value in all processes of an mpirun (seen).
- hydra of MPICH and Intel MPI: PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS (seen with Debian's MPICH 4.0.2).
- PET_*: torchrun's own defaults (torch/distributed/argparse_util.py), set on every machine by Kubeflow Trainer v2
  (kubeflow/trainer, pkg/runtime/framework/plugins/torch).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from mnist_dist.utils.errors import UserError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500
"""torch's own default."""

NODE = r"(?:[\w.-]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"
NODE_LIST = re.compile(rf"({NODE})(?:,{NODE})*")
TASKS_PER_NODE = re.compile(r"([1-9]\d{0,6})(?:\(x([1-9]\d{0,6})\))?")


@dataclass(frozen=True)
class ClusterEnvironment:
    """Rank and world size of this process, as a launcher set them. Only for two processes or more."""

    launcher_name: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    main_address: str
    main_port: int
    rank_variable: str
    """The environment variable that holds the rank, for error messages."""
    world_size_variable: str
    """The environment variable that holds the world size, for error messages."""
    machine_rank: int = -1
    """Number of this machine, from 0; -1 if the launcher does not set it."""
    machines: int = 0
    """Number of machines; 0 if the launcher does not set it."""


def detect_cluster(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """What the innermost launcher set; None for a single process and without such a launcher.

    Raises:
        UserError: a variable is missing, not a number, or contradicts another one; the message names it.
    """
    slurm = detect_slurm(environment)
    if slurm and (environment.get("PMI_RANK"), environment.get("PMI_SIZE")) == (str(slurm.rank), str(slurm.world_size)):
        return slurm  # `srun --mpi=pmi2` sets both, and only srun sets the machine's number
    return detect_mpi(environment) or slurm or detect_kubeflow(environment)


def detect_slurm(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """A task of a Slurm step, started by srun.

    A batch script and an salloc shell are not steps: SLURM_NTASKS there is the number of tasks that srun would start.
    """
    if not environment.keys() & {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"}:
        return None
    size_name = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if environment.get(name)), "")
    if not size_name or (world_size := read_int(environment, size_name)) == 1:
        return None
    rank = read_int(environment, "SLURM_PROCID", size_name)
    local_rank = read_int(environment, "SLURM_LOCALID", size_name)
    tasks = read_tasks_per_node(environment, "SLURM_STEP_TASKS_PER_NODE", size_name)
    machine_rank = read_int(environment, "SLURM_NODEID", size_name) if len(tasks) > 1 else 0
    check_rank(environment, "SLURM_PROCID", world_size, size_name)
    if machine_rank >= len(tasks) or local_rank >= tasks[machine_rank]:
        raise UserError(
            f"SLURM_NODEID={machine_rank}, SLURM_LOCALID={local_rank} (environment): there is no such task in "
            f"SLURM_STEP_TASKS_PER_NODE={environment['SLURM_STEP_TASKS_PER_NODE']!r}"
        )
    step = read_int(environment, "SLURM_STEP_ID" if environment.get("SLURM_STEP_ID") else "SLURM_STEPID", default=0)
    job = read_int(environment, "SLURM_JOB_ID", default=0)
    main_address = environment.get("MASTER_ADDR") or (
        LOOPBACK if len(tasks) == 1 else read_first_node(environment, "SLURM_STEP_NODELIST", size_name)
    )
    return ClusterEnvironment(
        launcher_name="srun",
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=tasks[machine_rank],
        main_address=main_address,
        main_port=choose_port(environment, 10 * job + step),  # two steps of a job may run on the same machine
        rank_variable="SLURM_PROCID",
        world_size_variable=size_name,
        machine_rank=machine_rank,
        machines=len(tasks),
    )


def detect_mpi(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """A process of an mpirun: Open MPI's, MPICH's or Intel MPI's."""
    ompi = "OMPI_COMM_WORLD_"
    launchers = {
        "Open MPI": (f"{ompi}RANK", f"{ompi}SIZE", f"{ompi}LOCAL_RANK", f"{ompi}LOCAL_SIZE"),
        "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    }
    for launcher_name, names in launchers.items():
        found = next((name for name in names[:2] if environment.get(name)), "")
        if not found:
            continue
        rank_name, size_name, local_rank_name, local_size_name = names
        world_size = read_int(environment, size_name, found)
        if world_size == 1:
            return None
        rank, local_rank, local_world_size = (
            read_int(environment, name, size_name) for name in (rank_name, local_rank_name, local_size_name)
        )
        check_rank(environment, rank_name, world_size, size_name)
        check_rank(environment, local_rank_name, local_world_size, local_size_name)
        main_address = environment.get("MASTER_ADDR", "") or (LOOPBACK if local_world_size == world_size else "")
        if not main_address:
            raise UserError(
                f"MASTER_ADDR is not set (environment), but {launcher_name} started processes on several machines "
                f"({size_name}={world_size}, {local_size_name}={local_world_size}): pass them the address of rank 0's "
                "machine, as mpirun -x MASTER_ADDR=10.0.0.1 or mpiexec -genv MASTER_ADDR 10.0.0.1"
            )
        namespace = environment.get("PMIX_NAMESPACE", "")
        return ClusterEnvironment(
            launcher_name=launcher_name,
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            main_address=main_address,
            main_port=choose_port(environment, zlib.crc32(namespace.encode()) if namespace else None),
            rank_variable=rank_name,
            world_size_variable=size_name,
        )
    return None


def detect_kubeflow(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """The only process on a machine of Kubeflow's, started without torchrun, which would read the same variables."""
    if not environment.keys() & {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK"}:
        return None
    per_machine, machines = environment.get("PET_NPROC_PER_NODE") or "1", environment.get("PET_NNODES") or "1"
    for name, text in (("PET_NPROC_PER_NODE", per_machine), ("PET_NNODES", machines)):
        if (name == "PET_NPROC_PER_NODE" and text != "1") or ":" in text:
            raise UserError(
                f"{name}={text!r} (environment): only torchrun starts that many processes; start with torchrun -m "
                "mnist_dist.train, which reads PET_* itself, instead of python -m mnist_dist.train"
            )
    world_size = read_int(environment, "PET_NNODES", default=1)
    if world_size == 1:
        return None
    rank = read_int(environment, "PET_NODE_RANK", "PET_NNODES")
    check_rank(environment, "PET_NODE_RANK", world_size, "PET_NNODES")
    main_address = environment.get("PET_MASTER_ADDR") or environment.get("MASTER_ADDR", "")
    if not main_address:
        raise UserError(f"PET_MASTER_ADDR is not set (environment), but PET_NNODES={world_size}")
    port_name = "PET_MASTER_PORT" if environment.get("PET_MASTER_PORT") else "MASTER_PORT"
    return ClusterEnvironment(
        launcher_name="Kubeflow (PET_*)",
        rank=rank,
        world_size=world_size,
        local_rank=0,
        local_world_size=1,
        main_address=main_address,
        main_port=read_int(environment, port_name, default=DEFAULT_PORT),
        rank_variable="PET_NODE_RANK",
        world_size_variable="PET_NNODES",
        machine_rank=rank,
        machines=world_size,
    )


def read_int(environment: Mapping[str, str], name: str, required_by: str = "", default: int | None = None) -> int:
    """A variable's value, an integer of at least 0.

    Args:
        required_by: a variable that is set, so that this one must be set too; for the message.
        default: value of a variable that is not set; None makes that an error.

    Raises:
        UserError: not set, or not such an integer.
    """
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text:
        raise UserError(
            f"{name} is not set (environment), but {required_by}={environment.get(required_by)} is: the launcher sets "
            "both; pass on its whole environment"
        )
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"{name}={text!r} (environment): must be a whole number of at least 0, as the launcher sets it")
    return int(text)


def check_rank(environment: Mapping[str, str], name: str, size: int, size_name: str) -> None:
    """Raise UserError for a rank that is not less than its size."""
    if int(environment[name]) >= size:
        raise UserError(
            f"{name}={environment[name]} (environment): must be from 0 to {size_name}-1, and {size_name}={size}"
        )


def read_tasks_per_node(environment: Mapping[str, str], name: str, size_name: str) -> list[int]:
    """The number of tasks on each node of a Slurm step: `2(x3),1` is [2, 2, 2, 1].

    Raises:
        UserError: not of this form, or the sum is not the number of tasks.
    """
    text = environment.get(name, "")
    if not text:
        read_int(environment, name, size_name)
    parts = [TASKS_PER_NODE.fullmatch(part) for part in text.split(",")]
    counts = [(int(part[1]), int(part[2] or 1)) for part in parts if part]
    if len(counts) < len(parts):
        raise UserError(f"{name}={text!r} (environment): must be tasks per node, as 2(x3),1")
    if (total := sum(tasks * times for tasks, times in counts)) != int(environment[size_name]):
        raise UserError(
            f"{name}={text!r} (environment): adds up to {total} tasks, but {size_name}={environment[size_name]}"
        )
    return [tasks for tasks, times in counts for _ in range(times)]


def read_first_node(environment: Mapping[str, str], name: str, size_name: str) -> str:
    """The first node of a Slurm node list, which has rank 0: `n1` of `n[1-3,7]`, `a07` of `a[07-09],b`.

    Raises:
        UserError: not set, or not of this form.
    """
    text = environment.get(name, "")
    if not text:
        read_int(environment, name, size_name)
    nodes = NODE_LIST.fullmatch(text)
    if nodes is None:
        raise UserError(
            f"{name}={text!r} (environment): must be a node list, as n[1-3,7],m1; or set MASTER_ADDR to rank 0's node"
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes[1])


def choose_port(environment: Mapping[str, str], job: int | None) -> int:
    """MASTER_PORT; else a port derived from the job's number, so that jobs on one machine get different ones.

    The ports 15000 to 29999 lie below those that systems assign by themselves.
    """
    return read_int(environment, "MASTER_PORT", default=DEFAULT_PORT if job is None else 15000 + job % 15000)

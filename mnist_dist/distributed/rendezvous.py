"""Join and leave torch's process group: the Accelerator, and a rendezvous handler that refuses a rank given twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from mnist_dist.config.fsdp import USE_FSDP
from mnist_dist.config.schema import Config
from mnist_dist.distributed.device import native_precision
from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog.comm_errors import first_line
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.stdio import discarded_stdout


# gloo of torch 2.10 prints a line on standard output for each group that it connects.
@discarded_stdout()
def create_accelerator(config: Config, topology: Topology, cpu: bool) -> Accelerator:
    """Create the Accelerator, which joins the process group.

    Args:
        cpu: whether to train on the CPU.

    Raises:
        UserError: the device cannot compute in the precision that was asked for, accelerate refuses its environment, or
            it sees another number of processes.
    """
    precision = resolve_precision(config, cpu, native_precision(cpu))
    # A single process under torchrun is wrapped in DDP too: the hook would round gradients that are never sent.
    compress = config.train.compress if topology.world_size > 1 else "no"
    asked = os.environ.pop(USE_FSDP, None)  # accelerate shards models on GPUs only; FSDPStrategy does it on any device
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                InitProcessGroupKwargs(
                    init_method=init_method(topology),
                    timeout=timedelta(seconds=config.run.timeout),
                ),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=True, comm_hook=DDPCommunicationHookType(compress)
                ),
            ],
        )
    except ValueError as error:
        raise UserError(f"accelerate cannot start: {first_line(error)}") from error
    finally:
        if asked is not None:
            os.environ[USE_FSDP] = asked
    if accelerator.num_processes != topology.world_size:
        raise UserError(
            f"the launcher started {topology.world_size} processes, but accelerate sees {accelerator.num_processes}: "
            "they would train apart and overwrite each other; use a file from launch/"
        )
    return accelerator


@discarded_stdout()
def open_control_group(timeout: timedelta) -> Any:
    """The gloo group of Python objects and stop flags, which never wait for the device.

    Args:
        timeout: of its collectives.
    """
    return dist.new_group(backend="gloo", timeout=timeout)


def resolve_precision(config: Config, cpu: bool, native: str) -> str:
    """Mixed precision of a run: `no`, `fp16` or `bf16`.

    Args:
        cpu: whether to train on the CPU.
        native: what the device computes natively, for where nobody chose: see `native_precision`.

    Raises:
        UserError: the device cannot compute in the precision that was asked for.
    """
    precision: str = config.train.precision
    source = "train.precision"
    if precision == "auto":
        # `accelerate launch` sets "no" by default, so only its other values are a choice.
        precision, source = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "what the launcher says"
    if precision == "no" and config.train.precision == "auto":
        precision, source = native, "native on this machine"
    if precision not in PRECISIONS:
        raise UserError(f"mixed_precision={precision} ({source}): must be one of {', '.join(PRECISIONS)}")
    if cpu and precision == "fp16":
        raise UserError(f"fp16 ({source}) needs a GPU, and this run is on the CPU; use --train.precision=bf16 or no")
    return precision


def init_method(topology: Topology) -> str | None:
    """`init_method` of torch.distributed.init_process_group: a URL for `rendezvous_handler`; None for torch's env://."""
    if topology.world_size == 1:
        return None
    # torchrun assigned the ranks of several machines itself; its store may still hold the owners of an earlier start.
    if topology.machines > 1 and not topology.earlier_runs and "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    return f"{SCHEME}://{ONE_MACHINE if topology.machines == 1 else SEVERAL_MACHINES}/{topology.earlier_runs}"


def rendezvous_handler(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """As torch's handler of env://: yields store, rank and world size. Refuses a rank that two processes have.

    On one machine, keys get a prefix for each start of the processes: torchrun keeps its store when it restarts them,
    a notebook after a cell that was interrupted, and they would find each other's old addresses in it (pytorch#135712).
    On several machines the launchers do not count restarts alike, so there is no prefix: torchrun must be told to share
    no store. Each further run of a process has a prefix too. Its connection is that of the first run: rank 0 serves the
    store, and may still be at the end of one run when another rank begins the next.

    Raises:
        UserError: another process has this rank.
    """
    address = os.getpid(), os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if address not in _stores:
        _stores[address] = next(rendezvous("env://", timeout=timeout))
    connection, rank, world_size = _stores[address]
    connection.set_timeout(timeout)
    prefix = store_prefix(url)
    store = dist.PrefixStore(prefix, connection) if prefix else connection  # type: ignore[attr-defined]
    process = f"process {os.getpid()} on {socket.gethostname()}"
    owner = store.compare_set(owner_key(rank), "", process).decode()
    if owner != process:
        raise UserError(
            f"two processes have rank {rank} of {world_size}, {owner} and {process}: give each process its own (RANK, "
            "PET_NODE_RANK, --machine_rank or --node-rank)"
        )
    yield store, rank, world_size


def store_prefix(url: str) -> str:
    """Prefix of the store's keys that belong to this run, by its init method; empty for none."""
    parts = urlsplit(url)
    start, earlier_runs = start_prefix() if parts.netloc == ONE_MACHINE else "", parts.path.strip("/")
    return f"{start}-run-{earlier_runs}" if int(earlier_runs) else start


def start_prefix() -> str:
    """Prefix of the store's keys that belong to this start of the processes, on one machine."""
    # torchrun's folder for the logs of this start, LAUNCH/attempt_N; LAUNCH is a new folder.
    start = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent
    return f"start-{start}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def owner_key(rank: int) -> str:
    """Key of the store under which a rank that has joined wrote which process it is."""
    return f"owner of rank {rank}"


def ranks_not_in_store(topology: Topology) -> list[int]:
    """The ranks that have not come to the rendezvous yet; rank 0 if its store cannot be reached; empty if unknown."""
    url = init_method(topology)
    if url is None:
        return []  # torchrun's own rendezvous: no owners
    prefix = f"{store_prefix(url)}/" if store_prefix(url) else ""
    host, _, port = topology.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()  # torch would write a stack for each attempt
        store = open_store(topology)
        others = (rank for rank in range(topology.world_size) if rank != topology.rank)
        return [rank for rank in others if not store.check([f"{prefix}{owner_key(rank)}"])]
    except (OSError, RuntimeError):
        return [] if topology.is_main else [0]


def open_store(topology: Topology) -> Any:
    """A further connection to the rendezvous store. Raises RuntimeError if it cannot be reached within 2 s."""
    host, _, port = topology.address.rpartition(":")
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2)
    )


def store_has_key(topology: Topology, key: str) -> bool:
    """Whether the rendezvous store has a key; true if the store cannot be reached."""
    try:
        return bool(open_store(topology).check([key]))
    except RuntimeError:
        return True


def destroy_process_group() -> None:
    """Destroy the process group and reset accelerate's state, so that this process can start another run."""
    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


PRECISIONS = "no", "fp16", "bf16"
SCHEME, ONE_MACHINE, SEVERAL_MACHINES = "mnistdist", "one-machine", "several-machines"
_stores: dict[tuple[int, str, str], tuple[Any, int, int]] = {}
"""By process id and address: connection to the rendezvous store, rank, world size."""
register_rendezvous_handler(SCHEME, rendezvous_handler)

"""How the processes of a run meet: accelerate opened, torch's process group joined by way of a store, and left."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from mnist_dist.config.fsdp import FSDP
from mnist_dist.config.schema import Config
from mnist_dist.distributed.device import native_precision
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import UserError


def open_accelerator(config: Config, topology: Topology, cpu: bool) -> Accelerator:
    """Build the Accelerator, which joins the process group."""
    precision: str = config.train.precision
    source = "train.precision"
    if precision == "auto":
        # The launcher says no where it was told nothing: only its other values are a choice.
        precision, source = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "what the launcher says"
    if precision == "no" and config.train.precision == "auto":
        precision, source = native_precision(cpu), "what this machine computes natively"
    if cpu and precision == "fp16":
        raise UserError(f"fp16 ({source}) needs a GPU, and this run is on the CPU; use --train.precision=bf16 or no")
    # One process under torchrun is wrapped too, and would round what it does not send.
    compress = config.train.compress if topology.world_size > 1 else "no"
    os.environ[FSDP] = "false"  # accelerate would cut up the model on GPUs only; `sharding` does it on any device
    try:
        return Accelerator(
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
        raise UserError(f"precision {precision} ({source}): {str(error).splitlines()[0]}") from error


def init_method(topology: Topology) -> str | None:
    """How the processes find each other, as torch's `init_method`; None is torch's own way."""
    if topology.world_size == 1:
        return None
    if topology.machines == 1:
        return f"{MEETING}://one-machine"
    # torchrun gave the ranks, and its store may remember an earlier start's.
    return None if "TORCHELASTIC_RUN_ID" in os.environ else f"{MEETING}://"


def meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """The launcher's store, rank and world size, as env:// gives them, but no rank twice.

    On one machine, with keys that only this start of the processes uses: torchrun keeps its store when it starts them
    again, and these then find each other's old addresses in it (pytorch#135712). Launchers of several machines do not
    count their starts alike: they must be told to keep none.

    Raises:
        UserError: another process has this rank.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    if "one-machine" in url:
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"start-{start}", store)  # type: ignore[attr-defined]
    me = f"process {os.getpid()} on {socket.gethostname()}"
    holder = store.compare_set(f"holder of rank {rank}", "", me).decode()
    if holder != me:
        raise UserError(
            f"rank {rank} of {world_size} was given twice, to {holder} and to {me}: give each process its own (RANK, "
            "PET_NODE_RANK, --machine_rank or --node-rank)"
        )
    yield store, rank, world_size


def is_in_store(topology: Topology, key: str) -> bool:
    """Whether the store that the processes meet at has a key; if it cannot be asked, yes."""
    host, _, port = topology.address.rpartition(":")
    try:
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]
            host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2)
        )
        return bool(store.check([key]))
    except RuntimeError:
        return True


def destroy_process_group() -> None:
    """End the process group, whatever happened, and forget that accelerate was opened, so that it can be again."""
    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


MEETING = "mnistdist"
register_rendezvous_handler(MEETING, meet)

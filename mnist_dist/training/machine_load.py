"""tracking.share=system on several machines: which ones send their load into the wandb run."""

from __future__ import annotations

from collections.abc import Callable

from mnist_dist.config.schema import Config
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.tracking.wandb_auth import has_key, tracking_mode, wandb_address
from mnist_dist.tracking.wandb_settings import resolve_labels
from mnist_dist.tracking.wandb_thread import SharedLoad


def share_load(config: Config, run_id: str, runtime: Runtime, warn: Callable[[str], None]) -> SharedLoad | None:
    """Where this process sends the load of its machine. None: nowhere, or with its own run as on one machine.

    Every rank must call it.

    Args:
        config: with the tracking mode that rank 0 resolved, on rank 0.
        warn: takes one line, on rank 0.
    """
    topology, tracking = runtime.topology, config.tracking
    if topology.machines == 1 or "system" not in tracking.share:
        return None

    def resolve() -> tuple[str, str, str, str]:
        labels = resolve_labels(tracking)
        return tracking_mode(tracking)[0], labels.project, labels.entity, wandb_address()

    mode, *where = runtime.run_on_main(resolve)
    if mode != "online":
        if mode == "offline":
            warn("tracking.share=system: wandb is offline, so only the load of the first machine is recorded")
        return None
    sends = topology.is_local_main and has_key()
    found = runtime.all_gather_object((topology.machine_rank, topology.is_local_main and not sends))
    keyless = [machine for machine, has_none in found if has_none]
    if keyless:
        names = ", ".join(map(str, sorted(keyless)))
        warn(f"tracking.share=system: no wandb key on machine {names}, whose load is not recorded")
    return SharedLoad(topology.machine_rank, run_id, *where) if sends else None

"""What all ranks must have in common before a run is built."""

from __future__ import annotations

from mnist_dist.config.loader import LoadedConfig
from mnist_dist.config.schema import flat
from mnist_dist.console.console import Console
from mnist_dist.distributed.consistency import check_ranks_agree, describe_clock_skew
from mnist_dist.distributed.device import describe_emulation
from mnist_dist.distributed.launch_options import describe_missing_processes
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.tracking.wandb_auth import check_tracking
from mnist_dist.utils.versions import software


def check_ranks(loaded: LoadedConfig, runtime: Runtime, console: Console) -> None:
    """Check that all ranks have the same settings, code and versions.

    Warns if their clocks differ, if the launcher started fewer than it was told to, and of emulated bf16.

    Raises:
        UserError: something differs, or wandb would refuse the tracking settings of rank 0.
    """
    clocks = check_ranks_agree(
        runtime,
        {
            "the configuration": flat(loaded.config),
            "the software": software() if runtime.world_size > 1 else {},
            "the machine (which --train.shards=0 would allow)": runtime.fingerprint() if runtime.shards else {},
            "the precision (which --train.precision decides)": {"precision": runtime.precision},
            "the launcher's fsdp_config": {"FSDP": repr(runtime.topology.fsdp)},
        },
    )
    if runtime.topology.machines > 1:
        runtime.run_on_main(lambda: check_tracking(loaded.config))
    if skew := describe_clock_skew(clocks):
        console.warn(skew)
    if missing := describe_missing_processes(runtime.topology):
        console.warn(missing)
    if emulation := describe_emulation(runtime.precision, runtime.device.type == "cpu"):
        console.warn(emulation)

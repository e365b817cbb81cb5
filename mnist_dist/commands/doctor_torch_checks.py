"""The checks of `mnist-dist doctor` that one process does alone, and that import torch."""

from __future__ import annotations

import os

from mnist_dist.commands.doctor_checks import NOTE, OK, PROBLEM, Check, Finding
from mnist_dist.config.schema import Config
from mnist_dist.distributed.topology import Topology


def check_torchvision(config: Config, topology: Topology) -> Finding:
    """Whether torchvision was built for this torch. It is only needed for the addresses of MNIST's mirrors."""
    try:
        import torchvision
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        advice = "install torch and torchvision from the same index; only needed to fetch MNIST from its mirrors"
        return Finding("torchvision", f"cannot be imported ({said})", NOTE, advice)
    return Finding("torchvision", f"{torchvision.__version__} fits")


def check_accelerate_file(config: Config, topology: Topology) -> Finding:
    """Whether `accelerate launch` can use its default file, which `accelerate config` wrote; its command line."""
    from mnist_dist.distributed.launch_options import (
        DEFAULT_FILE,
        describe_config_file,
        describe_missing_processes,
    )

    if wrong := describe_config_file():
        advice = "correct it: accelerate launch fails with it, or start with a file from launch/"
        return Finding("accelerate", f"{DEFAULT_FILE}: {wrong}", NOTE, advice)
    if missing := describe_missing_processes(topology):
        found, _, advice = missing.partition("; ")
        return Finding("accelerate", found, NOTE, advice)
    return Finding("accelerate", DEFAULT_FILE if os.path.isfile(DEFAULT_FILE) else "no file of its own")


def check_device(config: Config, topology: Topology) -> Finding:
    """The device that this process would train on. Raises UserError if there are more processes than GPUs."""
    import torch

    from mnist_dist.distributed.device import should_use_cpu

    cpu = should_use_cpu(config, topology)
    if cpu or not torch.cuda.is_available():
        kind = "cpu" if cpu else str(torch.accelerator.current_accelerator())
        idle = torch.cuda.device_count() if cpu else 0
        advice = f"{idle} GPU{'s' * (idle > 1)} of this machine will be idle" if idle else ""
        return Finding("device", f"{kind}, {torch.backends.cpu.get_cpu_capability()}", NOTE if idle else OK, advice)
    count, used = torch.cuda.device_count(), topology.local_world_size
    found = f"{used} of {count} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    advice = f"{count - used} GPUs of this machine will be idle: start {count} processes" if used < count else ""
    return Finding("device", found, NOTE if advice else OK, advice)


def check_precision(config: Config, topology: Topology) -> Finding:
    """The precisions of the device, and whether that of the run is among them and fast."""
    from mnist_dist.distributed.device import describe_emulation, native_precision, should_use_cpu

    cpu = should_use_cpu(config, topology)
    native = native_precision(cpu) == "bf16"
    found = f"fp32, bf16{'' if native else ' (emulated)'}{'' if cpu else ', fp16'}"
    if config.train.precision == "fp16" and cpu:
        return Finding("precision", found, PROBLEM, "fp16 needs a GPU: --train.precision=bf16 or no")
    advice = describe_emulation(config.train.precision, cpu)
    return Finding("precision", found, NOTE if advice else OK, advice)


TORCH_CHECKS: dict[str, Check] = {
    "torchvision": check_torchvision,
    "accelerate": check_accelerate_file,
    "device": check_device,
    "precision": check_precision,
}
"""On all ranks, after the others: these import torch."""

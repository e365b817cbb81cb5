"""What this machine computes with: its device, its threads, its kernels."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from mnist_dist.config.schema import Config
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more


def use_cpu(config: Config, topology: Topology) -> bool:
    """Whether to train on the CPU: accelerate must know before it is built, or each process believes it is alone.

    Raises:
        UserError: more processes on this machine than it has GPUs.
    """
    if config.run.device == "cpu" or topology.cpu_asked or not torch.accelerator.is_available():
        return True
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if topology.local_world_size > gpus:
            raise UserError(
                f"{topology.local_world_size} processes on this machine, which has {gpus} GPU{'s' * (gpus > 1)}: start "
                f"at most {gpus}, or train on the CPU with --run.device=cpu"
            )
        return False
    return topology.world_size > 1  # other accelerators of a desktop machine: one process only


def native_precision(cpu: bool) -> str:
    """The mixed precision that this machine's device computes natively, and so faster than fp32: `bf16`, or `no`.

    fp16 is never chosen: it needs its losses scaled.
    """
    if cpu:
        with contextlib.suppress(AttributeError):  # torch for other processors may not know of these
            if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
                return "bf16"
        return "no"
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if bf16 else "no"


def configure_torch(config: Config, topology: Topology, shards: int) -> int:
    """Set the CPU threads of this process, and deterministic kernels if they are asked for; gives the threads."""
    threads = config.run.threads or topology.default_threads()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or accelerate decides, and warns
    torch.set_num_threads(1 if shards else threads)  # with shards, each thread computes one of them
    keep_freed_memory()
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return threads


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: given back to the system, a step's tensors cost a page fault for each 4 KiB.

    Measured with two threads: a tenth of a step of a whole batch of 256 images (1,700 faults), 2 % with four shards.
    """
    with contextlib.suppress(AttributeError, OSError):  # other C libraries do not have it
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MOST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def fingerprint(device: torch.device, precision: str) -> dict[str, str]:
    """What decides how kernels round: where two differ, the same run may give other bits."""
    on_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    kernels = f"{platform.machine()} {device.type} {kind}"
    return {"torch": torch.__version__, "kernels": kernels, "precision": precision}


def seed_generator(seed: int, device: torch.device) -> None:
    """Seed what dropout on a device draws from. `torch.manual_seed` seeds all kinds of devices, at 0.3 ms a call."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """The most memory, in bytes, that this process has had: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():  # Linux's getrusage would count what the process was forked from, too
        return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

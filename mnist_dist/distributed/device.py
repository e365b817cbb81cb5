"""Device, precision, CPU threads and memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from mnist_dist.config.schema import Config
from mnist_dist.distributed.cpu_count import default_threads
from mnist_dist.distributed.launch_options import find_launch_options
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAX_MMAP_THRESHOLD = 32 << 20  # glibc refuses more


def should_use_cpu(config: Config, topology: Topology) -> bool:
    """Whether to train on the CPU. The Accelerator must be told, or each of several processes believes it is alone.

    Raises:
        UserError: the device of run.device, or a GPU for accelerate's --config_file, is not there; or this machine has
            fewer GPUs than processes.
    """
    wanted = config.run.device
    told = find_launch_options(topology)
    launcher_says_cpu = topology.use_cpu or (told is not None and told.use_cpu)
    if wanted == "cpu" or (wanted == "auto" and launcher_says_cpu):
        return True
    if launcher_says_cpu:
        raise UserError(f"run.device={wanted}, but accelerate launch was told to use the CPU (use_cpu, --cpu)")
    found = find_accelerator()
    if wanted not in ("auto", found):
        raise UserError(
            f"run.device={wanted}: torch {torch.__version__} finds no such device on this machine, only {found}; "
            "correct the driver or torch's build, or use --run.device=auto"
        )
    if found == "cpu" and told is not None and told.config_file:
        raise UserError(
            f"{told.config_file} (accelerate's --config_file) is for GPUs, and torch {torch.__version__} finds none on "
            "this machine; to train on the CPU add --run.device=cpu, or use_cpu: true in that file"
        )
    if found == "cuda":
        check_gpus(topology)
    elif found != "cpu" and topology.world_size > 1 and wanted != "auto":
        raise UserError(f"run.device={wanted}: for a single process only; start one, or use --run.device=cpu")
    return found != "cuda" and (found == "cpu" or topology.world_size > 1)


def find_accelerator() -> str:
    """Type of the accelerator that torch finds on this machine; `cpu` if it finds none."""
    if not torch.accelerator.is_available():
        return "cpu"
    return "cuda" if torch.cuda.is_available() else torch.accelerator.current_accelerator().type  # type: ignore[union-attr]


def count_gpus() -> int:
    """Number of CUDA devices of this machine."""
    return torch.cuda.device_count()


def check_gpus(topology: Topology) -> None:
    """Raise UserError if this machine has fewer CUDA devices than processes."""
    gpus = count_gpus()
    if topology.local_world_size > gpus:
        raise UserError(
            f"{topology.local_world_size} processes on this machine, which has {gpus} GPU{'s' * (gpus > 1)}: start "
            f"at most {gpus}, or train on the CPU with --run.device=cpu"
        )


def native_precision(cpu: bool) -> str:
    """Mixed precision that the device computes natively, so faster than fp32: `bf16`, or `no`.

    Never fp16, which needs loss scaling.
    """
    if cpu:
        with contextlib.suppress(AttributeError):  # not in torch's builds for other processors
            if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
                return "bf16"
        return "no"
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if bf16 else "no"


def describe_emulation(precision: str, cpu: bool) -> str:
    """A warning if `precision` is bf16, and the device has no instructions for it; empty otherwise.

    A CPU with AVX2 alone takes seven times as long as in fp32 (docs/performance.md).
    """
    if precision != "bf16" or native_precision(cpu) == "bf16":
        return ""
    return f"this {'CPU' if cpu else 'GPU'} emulates bf16, which takes longer than fp32; --train.precision=no is faster"


def configure_torch(config: Config, topology: Topology, shards: int) -> int:
    """Set this process's CPU threads and, if configured, deterministic kernels.

    Args:
        shards: fixed shards in a batch; 0 without them.

    Returns:
        CPU threads of this process.
    """
    threads = config.run.threads or default_threads(topology)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # if unset, accelerate sets it, and warns
    torch.set_num_threads(1 if shards else threads)  # with shards, a ThreadPool computes one shard per thread
    configure_malloc()
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if config.train.compile == "no":
            torch.set_deterministic_debug_mode("error")  # the same, for all but the compiler, without its import: 0.9 s
        else:
            torch.use_deterministic_algorithms(True)
    return threads


@contextlib.contextmanager
def restored_torch_state() -> Iterator[None]:
    """Restore at the end what a run sets in all of torch: threads, deterministic kernels, anomaly detection, seeds."""
    threads, debug_mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    anomalies = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if "torch._inductor.config" in sys.modules:  # sets the compiler's own flag too
                torch.use_deterministic_algorithms(debug_mode > 0, warn_only=debug_mode == 1)
            else:
                torch.set_deterministic_debug_mode(debug_mode)
            torch.autograd.set_detect_anomaly(*anomalies)


def configure_malloc() -> None:
    """Make glibc keep freed memory. Returned to the system, it costs each step a page fault for each 4 KiB again.

    Measured with two threads: 10 % of a step's time with a whole batch of 256 images (1,700 faults), 2 % with 4 shards.
    """
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def fingerprint(device: torch.device, precision: str) -> dict[str, str]:
    """torch version, device and precision. Where they differ, kernels may round differently, so weights may differ."""
    on_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    kernels = f"{platform.machine()} {device.type} {kind}"
    return {"torch": torch.__version__, "kernels": kernels, "precision": precision}


def seed_generator(seed: int, device: torch.device) -> None:
    """Seed the default generators of CPU and device, from which dropout draws.

    `torch.manual_seed` would seed all kinds of devices, which takes 0.3 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


PROC_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # On Linux getrusage would include the process that this one was forked from. gVisor's status lacks the line.
    lines = PROC_STATUS.read_text().splitlines() if PROC_STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

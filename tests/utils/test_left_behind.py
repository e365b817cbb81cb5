"""A process that calls `main` is left as it was: environment, signal handlers, threads, torch's settings, seeds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from harness import run_ranks
from programs import write_digits

from mnist_dist.train import main
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER

SETTINGS = [
    *("--data.root=.", "--data.source=local", "--data.val_size=50", "--run.threads=3", "--run.device=cpu"),
    *("--model.name=basic", "--train.epochs=1", "--train.batch_size=50", "--tracking.mode=disabled"),
    *("--run.deterministic=true", "--train.detect_anomaly=true", "--run.dir=run"),
]


def process_state() -> dict[str, Any]:
    """What a caller may notice."""
    return {
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "streams": (id(sys.stdout), id(sys.stderr)),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "torch threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "anomalies": torch.is_anomaly_enabled(),
        "seed": torch.initial_seed(),
        "random": torch.get_rng_state().tolist(),
    }


def train_and_compare(folder: Path) -> list[tuple[int, list[str]]]:
    """Train to the end, and fail in the middle; for each the exit code, and what differs after it."""
    os.chdir(folder)
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
    ):
        del os.environ[name]
    found = []
    environment = dict(os.environ)
    main([*SETTINGS, "--run.dir=first"])  # what libraries open once
    for more in ([], ["--data.drop_last=true", "--train.batch_size=500", "--run.dir=other"]):
        torch.manual_seed(7)
        before = process_state()
        code = main([*SETTINGS, *more])
        after = process_state()
        found.append((code, [name for name in before if before[name] != after[name]]))
    assert dict(os.environ) == environment
    return found


def test_a_process_that_trains_is_left_as_it_was(tmp_path: Path) -> None:
    write_digits(tmp_path, train=250, test=50)
    assert run_ranks(1, train_and_compare, tmp_path) == [[(EXIT_DONE, []), (EXIT_USER, [])]]

"""A process that calls `main`, `train`, `evaluate` or `load_model` is left as it was.

That is: environment, signal handlers, hooks, threads, filters of warnings, torch's settings, seeds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from accelerate.state import AcceleratorState, PartialState
from harness import run_ranks
from programs import write_digits

from mnist_dist import Config, Stopped, TrainingError, UserError, evaluate, load_model, train
from mnist_dist.train import main
from mnist_dist.training.metric_logger import MetricLogger
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
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "hooks": (sys.excepthook, sys.exit, threading.excepthook, sys.displayhook),
        "warnings": list(warnings.filters),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "process group": torch.distributed.is_initialized(),
        "accelerate": (dict(AcceleratorState._shared_state), dict(PartialState._shared_state)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def leave_launcher() -> None:
    """Remove the variables of the test's launcher."""
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


def train_and_compare(folder: Path) -> list[tuple[int, list[str]]]:
    """Train to the end, and fail in the middle; for each the exit code, and what differs after it."""
    os.chdir(folder)
    leave_launcher()
    found = []
    main([*SETTINGS, "--run.dir=first"])  # what libraries open once
    for more in ([], ["--data.drop_last=true", "--train.batch_size=500", "--run.dir=other"]):
        torch.manual_seed(7)
        before = process_state()
        code = main([*SETTINGS, *more])
        after = process_state()
        found.append((code, [name for name in before if before[name] != after[name]]))
    return found


def test_a_process_that_trains_is_left_as_it_was(tmp_path: Path) -> None:
    write_digits(tmp_path, train=250, test=50)
    assert run_ranks(1, train_and_compare, tmp_path) == [[(EXIT_DONE, []), (EXIT_USER, [])]]


def call_and_compare(folder: Path) -> list[tuple[str, list[str]]]:
    """Use each function of the package, also where it fails; for each its outcome, and what differs after it."""
    os.chdir(folder)
    leave_launcher()
    multiprocessing.set_start_method(None, force=True)  # the test's processes have set it
    settings = dict(option.removeprefix("--").split("=") for option in SETTINGS)

    def call(**more: Any) -> str:
        return str(train(Config.from_recipe((), settings | {key.replace("__", "."): more[key] for key in more})).folder)

    def stop() -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MetricLogger, "add_images", lambda self, size: signal.raise_signal(signal.SIGTERM))
            return call(run__dir="stopped")

    found = []
    for action in (
        lambda: call(run__dir="other", run__threads=1, tracking__mode="offline", tracking__examples=0),
        lambda: call(run__dir="third"),
        lambda: str(evaluate("third").count),
        lambda: load_model("third").config.model.name,
        lambda: call(run__dir="failed", optim__lr=1e30),
        lambda: call(data__root="nowhere"),
        stop,
    ):
        torch.manual_seed(7)
        before = process_state()
        try:
            outcome = action()
        except (Stopped, TrainingError, UserError) as error:
            outcome = type(error).__name__
        after = process_state()
        found.append((outcome, [name for name in before if before[name] != after[name]]))
    return found


def test_a_process_that_uses_the_package_is_left_as_it_was(tmp_path: Path) -> None:
    """The first run imports wandb, which has hooks of its own."""
    write_digits(tmp_path, train=250, test=50)
    [found] = run_ranks(1, call_and_compare, tmp_path)
    assert (tmp_path / "other" / "wandb").is_dir()
    outcomes = ["other", "third", "50", "basic", "TrainingError", "UserError", "Stopped"]
    assert found == [(outcome, []) for outcome in outcomes]

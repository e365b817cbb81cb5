"""A stop that one process is asked for: all stop at the same step, with one whole checkpoint, and can go on.

The asked one gets a real signal, in training or in an evaluation.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from small_checkpoint import corruption
from small_training import BASICS, TrainResult, open_trainer, train
from torch import nn

from mnist_dist.checkpoint.manager import list_checkpoints
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.utils.errors import Stopped

SIZES = (24 * 5 + 1, 240)
SETTINGS = ["--train.batch_size=24", "--train.epochs=2", "--train.eval_batch_size=10", "--optim.ema=0.9"]
LAST = 12


@cache
def undisturbed() -> TrainResult:
    """What one process trains when nothing stops it."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(1, train, SETTINGS, Path(folder), SIZES)[0]


def signalled(folder: Path, rank: int, number: int, moment: str) -> tuple[int, str]:
    """Train; at a moment, one rank gets a signal. Gives the step at which this rank stopped, and what it said."""
    topology = read_topology()
    config = load([*BASICS, *SETTINGS], topology.world_size).config
    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:

        def at_step(step: int) -> None:
            if moment == f"step {step}" and runtime.rank == rank:
                os.kill(os.getpid(), number)

        def at_evaluation(module: nn.Module, inputs: Any) -> None:
            if moment == "evaluation" and runtime.rank == rank and not runtime.stop_flag:
                os.kill(os.getpid(), number)

        trainer = open_trainer(runtime, config, folder, SIZES, at_step, rows=rows)
        trainer.state.eval_model.register_forward_pre_hook(at_evaluation)
        try:
            trainer.train()
        except Stopped as stopped:
            return trainer.progress.step, str(stopped)
    return -1, "not stopped"


@pytest.mark.parametrize(
    ("world_size", "rank", "number", "moment"),
    [
        (1, 0, signal.SIGTERM, "step 3"),
        (2, 1, signal.SIGTERM, "step 3"),
        (3, 1, signal.SIGINT, "step 5"),
        (2, 0, signal.SIGUSR1, "step 6"),
        (1, 0, signal.SIGINT, "evaluation"),
        (3, 1, signal.SIGTERM, "evaluation"),
    ],
)
def test_all_stop_at_one_step_with_a_checkpoint_and_go_on(
    world_size: int, rank: int, number: int, moment: str, tmp_path: Path
) -> None:
    answers = run_ranks(world_size, signalled, tmp_path, rank, number, moment)
    assert len(set(answers)) == 1
    step, said = answers[0]
    asked = 6 if moment == "evaluation" else int(moment.removeprefix("step "))
    assert asked <= step <= asked + 1
    assert said == f"at step {step}, with a checkpoint"
    newest = list_checkpoints(tmp_path)[-1]
    assert newest.name == f"step-{step:08d}"
    assert corruption(newest) is None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    rest = run_ranks(world_size, train, SETTINGS, tmp_path, SIZES)[0]
    assert max(row["step"] for row in rest.rows) == LAST
    single = undisturbed()
    for name, tensor in single.eval_weights.items():
        assert float((rest.eval_weights[name] - tensor).abs().max()) < 1e-12, name


def interrupted_twice() -> str:
    config = load(BASICS).config
    with start_runtime(config, read_topology()) as runtime:
        os.kill(os.getpid(), signal.SIGINT)
        assert runtime.should_stop()
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            return "ended at once"
    return "went on"


def test_a_second_ctrl_c_ends_at_once() -> None:
    assert run_ranks(1, interrupted_twice) == ["ended at once"]


def handlers() -> bool:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with start_runtime(load(BASICS).config, read_topology()):
        pass
    return before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


def test_signals_mean_what_they_meant_before_afterwards() -> None:
    assert run_ranks(1, handlers) == [True]


def steps_without_launcher() -> int:
    """Calls of should_stop until it is true on this rank; rank 1's launcher is gone."""
    topology = read_topology()
    launcher_pid = os.getppid() if topology.rank == 0 else os.getpid()  # no process is its own parent
    with start_runtime(load(BASICS).config, dataclasses.replace(topology, launcher_pid=launcher_pid)) as runtime:
        return next((call for call in range(10) if runtime.should_stop()), -1)


def test_a_rank_whose_launcher_is_gone_stops_all() -> None:
    assert run_ranks(2, steps_without_launcher) == [1, 1]

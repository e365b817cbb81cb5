"""A signal to one rank stops all ranks at the same step, with a checkpoint that they can resume from.

The rank gets a real signal, in training or in an evaluation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from programs import read_rows, write_digits
from small_checkpoint import corruption
from small_training import BASICS, TrainResult, open_trainer, train
from torch import nn

from mnist_dist.checkpoint.manager import list_checkpoints
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.train import main
from mnist_dist.training.train_step import TrainStep
from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED, Stopped

SIZES = (24 * 5 + 1, 240)
SETTINGS = ["--train.batch_size=24", "--train.epochs=2", "--train.eval_batch_size=10", "--optim.ema=0.9"]
LAST_STEP = 12


@cache
def uninterrupted() -> TrainResult:
    """The result of a run on one rank that is not stopped."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(1, train, SETTINGS, Path(folder), SIZES)[0]


def train_with_signal(folder: Path, rank: int, number: int, moment: str) -> tuple[int, str]:
    """Train; a rank gets a signal at a moment. Returns the step at which this rank stopped, and the message.

    Args:
        rank: the rank that gets the signal.
        number: the signal.
        moment: `step N`, or `evaluation`: the first one.
    """
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
        (2, 0, signal.SIGHUP, "step 6"),
        (1, 0, signal.SIGINT, "evaluation"),
        (3, 1, signal.SIGTERM, "evaluation"),
    ],
)
def test_all_ranks_stop_at_the_same_step_and_resume(
    world_size: int, rank: int, number: int, moment: str, tmp_path: Path
) -> None:
    results = run_ranks(world_size, train_with_signal, tmp_path, rank, number, moment)
    assert len(set(results)) == 1
    step, message = results[0]
    signalled_at = 6 if moment == "evaluation" else int(moment.removeprefix("step "))
    assert signalled_at <= step <= signalled_at + 1
    assert message == f"at step {step}, with a checkpoint"
    newest = list_checkpoints(tmp_path)[-1]
    assert newest.name == f"step-{step:08d}"
    assert corruption(newest) is None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    resumed = run_ranks(world_size, train, SETTINGS, tmp_path, SIZES)[0]
    assert max(row["step"] for row in resumed.rows) == LAST_STEP
    for name, tensor in uninterrupted().eval_weights.items():
        assert float((resumed.eval_weights[name] - tensor).abs().max()) < 1e-12, name


def interrupt_twice() -> str:
    config = load(BASICS).config
    with start_runtime(config, read_topology()) as runtime:
        os.kill(os.getpid(), signal.SIGINT)
        assert runtime.should_stop()
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            return "interrupted"
    return "not interrupted"


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    assert run_ranks(1, interrupt_twice) == ["interrupted"]


def restores_handlers() -> bool:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with start_runtime(load(BASICS).config, read_topology()):
        pass
    return before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


def test_signal_handlers_are_restored() -> None:
    assert run_ranks(1, restores_handlers) == [True]


def calls_until_stop() -> int:
    """The number of calls of should_stop before it returns True. The launcher of rank 1 does not exist any more."""
    topology = read_topology()
    launcher_pid = os.getppid() if topology.rank == 0 else os.getpid()  # no process is its own parent
    with start_runtime(load(BASICS).config, dataclasses.replace(topology, launcher_pid=launcher_pid)) as runtime:
        return next((call for call in range(10) if runtime.should_stop()), -1)


def test_a_rank_whose_launcher_has_ended_stops_all_ranks() -> None:
    assert run_ranks(2, calls_until_stop) == [1, 1]


def stop_and_go_on(folder: Path) -> tuple[list[int], str, int]:
    """Stop a run that named its own folder, and start the command that it printed.

    Returns:
        The exit codes, the command, and the number of steps in the rows of both together.
    """
    os.chdir(folder)
    settings = ["--data.root=.", "--data.source=local", "--data.val_size=50", "--train.batch_size=50"]
    settings += ["--tracking.mode=disabled", "--train.epochs=2", "--run.resume=never", *BASICS]
    step = TrainStep.step

    def step_and_hang_up(self: TrainStep, batch: Any) -> bool | None:
        os.kill(os.getpid(), signal.SIGHUP)
        return step(self, batch)

    TrainStep.step = step_and_hang_up  # type: ignore[method-assign]
    with contextlib.redirect_stderr(io.StringIO()) as err:
        codes = [main(settings)]
    TrainStep.step = step  # type: ignore[method-assign]
    _, _, command = err.getvalue().strip().partition("; to go on: ")
    codes.append(main(shlex.split(command)[3:]))
    (run,) = Path("runs").iterdir()
    return codes, command, len({row["step"] for row in read_rows(run) if "train.loss" in row})


def test_a_stopped_run_prints_the_command_that_goes_on(tmp_path: Path) -> None:
    write_digits(tmp_path, train=250, test=50)
    ((codes, command, steps),) = run_ranks(1, stop_and_go_on, tmp_path)
    assert codes == [EXIT_STOPPED, EXIT_DONE]
    assert command.startswith("python -m mnist_dist.train --data.root=. ")
    assert " --run.dir=runs/default-" in command
    assert command.endswith(" --run.resume=auto")  # the last one wins
    assert steps == 2 * 4

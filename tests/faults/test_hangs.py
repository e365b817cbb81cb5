"""A rank is stopped, stuck or killed: the others end in time, name it, and write where each rank was."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from harness import Outcome, run_ranks, try_ranks
from small_training import BASICS, open_trainer
from torch import nn

from mnist_dist.config.loader import load
from mnist_dist.distributed.consistency import check_ranks_agree
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.distributed.watchdog.peer_monitor import ABORT_SECONDS, QUERY_SECONDS
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED
from mnist_dist.utils.exit import run_to_exit_code

TIMEOUT = 2
SLACK_SECONDS = 6.0
"""For starting and training, on a busy machine."""
SETTINGS = [
    *("--train.batch_size=24", "--train.epochs=1", "--train.eval_batch_size=5", "--train.checkpoint_steps=2"),
    f"--run.timeout={TIMEOUT}",
]
HOST = socket.gethostname()

Faults = Mapping[int, str]
"""What happens to a rank, by rank."""


def stuck_in_a_loop() -> NoReturn:
    while True:
        pass


def stuck_in_a_sleep() -> None:
    time.sleep(1000)


def stuck_in_a_lock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def inject(fault: str) -> None:
    """Stop, kill, fail or block this process."""
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "error":
        raise ZeroDivisionError("a bug")
    else:
        {"loop": stuck_in_a_loop, "sleep": stuck_in_a_sleep, "lock": stuck_in_a_lock}[fault]()


def train(folder: Path, faults: Faults, moment: str) -> int:
    """A small run with faults, its standard error in a file; the exit code that the program would have."""
    topology = read_topology()
    fault = faults.get(topology.rank)
    config = load([*BASICS, *SETTINGS], topology.world_size).config
    with (folder / f"stderr-{topology.rank}").open("w") as file:
        os.dup2(file.fileno(), 2)

    def reach(name: str) -> None:
        if fault and moment == name:
            inject(fault)

    def before_forward(module: nn.Module, inputs: Any) -> None:
        if not module.training:
            reach("evaluation")

    class FaultyTrainer(Trainer):
        def save(self) -> None:
            reach("saving")
            super().save()

    def program() -> int:
        reach("before joining")
        with start_runtime(config, topology) as runtime:
            reach("at start")
            check_ranks_agree(runtime, {})
            trainer = open_trainer(
                runtime, config, folder / "checkpoints", (24 * 5, 30), lambda step: reach(f"step {step}")
            )
            trainer.__class__ = FaultyTrainer
            trainer.state.model.register_forward_pre_hook(before_forward)
            trainer.train()
        return EXIT_DONE

    return run_to_exit_code(program)


@dataclass(frozen=True)
class Ended:
    """How the ranks of a run ended, their standard errors, and the seconds until the last survivor ended."""

    outcomes: list[Outcome]
    stderr: list[str]
    seconds: float


def run(folder: Path, world_size: int, faults: Faults, moment: str) -> Ended:
    """Train with faults. Stopped ranks are killed once the others have ended."""
    stopped = [rank for rank, fault in faults.items() if fault == "stopped"]
    start = time.monotonic()
    outcomes = try_ranks(world_size, train, folder, faults, moment, timeout=40, stopped=stopped)
    seconds = time.monotonic() - start
    return Ended(outcomes, [(folder / f"stderr-{rank}").read_text() for rank in range(world_size)], seconds)


def expected_cause(fault: str) -> str:
    """What the survivors' error says of a rank."""
    within = f"within run.timeout={TIMEOUT} s"
    return {
        "stopped": f"did not answer {within} (stopped or unreachable)",
        "killed": "exited without an error message (killed?)",
        "error": "failed with ZeroDivisionError (a bug)",
    }.get(fault, f"did not join the collective {within}, stuck in ")


STUCK = ("loop", "sleep", "lock")


def assert_named(ended: Ended, faults: Faults) -> None:
    """Every survivor ended with exit code 1, in time, with one line that names the faulty ranks and no other."""
    longest = TIMEOUT + QUERY_SECONDS + SLACK_SECONDS
    if any(fault in STUCK for fault in faults.values()):
        longest += ABORT_SECONDS
    assert ended.seconds < longest
    for rank, outcome in enumerate(ended.outcomes):
        if rank in faults:
            continue
        stderr = ended.stderr[rank]
        assert outcome.value == EXIT_FAILED, (outcome, stderr)
        (line,) = [line for line in stderr.splitlines() if line.startswith("mnist_dist: error: ")]
        parts = line.removeprefix(f"mnist_dist: error: rank {rank}: ").split("; ")
        named = {}
        for ranks, cause in (part.split(f" on {HOST} ") for part in parts):
            named |= {int(number): cause for number in re.findall(r"\d+", ranks)}
        # A killed rank is noticed at once: by then, no rank has waited for the timeout for another one that is stuck.
        must_name = {odd for odd, fault in faults.items() if fault not in STUCK or "killed" not in faults.values()}
        assert must_name <= named.keys() <= faults.keys(), line
        for odd, cause in named.items():
            assert cause.startswith(expected_cause(faults[odd])), line
            assert f"stuck_in_a_{faults[odd]}" in cause or faults[odd] not in STUCK, line


def assert_stacks(ended: Ended, faults: Faults) -> None:
    """Every survivor wrote its own stack and those of the stuck ranks; a stuck rank wrote its own, and was ended."""
    for rank, stderr in enumerate(ended.stderr):
        fault = faults.get(rank)
        if fault is None:
            waited = stderr.split(f"mnist_dist: rank {rank} waited here:\n")[1].split("mnist_dist: ")[0]
            assert " program\n" in waited
            for odd, other in faults.items():
                here = f"mnist_dist: rank {odd} is here:\n"
                assert (here in stderr) == (other in STUCK) or "killed" in faults.values()
                if here in stderr:
                    assert f" stuck_in_a_{other}\n" in stderr.split(here)[1].split("mnist_dist: ")[0]
        elif fault in STUCK:
            assert ended.outcomes[rank].exit_code == EXIT_FAILED
            assert f" stuck_in_a_{fault}\n" in stderr.split(f"mnist_dist: rank {rank} is stuck here:\n")[1]
            error = f"mnist_dist: error: rank {rank}: the other ranks stopped waiting for this rank, stuck in "
            assert stderr.splitlines()[-1].startswith(error)
        else:
            assert ended.outcomes[rank].exit_code == -signal.SIGKILL  # a stopped one by the harness


MOMENTS = ("at start", "step 3", "evaluation", "saving")
SHORT = [
    (2, {1: "stopped"}, "step 3"),
    (3, {0: "sleep"}, "saving"),
    (3, {2: "loop"}, "evaluation"),
    (3, {0: "stopped", 1: "killed"}, "at start"),
    (3, {1: "killed", 2: "lock"}, "step 3"),
]
WHOLE = [
    *(
        (world_size, {0 if moment == "saving" else world_size - 1: fault}, moment)
        for moment in MOMENTS
        for fault in ("stopped", "loop", "sleep", "lock", "killed")
        for world_size in (2, 3)
    ),
    *((3, {0: fault}, moment) for moment in MOMENTS[:3] for fault in ("stopped", "lock", "killed")),
    *(
        (3, {1: first, 2: second}, "step 3")
        for first in ("stopped", "lock", "killed")
        for second in ("stopped", "loop")
    ),
    (3, {0: "lock", 2: "killed"}, "evaluation"),
    (4, {0: "stopped", 2: "loop", 3: "killed"}, "step 3"),
]


@pytest.mark.parametrize(("world_size", "faults", "moment"), SHORT)
def test_the_others_end_in_time_and_name_it(world_size: int, faults: Faults, moment: str, tmp_path: Path) -> None:
    ended = run(tmp_path, world_size, faults, moment)
    assert_named(ended, faults)
    assert_stacks(ended, faults)


@pytest.mark.faults
@pytest.mark.parametrize(("world_size", "faults", "moment"), [row for row in WHOLE if row not in SHORT])
def test_the_whole_matrix(world_size: int, faults: Faults, moment: str, tmp_path: Path) -> None:
    ended = run(tmp_path, world_size, faults, moment)
    assert_named(ended, faults)
    assert_stacks(ended, faults)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["stopped", "killed"])
@pytest.mark.parametrize("odd", [0, 2])
def test_a_rank_that_is_lost_before_it_joins_is_named(odd: int, fault: str, tmp_path: Path) -> None:
    ended = run(tmp_path, 3, {odd: fault}, "before joining")
    assert ended.seconds < TIMEOUT + SLACK_SECONDS
    for rank, outcome in enumerate(ended.outcomes):
        if rank != odd:
            assert outcome.value == EXIT_FAILED
            message = f"rank {rank} of 3 could not connect to rank {odd} (rendezvous at 127.0.0.1:"
            named = f"mnist_dist: error: {message}"
            assert len(re.findall("^" + re.escape(named), ended.stderr[rank], re.MULTILINE)) == 1


def test_an_exception_is_named_and_its_rank_writes_nothing_but_the_traceback(tmp_path: Path) -> None:
    faults = {1: "error"}
    ended = run(tmp_path, 3, faults, "evaluation")
    assert ended.seconds < SLACK_SECONDS
    assert ended.outcomes[1].value == EXIT_FAILED
    assert ended.stderr[1].endswith("ZeroDivisionError: a bug\n")
    assert "mnist_dist: " not in ended.stderr[1]
    assert_named(ended, faults)
    assert [stderr.count("\n") for stderr in (ended.stderr[0], ended.stderr[2])] == [1, 1]


def test_a_healthy_run_writes_nothing_to_standard_error(tmp_path: Path) -> None:
    ended = run(tmp_path, 3, {}, "never")
    assert [outcome.value for outcome in ended.outcomes] == [EXIT_DONE] * 3
    assert ended.stderr == [""] * 3


def threads() -> tuple[list[str], list[str]]:
    """Names of the threads of a rank besides its main one, during a run and after it."""
    with start_runtime(load(BASICS).config, read_topology()):
        during = [thread.name for thread in threading.enumerate()[1:]]
    return during, [thread.name for thread in threading.enumerate()[1:]]


def test_the_monitors_thread_ends_with_the_runtime() -> None:
    assert run_ranks(2, threads) == [(["peer monitor"], [])] * 2
    assert run_ranks(1, threads) == [([], [])]

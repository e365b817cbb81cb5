"""One of two machines is lost: the other reports it and ends; both started again continue to the same weights."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import ACCELERATE, LAUNCH, SECONDS, TORCHRUN, Program, free_port, run, started, write_digits

from mnist_dist.checkpoint.manager import list_checkpoints
from mnist_dist.distributed.watchdog.peer_monitor import QUERY_SECONDS
from mnist_dist.utils.errors import EXIT_DONE

pytestmark = pytest.mark.launcher

TIMEOUT = 5
LAUNCHER_SECONDS = 10.0
"""For a launcher to see that its process has ended, and to end itself."""
STEPS, LOST_AT = 80, 10
IMAGES, BATCH = 320, 32
SETTINGS = [
    *("-m", "mnist_dist.train", "--data.source=local", "--tracking.mode=disabled", "--run.dir=run", "--run.threads=1"),
    *("--run.device=cpu", "--train.precision=no", f"--run.timeout={TIMEOUT}", f"--data.limit={IMAGES}"),
    *("--data.val_size=0", f"--train.batch_size={BATCH}", f"--train.epochs={STEPS * BATCH // IMAGES}"),
    "--train.checkpoint_steps=1",
]


def accelerate(machine: int, port: int) -> list[str]:
    rendezvous = ["--machine_rank", str(machine), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    return [*ACCELERATE, "--config_file", str(LAUNCH / "multi_node_cpu.yaml"), *rendezvous]


def torchrun_static(machine: int, port: int) -> list[str]:
    rendezvous = [f"--node-rank={machine}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *rendezvous]


def torchrun_c10d(machine: int, port: int) -> list[str]:
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
    return [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *rendezvous]


Launcher = Callable[[int, int], list[str]]


def commands(launcher: Launcher, data: Path) -> list[list[str]]:
    """The commands that start the two machines."""
    port = free_port()
    return [[*launcher(machine, port), *SETTINGS, f"--data.root={data}"] for machine in (0, 1)]


def weights(folder: Path) -> str:
    """SHA-256 of the weights of a finished run."""
    return str(json.loads((folder / "summary.json").read_text())["weights_sha256"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic digits."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=IMAGES, test=100)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a healthy run on two machines."""
    work = tmp_path_factory.mktemp("undisturbed")
    ended = run(*commands(torchrun_static, data), work=work)
    assert [each.code for each in ended] == [EXIT_DONE, EXIT_DONE], ended
    return weights(work / "run")


def wait_for_step(step: int, work: Path) -> None:
    """Wait until there is a checkpoint of this step or a later one."""
    deadline = time.monotonic() + SECONDS
    while not any(int(path.name[-8:]) >= step for path in list_checkpoints(work / "run" / "checkpoints")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def send_to_all(machine: Program, number: signal.Signals) -> None:
    """Send a signal to a launcher and all its processes at once."""
    for process in machine.family():
        process.send_signal(number)


def check(launcher: Launcher, lost: int, number: signal.Signals, data: Path, work: Path, undisturbed: str) -> None:
    """Kill or stop a machine in the middle of a run, then start both again."""
    with started(*commands(launcher, data), work=work) as machines:
        wait_for_step(LOST_AT, work)
        start = time.monotonic()
        send_to_all(machines[lost], number)
        ended = machines[1 - lost].end()
        assert time.monotonic() - start < TIMEOUT + QUERY_SECONDS + LAUNCHER_SECONDS
        assert machines[1 - lost].family() == []
        assert ended.code not in (EXIT_DONE, None)
        cause = {signal.SIGKILL: "exited without an error", signal.SIGSTOP: r"did not answer within run\.timeout=5 s"}
        named = re.findall(rf"^mnist_dist: error: rank (\d): rank (\d) on \S+ {cause[number]}", ended.err, re.MULTILINE)
        # Under c10d, either machine may get rank 0.
        expected = [[("0", "1")], [("1", "0")]] if launcher is torchrun_c10d else [[(str(1 - lost), str(lost))]]
        assert named in expected, ended.err
    assert not (work / "run" / "summary.json").exists()
    again = run(*commands(launcher, data), work=work)
    assert [each.code for each in again] == [EXIT_DONE, EXIT_DONE], again
    assert json.loads((work / "run" / "summary.json").read_text())["resumed_from"] is not None
    assert weights(work / "run") == undisturbed


def test_when_the_first_machine_is_killed(data: Path, tmp_path: Path, undisturbed: str) -> None:
    """It has rank 0, and serves the rendezvous store."""
    check(accelerate, 0, signal.SIGKILL, data, tmp_path, undisturbed)


WHOLE = [
    (launcher, lost, number)
    for launcher in (accelerate, torchrun_static, torchrun_c10d)
    for lost in (0, 1)
    for number in (signal.SIGKILL, signal.SIGSTOP)
    if (launcher, lost, number) != (accelerate, 0, signal.SIGKILL)  # above
]


@pytest.mark.faults
@pytest.mark.parametrize(("launcher", "lost", "number"), WHOLE)
def test_whichever_machine_is_lost(
    launcher: Launcher, lost: int, number: signal.Signals, data: Path, tmp_path: Path, undisturbed: str
) -> None:
    check(launcher, lost, number, data, tmp_path, undisturbed)

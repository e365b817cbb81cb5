"""Network faults on several machines: every run ends as docs/reliability.md promises, and none hangs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launchers import LAUNCHERS, PORT, Launcher, accelerate, commands, torchrun_c10d, torchrun_static, without_launcher
from network import Machine, missing, missing_wire, network
from programs import PYTHON, SECONDS, Ended, Program, run, started
from small_run import LOCAL, assert_as_alone, give_data, make_digits, train_alone

from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

TIMEOUT = 10
SHORT = [*LOCAL, f"--run.timeout={TIMEOUT}"]
LONG = [*SHORT, "--train.max_steps=400", "--train.epochs=20", "--train.checkpoint_steps=10"]
LATE_SECONDS = 6.0


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on one process."""
    return train_alone(tmp_path_factory.mktemp("alone"), *LOCAL, f"--data.root={digits}")


def errors(ended: Ended) -> list[str]:
    """The program's error lines."""
    return re.findall(r"^mnist_dist: error: (.*)$", ended.err, re.MULTILINE)


def end(*programs: Program) -> list[Ended]:
    """Wait for programs that must fail and leave no process."""
    ended = [program.end() for program in programs]
    assert [program.family() for program in programs] == [[] for _ in programs]
    assert all(one.code not in (EXIT_DONE, None) for one in ended), ended
    return ended


def end_of_children(program: Program) -> Ended:
    """Wait for the processes that a launcher started; the launcher itself need not end.

    If torchrun's c10d cannot reach the machine of its store any more, it waits minutes until TCP gives up.
    """
    deadline = time.monotonic() + SECONDS
    while [process for process in program.family() if process.pid != program.process.pid]:
        assert time.monotonic() < deadline, program.errors.read_text()
        time.sleep(0.1)
    return Ended(EXIT_FAILED, "", program.errors.read_text())


def unreachable(rank: int, other: int) -> str:
    """The error of a rank that another rank does not answer any more."""
    cause = f"did not answer within run.timeout={TIMEOUT} s (stopped or unreachable)"
    return f"rank {rank}: rank {other} on machine{other} {cause}"


def test_a_cut_link_ends_both_machines_and_restored_they_continue(digits: Path, tmp_path: Path) -> None:
    with network(2, tmp_path) as machines:
        give_data(machines, digits)
        with started(*commands(accelerate, machines, *LONG), work=tmp_path) as programs:
            programs[0].wait_for_line("step 20/")
            machines[1].unplug()
            for rank, ended in enumerate(end(*programs)):
                assert errors(ended) == [unreachable(rank, 1 - rank)], ended.err
        machines[1].plug()
        again = run(*commands(accelerate, machines, *LONG), work=tmp_path)
        alone = train_alone(tmp_path, *LONG, f"--data.root={digits}")
        assert_as_alone(machines, again, alone)


@pytest.mark.faults
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("fault", [Machine.unplug, Machine.drop])
@pytest.mark.parametrize("where", [0, 1])
def test_two_machines_that_lose_each_other_both_report_it(
    launcher: Launcher, fault: Callable[[Machine], None], where: int, digits: Path, tmp_path: Path
) -> None:
    with network(2, tmp_path, "known") as machines:
        give_data(machines, digits)
        with started(*commands(launcher, machines, *LONG), work=tmp_path) as programs:
            programs[0].wait_for_line("step 20/")
            fault(machines[where])
            (first,) = end(programs[0])
            second = end_of_children(programs[1]) if launcher is torchrun_c10d else end(programs[1])[0]
            assert errors(first) == [unreachable(0, 1)], first.err
            assert errors(second) == [unreachable(1, 0)], second.err


@pytest.mark.faults
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("gone", [0, 2])
def test_one_of_three_machines_is_gone(launcher: Launcher, gone: int, digits: Path, tmp_path: Path) -> None:
    """As by a power cut: its link is down before its processes could send anything."""
    with network(3, tmp_path, "known") as machines:
        give_data(machines, digits)
        with started(*commands(launcher, machines, *LONG), work=tmp_path) as programs:
            programs[0].wait_for_line("step 20/")
            machines[gone].unplug()
            programs[gone].kill()
            for rank, program in enumerate(programs):
                if rank != gone:
                    launcher_waits = launcher is torchrun_c10d and gone == 0
                    ended = end_of_children(program) if launcher_waits else end(program)[0]
                    assert errors(ended) == [unreachable(rank, gone)], ended.err


@pytest.mark.faults
@pytest.mark.parametrize("launcher", [*LAUNCHERS, without_launcher])
@pytest.mark.parametrize("late", [0, 1])
def test_a_machine_that_comes_late(launcher: Launcher, late: int, digits: Path, tmp_path: Path, alone: Path) -> None:
    with network(2, tmp_path, "known") as machines:
        give_data(machines, digits)
        starts = commands(launcher, machines, *LOCAL)
        with started(starts[1 - late], work=tmp_path) as first:
            time.sleep(LATE_SECONDS)
            with started(starts[late], work=tmp_path) as second:
                ended = [program.end() for program in (*first, *second)]
        assert_as_alone(machines, ended if late else ended[::-1], alone)


@pytest.mark.faults
@pytest.mark.skipif(bool(missing_wire()), reason=missing_wire())
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_slow_link_that_loses_packets_changes_nothing(launcher: Launcher, digits: Path, tmp_path: Path) -> None:
    """20 ms each way at each machine, so a round trip of 80 ms; 1 % of packets lost on each of the four ways."""
    few = [*LOCAL, "--train.max_steps=5", "--train.shards=2", "--run.timeout=60"]
    with network(2, tmp_path, "known", wire=(0.02, 0.01)) as machines:
        give_data(machines, digits)
        ended = run(*commands(launcher, machines, *few), work=tmp_path)
        assert_as_alone(machines, ended, train_alone(tmp_path, *few, f"--data.root={digits}"))


def run_with_addresses(
    machines: list[Machine],
    digits: Path,
    addresses: tuple[str, str],
    work: Path,
    codes: tuple[int, int] = (EXIT_FAILED, EXIT_FAILED),
) -> list[Ended]:
    """Start two machines with these addresses of the rendezvous; each must end with an error and an exit code."""
    give_data(machines, digits)
    starts = [commands(without_launcher, machines, *SHORT, address=each)[rank] for rank, each in enumerate(addresses)]
    with started(*starts, work=work) as programs:
        ended = end(*programs)
    assert tuple(one.code for one in ended) == codes
    assert [len(errors(one)) for one in ended] == [1, 1], ended
    return ended


def could_not_connect(rank: int, address: str) -> str:
    """A pattern of the error's beginning."""
    others = rf"(rank {1 - rank}|the other ranks) \(rendezvous at {re.escape(address)}:{PORT}\) "
    return rf"rank {rank} of 2 could not connect to {others}"


def test_a_wrong_address_is_named(digits: Path, tmp_path: Path) -> None:
    with network(2, tmp_path) as machines:
        first, second = run_with_addresses(machines, digits, ("10.9.8.1", "10.9.8.99"), tmp_path)
        assert re.match(could_not_connect(0, "10.9.8.1"), errors(first)[0]), first.err
        assert re.match(could_not_connect(1, "10.9.8.99"), errors(second)[0]), second.err


@pytest.mark.faults
def test_a_port_that_is_in_use_is_named(digits: Path, tmp_path: Path) -> None:
    code = f"import socket, time; s = socket.create_server(('', {PORT})); print('taken', flush=True); time.sleep(600)"
    with network(2, tmp_path) as machines:
        with started(machines[0].command(*PYTHON, "-c", code), work=tmp_path) as (other,):
            other.wait_for_line("taken")
            codes = EXIT_USER, EXIT_FAILED
            first, second = run_with_addresses(machines, digits, ("10.9.8.1", "10.9.8.1"), tmp_path, codes)
        in_use = f"rank 0 of 2 cannot listen at 10.9.8.1:{PORT}, which is in use: by another run"
        assert errors(first)[0].startswith(in_use), first.err
        assert re.match(could_not_connect(1, "10.9.8.1"), errors(second)[0]), second.err


@pytest.mark.faults
@pytest.mark.parametrize("where", [0, 1])
def test_a_firewall_that_drops_everything(where: int, digits: Path, tmp_path: Path) -> None:
    with network(2, tmp_path) as machines:
        machines[where].drop()
        for rank, ended in enumerate(run_with_addresses(machines, digits, ("10.9.8.1", "10.9.8.1"), tmp_path)):
            assert re.match(could_not_connect(rank, "10.9.8.1"), errors(ended)[0]), ended.err


@pytest.mark.faults
@pytest.mark.parametrize("launcher", [accelerate, torchrun_static])
def test_a_firewall_that_lets_only_the_main_port_through(launcher: Launcher, digits: Path, tmp_path: Path) -> None:
    """As a cloud's rule for one open port: the rendezvous works, and connections between the ranks do not."""
    with network(2, tmp_path) as machines:
        give_data(machines, digits)
        for machine in machines:
            for port in ("--dport", "--sport"):
                machine.run("iptables", "-A", "INPUT", "-p", "tcp", port, PORT, "-j", "ACCEPT")
            machine.drop()
        with started(*commands(launcher, machines, *SHORT), work=tmp_path) as programs:
            for rank, ended in enumerate(end(*programs)):
                (error,) = errors(ended)
                assert re.match(could_not_connect(rank, "10.9.8.1"), error), ended.err

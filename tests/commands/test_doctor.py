"""The doctor on one process and on several: what it finds, what it calls a problem, and that it never hangs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks, try_ranks
from programs import write_digits

import mnist_dist.commands.doctor as doctor
import mnist_dist.commands.doctor_checks as doctor_checks
import mnist_dist.commands.doctor_torch_checks as doctor_torch_checks
from mnist_dist.commands.doctor_checks import NOTE, OK, PROBLEM, Finding, probe_address, run_checks
from mnist_dist.config.loader import load
from mnist_dist.distributed import launch_options
from mnist_dist.distributed.cluster_environment import ClusterEnvironment
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import TrainingError

CONFIG = load([]).config
ARGUMENTS = ["--json", "--run.device=cpu", "--run.threads=1", "--tracking.mode=disabled"]
ARGUMENTS += ["--data.source=local", "--data.val_size=5"]


def examine(folder: Path, arguments: list[str], odd: str = "") -> tuple[int, float]:
    """One process of a doctor's visit; its exit code and seconds. Something may be odd about rank 1."""
    rank = os.environ["RANK"]
    if odd == "code" and rank == "1":
        doctor.software = lambda: {"mnist_dist": "0", "torch": "2", "accelerate": "1", "code": "other"}
    if odd == "time" and rank == "1":
        now = time.time
        time.time = lambda: now() + 60
    root = folder / "data"
    if odd == "data" and rank == "1":
        root = folder / "half"
    with (folder / f"out-{rank}").open("w") as file:
        os.dup2(file.fileno(), 1)
    start = time.monotonic()
    code = doctor.main([*ARGUMENTS, *arguments, f"--data.root={root}", f"--run.dir={folder / 'run'}"])
    return code, time.monotonic() - start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data in `data`, and some of it in `half`."""
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=30, test=10)
    (tmp_path / "half").mkdir()
    shutil.copy(tmp_path / "data" / "train-labels-idx1-ubyte", tmp_path / "half")
    return tmp_path


def report(folder: Path) -> tuple[bool, dict[str, Any]]:
    """Whether the run would work, and each check by its name."""
    found = json.loads((folder / "out-0").read_text())
    return found["works"], {row["check"]: row for row in found["checks"]}


ALONE = [
    *("launcher", "packages", "CPU", "shared memory", "main address", "data", "run folder", "wandb"),
    *("torchvision", "accelerate", "device", "precision", "data set", "software", "precision of the run"),
]


def test_one_process(folder: Path) -> None:
    ((code, _),) = run_ranks(1, examine, folder, [])
    works, checks = report(folder)
    assert (code, works, list(checks)) == (0, True, ALONE)
    assert checks["data"]["found"] == str(folder / "data")
    assert checks["device"]["found"].startswith("cpu, ")
    assert not (folder / "run").exists()


def test_two_processes_are_one_table(folder: Path) -> None:
    assert [code for code, _ in run_ranks(2, examine, folder, [], machines=2)] == [0, 0]
    works, checks = report(folder)
    assert works
    assert {"clocks", "rendezvous", "all-reduce"} <= set(checks)
    assert checks["launcher"]["found"] == "RANK in the environment, 2 in all, 2 machines"
    assert checks["rendezvous"]["found"] == "2 on 2 machines, gloo"
    assert checks["software"]["found"].startswith("the same everywhere: mnist_dist ")
    assert (folder / "out-1").read_text() == ""


@pytest.mark.parametrize(
    ("odd", "check", "verdict", "found"),
    [
        ("code", "software", PROBLEM, "rank 1 (HOST) differ from rank 0: "),
        ("time", "clocks", NOTE, "the clock of rank 1 is 60 s ahead of rank 0's"),
        ("data", "data", PROBLEM, "rank 0: FOLDER/data; rank 1: FOLDER/half: has train-labels-idx1-ubyte but not "),
    ],
)
def test_what_differs_is_named(odd: str, check: str, verdict: str, found: str, folder: Path) -> None:
    code = 1 if verdict == PROBLEM else 0
    assert [each for each, _ in run_ranks(2, examine, folder, [], odd)] == [code, code]
    works, checks = report(folder)
    assert works is (verdict != PROBLEM)
    assert checks[check]["verdict"] == verdict
    assert checks[check]["found"].startswith(found.replace("HOST", socket.gethostname()).replace("FOLDER", str(folder)))
    assert checks[check]["advice"]


def test_a_process_that_is_missing_is_named_in_time(folder: Path) -> None:
    first, _, third = try_ranks(3, examine, folder, ["--run.timeout=2", "--train.batch_size=255"], absent=[1])
    assert first.value[0] == 1
    assert first.value[1] < 30
    works, checks = report(folder)
    assert not works
    assert checks["rendezvous"]["found"].startswith("rank 0 of 3 could not connect to rank 1 (rendezvous at 127.0.0.1:")
    assert "answers: another process is missing" in checks["rendezvous"]["advice"]
    assert checks["data"]["verdict"] == OK  # what it found alone is shown all the same
    assert isinstance(third.error, TrainingError)
    assert "could not connect to" in str(third.error)


def examine_stuck(folder: Path) -> None:
    """The processes are stuck where they meet, as gloo is where it knocks at a machine that drops everything."""
    rank = os.environ["RANK"]
    with (folder / f"err-{rank}").open("w") as file:
        os.dup2(file.fileno(), 2)
    doctor.MARGIN_SECONDS = 0.5
    doctor.gather_findings = lambda config, topology, findings: threading.Event().wait()
    examine(folder, ["--run.timeout=1"])


def test_processes_that_are_stuck_say_what_is_known_and_end(folder: Path) -> None:
    outcomes = try_ranks(2, examine_stuck, folder)
    assert [outcome.exit_code for outcome in outcomes] == [1, 1]
    works, checks = report(folder)
    assert not works
    assert checks["rendezvous"]["found"] == "rank 0 of 2 is stuck: no answer within 1 s"
    assert checks["data"]["verdict"] == OK
    (line,) = (folder / "err-1").read_text().splitlines()
    assert line.startswith("mnist_dist: error: rank 1 of 2 is stuck: no answer within 1 s; 127.0.0.1:")


def test_a_launcher_that_contradicts_itself_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_STEP_NUM_TASKS", "2")
        patch.setattr(doctor, "ALL_RANK_CHECKS", {})
        patch.setattr(doctor, "RANK_0_CHECKS", {})
        patch.setattr(doctor, "TORCH_CHECKS", {})
        patch.setattr(doctor, "gather_findings", lambda config, topology, findings: findings)
        assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "SLURM_PROCID is not set" in out
    assert out.endswith("this run would fail: see the problems above\n")


def test_help_comes_before_any_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        doctor.main(["--help"])
    assert "mnist-dist doctor" in capsys.readouterr().out


# Single checks


def test_a_check_that_hangs_is_left_behind() -> None:
    release = threading.Event()

    def hang(config: Any, topology: Any) -> Finding:
        release.wait()
        return Finding("disk", "came back")

    def fail(config: Any, topology: Any) -> Finding:
        raise RuntimeError("no\nsuch thing")

    start = time.monotonic()
    found = run_checks({"disk": hang, "other": fail}, CONFIG, Topology(), 0.2)
    assert time.monotonic() - start < 10
    release.set()
    assert found == [
        Finding("disk", "no answer within 0.2 s", PROBLEM, "the disk or the network hangs"),
        Finding("other", "RuntimeError: no such thing", PROBLEM),
    ]


def two(address: str, cluster: ClusterEnvironment | None = None, machines: int = 2) -> Topology:
    return Topology(0, 2, 0, 2 // machines, address, cluster=cluster)


def test_a_name_that_nobody_knows() -> None:
    found = doctor_checks.check_address(CONFIG, two("nowhere.invalid:29500"))
    assert (found.verdict, found.found[:24]) == (PROBLEM, "nowhere.invalid:29500: [")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = ClusterEnvironment("srun", 0, 2, 0, 1, "127.0.0.1", port, "SLURM_PROCID", "SLURM_NTASKS", 0, 2)
        found = doctor_checks.check_address(CONFIG, two(f"127.0.0.1:{port}", cluster))
        assert (found.verdict, found.advice) == (PROBLEM, "choose another MASTER_PORT")
        assert probe_address(f"127.0.0.1:{port}").startswith("answers")
    assert doctor_checks.check_address(CONFIG, two(f"127.0.0.1:{port}", cluster)).verdict == OK
    assert probe_address(f"127.0.0.1:{port}") == "cannot be reached: Connection refused"


def test_a_machine_that_takes_itself_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    monkeypatch.setattr(doctor_checks, "find_interface", lambda host, port: "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kind: [(0, 0, 0, "", ("10.9.8.7", 1))])
    found = doctor_checks.check_address(CONFIG, two("n1:1"))
    assert (found.verdict, found.found) == (NOTE, "n1:1 is 10.9.8.7; this machine takes itself for 127.0.1.1")
    assert "GLOO_SOCKET_IFNAME" in found.advice


def test_a_run_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor_checks.check_run_folder(load([f"--run.dir={tmp_path}/file/run"]).config, Topology())
    assert (found.verdict, found.found) == (PROBLEM, f"{tmp_path}/file: Not a directory")
    assert doctor_checks.check_run_folder(load([f"--run.dir={tmp_path}/a/b"]).config, Topology()).verdict != PROBLEM
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_wandbs_server_may_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "canary" * 8)
    found = doctor_checks.check_wandb(load(["--tracking.mode=online"]).config, Topology())
    assert found.verdict == NOTE
    assert f"http://127.0.0.1:{port} does not answer" in found.found
    assert "offline" in found.advice
    assert "canary" not in str(found)


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor_checks, "requires", lambda name: ["torch>=2.10", "wandb>=0.28.1", 'build>=1; extra == "dev"']
    )
    versions = {"torch": "2.9.1", "wandb": "not installed"}
    monkeypatch.setattr(doctor_checks, "installed", lambda name: versions.get(name, "9"))
    found = doctor_checks.check_packages(CONFIG, Topology())
    assert (found.verdict, found.found) == (PROBLEM, "torch 2.9.1, needs >=2.10; wandb not installed, needs >=0.28.1")
    versions |= {"torch": "2.10.0+cu130", "wandb": "0.29"}
    assert doctor_checks.check_packages(CONFIG, Topology()).verdict == OK


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    topology = Topology(1, 2, 1, 2, "127.0.0.1:1")
    device, *_ = run_checks({"device": doctor_torch_checks.check_device}, CONFIG, topology, 20)
    assert device.verdict == PROBLEM
    assert device.found == (
        "2 processes on this machine, which has 1 GPU: start at most 1, or train on the CPU with --run.device=cpu"
    )
    with pytest.raises(TrainingError, match="2 processes on this machine"):
        doctor.gather_findings(CONFIG, topology, [device])
    assert doctor.gather_findings(CONFIG, Topology(0, 2, 0, 2, "127.0.0.1:1"), [device]) == [device]


def test_absent_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is only to come into the default folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for arguments, verdict in (
        (["--data.source=local"], PROBLEM),
        (["--data.source=auto"], NOTE),
        ([f"--data.root={tmp_path}"], PROBLEM),
    ):
        (found,) = run_checks({"data": doctor_checks.check_data}, load(arguments).config, Topology(), 20)
        assert found.verdict == verdict, found


class TwoRanks:
    """The collective of two ranks, the other of which has the answer that is given."""

    world_size = 2

    def __init__(self, other: tuple[str, str]) -> None:
        self.other = other

    def all_gather_object(self, mine: object) -> list[object]:
        return [mine, self.other]


def test_machines_with_different_data(tmp_path: Path) -> None:
    write_digits(tmp_path, train=30, test=20)
    config = load([f"--data.root={tmp_path}", "--data.val_size=5", "--data.test_limit=15"]).config

    def found(*other: str) -> list[Finding]:
        return doctor.check_data_sets(TwoRanks(other), config, ["one", "two"])  # type: ignore[arg-type]

    (alone,) = found("", "")
    assert alone.found.startswith("mnist, 10 classes: 25 train, 5 val, 15 test, sha256 ")  # what the run would have
    assert found(alone.found, "") == [alone]
    (odd,) = found("25 train, 5 val, 15 test, sha256 1 and 2", "")
    assert odd.verdict == PROBLEM
    assert odd.found == f"rank 0 (one): {alone.found}; rank 1 (two): 25 train, 5 val, 15 test, sha256 1 and 2"
    truncated = found("", "labels: truncated; fetch them")[0]
    assert (truncated.found, truncated.advice) == ("rank 1 (two): labels: truncated", "fetch them")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    doctor.show([Finding("precision of the run", "fp32"), Finding("data", "/" + "d" * 30, PROBLEM, "fetch it")], False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert ("what to do" in lines[0]) == (width == 140)
    assert any("/" + "d" * 28 in line for line in lines)
    assert sum("fetch it" in line for line in lines) == 1


def test_more_threads_than_cores() -> None:
    assert doctor_checks.check_cores(load(["--run.threads=4096"]).config, Topology()).verdict == NOTE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'distributed_type: "NO"\nmixed_precision: no\n',
            'YAML reads an unquoted no as false; write "no"',
        ),
        ("distributed_type: SEVERAL\n", "'SEVERAL' is not a valid DistributedType"),
        ('distributed_type: "NO"\nno_such_key: 1\n', "unknown keys"),
        ("a: [\n", "while parsing a flow node"),
        ('distributed_type: "NO"\nmixed_precision: "no"\nnum_processes: 1\n', ""),
    ],
)
def test_the_file_of_accelerate_config(text: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "default_config.yaml"
    path.write_text(text)
    wrong = launch_options.describe_config_file(str(path))
    assert found in wrong
    assert bool(wrong) == bool(found)
    monkeypatch.setattr(launch_options, "describe_config_file", lambda: wrong)
    finding = doctor_torch_checks.check_accelerate_file(CONFIG, Topology())
    assert (finding.verdict, found in finding.found) == (NOTE if found else OK, True)


def test_a_batch_script_of_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    found = doctor_checks.check_launcher(CONFIG, Topology())
    assert (found.found, found.verdict) == ("none, in a Slurm job of 4 tasks", NOTE)


def test_ranks_that_found_the_same_share_a_row() -> None:
    good, bad = Finding("device", "a"), Finding("device", "b", PROBLEM, "mend it")
    every = [[good, Finding("run folder", "here")], [bad], [good]]
    told = Finding("device", "ranks 0, 2: a; rank 1: b", PROBLEM, "mend it")
    assert doctor.merge(every) == [told, Finding("run folder", "here")]

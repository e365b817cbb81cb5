"""What `accelerate launch` was told: a file for GPUs insists on them, and missing processes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from programs import LAUNCH

from mnist_dist.config.loader import load
from mnist_dist.distributed import device, launch_options
from mnist_dist.distributed.device import should_use_cpu
from mnist_dist.distributed.launch_options import LaunchOptions, describe_missing_processes, read_launch_options
from mnist_dist.distributed.topology import Topology, read_topology
from mnist_dist.utils.errors import UserError

PROGRAM = ["-m", "mnist_dist.train", "--run.dir=launch", "--config_file=mine.yaml"]
ONE, TWO = Topology(launcher_pid=1), Topology(0, 2, 0, 2, "127.0.0.1:1", launcher_pid=1)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "/bin/accelerate", "launch", "--num-processes", "2"], LaunchOptions("", 2)),
        (["python", "-m", "accelerate.commands.launch", "--cpu"], LaunchOptions("", 0, True)),
        (["python", "/bin/accelerate-launch", "--config_file", "cpu_2.yaml"], LaunchOptions("cpu_2.yaml", 2, True)),
        (["accelerate", "launch", "--config_file=fsdp2.yaml", "--num_processes=4"], LaunchOptions("fsdp2.yaml", 4)),
        (["python", "/bin/torchrun", "--standalone", "--nproc-per-node=2"], None),
        (["bash", "launch"], LaunchOptions()),
        (["accelerate", "launch", "--no-such-option=1"], None),
    ],
)
def test_the_launchers_command_line(command: list[str], expected: LaunchOptions | None) -> None:
    assert read_launch_options([*command, *PROGRAM], str(LAUNCH)) == expected


def told(monkeypatch: pytest.MonkeyPatch, options: LaunchOptions | None, accelerator: str) -> None:
    """Stand-ins for the launcher and for torch's accelerator."""
    monkeypatch.setattr(device, "find_launch_options", lambda topology: options)
    monkeypatch.setattr(launch_options, "find_launch_options", lambda topology: options)
    monkeypatch.setattr(device, "find_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


GPU_FILE, CPU_FILE = LaunchOptions("gpu.yaml", 1), LaunchOptions("cpu.yaml", 1, use_cpu=True)


@pytest.mark.parametrize(
    ("wanted", "accelerator", "options", "topology", "expected"),
    [
        ("auto", "cpu", None, ONE, True),
        ("auto", "cpu", LaunchOptions("", 1), ONE, True),  # the README's first command
        ("auto", "cpu", GPU_FILE, ONE, "gpu.yaml (accelerate's --config_file) is for GPUs, and torch"),
        ("cpu", "cpu", GPU_FILE, ONE, True),
        ("cpu", "cuda", GPU_FILE, ONE, True),
        ("auto", "cpu", CPU_FILE, ONE, True),
        ("auto", "cuda", CPU_FILE, TWO, True),  # torchrun's processes are not told
        ("auto", "cuda", None, ONE, False),
        ("auto", "cuda", GPU_FILE, TWO, "2 processes on this machine, which has 1 GPU"),
        ("auto", "mps", GPU_FILE, ONE, False),
        ("auto", "mps", None, TWO, True),
        ("mps", "mps", None, ONE, False),
        ("mps", "mps", None, TWO, "run.device=mps: for a single process only"),
        ("cuda", "cpu", None, ONE, "run.device=cuda: torch "),
        ("xpu", "cuda", None, ONE, "run.device=xpu: torch "),
        ("cuda", "cuda", CPU_FILE, ONE, "run.device=cuda, but accelerate launch was told to use the CPU"),
    ],
)
def test_the_device_is_the_one_that_was_asked_for(
    wanted: str,
    accelerator: str,
    options: LaunchOptions | None,
    topology: Topology,
    expected: bool | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(monkeypatch, options, accelerator)
    config = load([f"--run.device={wanted}"]).config
    if isinstance(expected, bool):
        assert should_use_cpu(config, topology) is expected
        return
    with pytest.raises(UserError) as error:
        should_use_cpu(config, topology)
    assert str(error.value).startswith(expected)


def test_missing_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, LaunchOptions("", 2, True), "cpu")
    assert describe_missing_processes(ONE).startswith("accelerate launch was told to start 2 processes, and started 1")
    assert describe_missing_processes(TWO) == ""
    told(monkeypatch, None, "cpu")
    assert describe_missing_processes(ONE) == ""


def test_the_launcher_is_asked_at_the_start_of_its_process(tmp_path: Path) -> None:
    """This test's own process is no launcher."""
    assert launch_options.find_launch_options(Topology()) is None
    assert launch_options.find_launch_options(ONE) is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend=inductor (the launcher's file or options"),
        ("ACCELERATE_USE_CPU", "maybe", "ACCELERATE_USE_CPU=maybe (environment): must be true or false"),
        ("ACCELERATE_USE_FSDP", "2", "ACCELERATE_USE_FSDP=2 (environment): must be true or false"),
    ],
)
def test_what_the_launcher_was_told_and_cannot_be_done_is_refused(variable: str, value: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_topology({variable: value})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("text", "use_cpu"), [("on", True), ("T", True), ("off", False), ("NO", False), ("", False)])
def test_accelerates_words_for_true_and_false(text: str, use_cpu: bool) -> None:
    assert read_topology({"ACCELERATE_USE_CPU": text, "ACCELERATE_DYNAMO_BACKEND": "NO"}).use_cpu is use_cpu

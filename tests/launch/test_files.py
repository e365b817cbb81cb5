"""accelerate reads every file in launch/ and knows its keys; each file's header shows its command."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from programs import LAUNCH

EXPECTED = {  # machines, processes in all, use_cpu
    "cpu_1.yaml": (1, 1, True),
    "cpu_2.yaml": (1, 2, True),
    "single_gpu.yaml": (1, 1, False),
    "multi_gpu.yaml": (1, 2, False),
    "multi_node.yaml": (2, 2, False),
    "multi_node_cpu.yaml": (2, 2, True),
    "fsdp2.yaml": (1, 2, False),
}


def test_which_files_exist() -> None:
    assert {path.name for path in LAUNCH.glob("*.yaml")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_file_and_knows_all_its_keys(name: str) -> None:
    config = load_config_from_file(str(LAUNCH / name))
    assert (config.num_machines, config.num_processes, config.use_cpu) == EXPECTED[name]
    # MULTI_CPU would start a single process.
    several = "FSDP" if name.startswith("fsdp") else "MULTI_GPU"
    assert config.distributed_type.value == ("NO" if config.num_processes == 1 else several)
    assert config.mixed_precision is None  # left to the command line and to train.precision


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_has_nothing_to_warn_about(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of 16 cores it would set threads for CPU processes, and warn."""
    told: list[str] = []
    monkeypatch.setattr(launch.logger, "warning", told.append)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = ["--config_file", str(LAUNCH / name), "-m", "mnist_dist.train"]
    launch._validate_launch_command(launch.launch_command_parser().parse_args(command))
    assert told == []


@pytest.mark.parametrize("name", EXPECTED)
def test_the_header_shows_the_command(name: str) -> None:
    header = (LAUNCH / name).read_text().split("distributed_type")[0]
    assert f"accelerate launch --config_file launch/{name}" in header
    assert "-m mnist_dist.train" in header


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text((LAUNCH / "cpu_2.yaml").read_text() + "rdzv_port: 1\n")
    with pytest.raises(ValueError, match="unknown keys"):
        load_config_from_file(str(path))


def test_the_readme_has_a_command_for_each_file() -> None:
    text = (LAUNCH / "README.md").read_text()
    for name in EXPECTED:
        assert f"accelerate launch --config_file launch/{name} " in text

"""What a newcomer mistypes, in every command: one line on standard error, exit code 2, and no file changed."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from kept_run import copy_kept_run
from refusals import refused_line

from mnist_dist.__main__ import main
from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.utils.errors import EXIT_USER

NO_RUNS = ("nowhere", "empty", "run/config.yaml", "~nobody-has-this-name/run")
OF_A_RUN = {
    "status": "status {}",
    "evaluate": "evaluate {}",
    "predict": "predict {} --index 3",
    "runs": "runs {}",
    "compare": "compare run {}",
    "report": "report {}",
    "explain": "explain {} --index 3",
    "export": "export {} --to safetensors",
    "demo": "demo {} --port 0",
    "ensemble": "ensemble run {}",
}
OF_A_MODEL = ("evaluate", "predict", "explain", "export", "demo")
OUTPUTS = {
    "report run --out {}.html": "matplotlib",
    "explain run --index 3 --out {}.svg": "matplotlib",
    "export run --to onnx --out {}.onnx": "onnx",
    "export run --to torch-export --out {}.pt2": "",
    "export run --to safetensors --out {}.safetensors": "",
    "export run --to hub --out {}": "",
    "dashboard --out {}.json": "wandb_workspaces",
    "sweep learning_rate --dir {}": "optuna",
    "repeat --config=default --seeds=1 --out {}": "",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a run, one whose checkpoint is damaged, and an empty folder."""
    copy_kept_run(tmp_path)
    copy_kept_run(tmp_path / "other")
    (tmp_path / "other" / "run").rename(tmp_path / "damaged")
    for weights in (tmp_path / "damaged").rglob("model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(line: str, home: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command line gets."""
    before = {path: path.is_file() and path.read_bytes() for path in home.rglob("*")}
    said = refused_line(line.split(), capsys)
    assert {path: path.is_file() and path.read_bytes() for path in home.rglob("*")} == before
    return said.removeprefix("mnist_dist: error: ")


@pytest.mark.parametrize("run", NO_RUNS)
@pytest.mark.parametrize("command", OF_A_RUN)
def test_a_wrong_run(command: str, run: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(OF_A_RUN[command].format(run), home, capsys).startswith(f"{run}: ")


@pytest.mark.parametrize("command", OF_A_MODEL)
def test_a_run_whose_only_checkpoint_is_damaged(command: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(OF_A_RUN[command].format("damaged"), home, capsys)
    assert said.startswith("damaged: has no complete checkpoint (checkpoint ")
    assert "model.safetensors: 100 bytes instead of " in said


@pytest.mark.parametrize("out", ["run/config.yaml/x", "/proc/x"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_cannot_be_written(
    command: str, out: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if OUTPUTS[command] and find_spec(OUTPUTS[command]) is None:
        pytest.skip(f"{OUTPUTS[command]} is not installed")
    said = refused(command.format(out), home, capsys)
    assert said.startswith(("--out ", "--dir "))
    assert "cannot be " in said
    assert "choose another" in said or "name another" in said


@pytest.mark.parametrize("command", [command for command in OUTPUTS if "{}." in command])
def test_an_output_that_is_a_folder(command: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if OUTPUTS[command] and find_spec(OUTPUTS[command]) is None:
        pytest.skip(f"{OUTPUTS[command]} is not installed")
    line = command.format("folder")
    Path(line.split()[-1]).mkdir()
    assert refused(line, home, capsys).startswith("--out folder.")


@pytest.mark.parametrize("to", ["torch-export", "safetensors"])
def test_a_disk_that_is_full(
    to: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found while the file is written, after the line of progress."""

    def fail(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert main(["export", "run", "--to", to]) == EXIT_USER
    assert "cannot be written (No space left on device)" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in home.iterdir()) == ["damaged", "digits", "empty", "other", "run"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option(command: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "typo" in refused(f"{command} {COMPLETE.get(command, 'run')} --typo=1", home, capsys)


COMPLETE = {
    "train": "",
    "compare": "run run",
    "predict": "run --index 3",
    "explain": "run --index 3",
    "export": "run --to hub",
    "data": "check",
    "models": "basic",
    "config": "schema",
    "doctor": "",
    "repeat": "--config=default --seeds=1",
    "dashboard": "",
    "completion": "bash",
}
"""What else a command needs, if not one run."""

"""Ctrl-C in every command, at a chosen call: one line, exit code 1, nothing half-written and no process left."""

from __future__ import annotations

import os
import re
import secrets
import signal
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
from harness import CONTEXT, kill_at_exit
from kept_run import copy_kept_run
from programs import PYTHON, SECONDS, marked, run, started

from mnist_dist.__main__ import enter
from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED

LINE = "mnist_dist: error: interrupted"
TRAIN = (
    *("--data.root=digits", "--data.source=local", "--data.val_size=0", "--model.name=basic", "--train.epochs=1"),
    *("--train.batch_size=50", "--train.precision=no", "--run.device=cpu", "--run.threads=1"),
)
SWEEP = """\
program: train.py
method: grid
metric: {name: val/accuracy, goal: maximize}
parameters:
  optim.lr: {values: [0.1, 0.01]}
command: [python, -m, mnist_dist.train, "${args}"]
"""
ONNX, MATPLOTLIB = ("onnx", "onnxscript", "onnxruntime"), ("matplotlib",)
CASES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("train --tracking.mode=disabled", ("config.loader:load", "data.prepare:provide_files"), ()),
    ("status run", ("commands.status:build_parser", "commands.run_status:read_run_status"), ()),
    ("evaluate run", ("checkpoint.load_model:load_model", "training.evaluation:evaluate"), ()),
    ("predict run --index 3", ("commands.predictor:read_split", "commands.terminal_images:draw_digit"), ()),
    ("runs .", ("commands.runs:find_records", "commands.runs:print_table"), ()),
    ("compare run other", ("commands.compare:compare_rows", "commands.compare:print_comparison"), ()),
    ("report run", ("training.model_view:view_model", "utils.files:sync"), MATPLOTLIB),
    ("explain run --index 3", ("commands.explain_figures:explanation_figure", "utils.files:sync"), MATPLOTLIB),
    ("explain run --embedding pca", ("models.embedding:principal_components",), MATPLOTLIB),
    ("export run --to onnx --int8", ("commands.export_formats:write_onnx", "commands.export_formats:get_next"), ONNX),
    ("export run --to torch-export", ("commands.exported_model:open_exported",), ()),
    ("export run --to safetensors", ("commands.export:compare",), ()),
    ("export run --to hub", ("commands.hub_folder:card", "commands.export:compare"), ()),
    ("demo run --port 0", ("checkpoint.load_model:load_model", "commands.demo_server:__init__"), ()),
    ("models", ("models.builder:find_builder", "commands.models:print_model"), ()),
    ("data fetch --data.root=digits", ("data.prepare:ensure_files",), ()),
    ("data check --data.root=digits", ("data.dataset:read_pair_of", "commands.data:files_table"), ()),
    ("data show 1 --data.root=digits", ("commands.terminal_images:draw_digit",), ()),
    ("config schema", ("config.json_schema:json_schema",), ()),
    ("doctor", ("commands.doctor_checks:run_checks", "commands.doctor:check_data_sets"), ()),
    ("sweep sweep.yaml", ("commands.sweep_config:read_sweep", "commands.sweep_runs:lock_folder"), ("optuna",)),
    ("repeat --config=default --seeds=1", ("commands.repeat:make_plan", "commands.sweep_runs:lock_folder"), ()),
    ("ensemble run other", ("commands.ensemble:check_members", "commands.ensemble:evaluate"), ()),
    ("dashboard --out x.json", ("commands.dashboard:names", "utils.files:sync"), ("wandb_workspaces",)),
    ("completion bash", ("commands.completion:program_parser",), ("shtab",)),
]
"""A command; the calls at which it is interrupted, as the work begins, within it, or with a file written aside; the
packages that it needs. While runs take place, `train`, `sweep` and `repeat` are stopped, not interrupted: see their
tests."""
WITH_SETTINGS = ("train", "doctor", "repeat")


def test_no_command_is_left_out() -> None:
    assert {command.split()[0] for command, _, _ in CASES} == set(COMMANDS)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a run, another one, their data, and a sweep."""
    home = tmp_path / "home"
    home.mkdir()
    copy_kept_run(home)
    (home / "run").rename(home / "other")
    summary = home / "other" / "summary.json"  # other weights, as far as `ensemble` is told
    summary.write_text(re.sub(r'("weights_sha256": ")[0-9a-f]+', r"\g<1>0", summary.read_text()))
    (home / "digits").rename(tmp_path / "digits")
    copy_kept_run(home)
    (home / "sweep.yaml").write_text(SWEEP)
    return home


def interrupted(words: list[str], call: str, home: Path, output: Path, mark: str) -> None:
    """The main function of a process that runs a command, and interrupts itself at a call: `module:function`."""
    module, _, function = call.partition(":")

    def interrupt_at_the_call(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or frame.f_code.co_name != function:
            return
        if frame.f_globals["__name__"] == f"mnist_dist.{module}":
            sys.setprofile(None)
            output.with_suffix(".reached").touch()
            os.kill(os.getpid(), signal.SIGINT)

    os.setsid()
    os.chdir(home)
    os.environ["STARTED_BY_TEST"] = mark
    for descriptor, path in ((1, output.with_suffix(".out")), (2, output.with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["mnist-dist", *words]
    sys.setprofile(interrupt_at_the_call)
    try:
        enter()
    except Exception:
        traceback.print_exc()


@pytest.mark.parametrize(
    ("command", "call", "packages"),
    [(command, call, packages) for command, calls, packages in CASES for call in calls],
    ids=[f"{command.partition(' --')[0]}-{call}" for command, calls, _ in CASES for call in calls],
)
def test_ctrl_c_is_one_line(command: str, call: str, packages: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    if missing := [name for name in packages if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    words = [*command.split(), *(TRAIN if command.split()[0] in WITH_SETTINGS else ())]
    before = files_in(home)
    mark, output = secrets.token_hex(8), tmp_path / "output"
    with kill_at_exit() as processes:
        processes[0] = CONTEXT.Process(target=interrupted, args=(words, call, home, output, mark))
        processes[0].start()
        processes[0].join(SECONDS)
        *progress, line = output.with_suffix(".err").read_text().splitlines() or [""]
        assert output.with_suffix(".reached").exists(), line
        assert (line, processes[0].exitcode) == (LINE, EXIT_FAILED)
        assert all(each.endswith("...") for each in progress), progress
        assert [each for each in psutil.process_iter() if marked(each, mark)] == []
    assert "Traceback" not in output.with_suffix(".out").read_text()
    assert {path for path in files_in(home) - before if path.name not in (".lock", "study.journal")} == set()


def files_in(folder: Path) -> set[Path]:
    """All files below a folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


def test_ctrl_c_ends_the_demo(home: Path) -> None:
    with started([*PYTHON, "-m", "mnist_dist", "demo", "run", "--port", "0"], work=home) as [program]:
        program.wait_for_line("draw a digit at http://127.0.0.1:")
        program.signal(signal.SIGINT)
        ended = program.end()
    assert (ended.code, ended.out, ended.err) == (EXIT_DONE, "\nended\n", "")


INTERRUPTED_IMPORT = """\
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["mnist-dist", "status", "run"]
{start}
"""


@pytest.mark.parametrize(
    ("start", "module"),
    [
        ("from mnist_dist.__main__ import enter; enter()", "mnist_dist.utils.help_text"),
        ("from mnist_dist.__main__ import enter; enter()", "mnist_dist.commands.status"),
        ("runpy.run_module('mnist_dist.train', run_name='__main__')", "mnist_dist.config.arguments"),
        ("runpy.run_module('mnist_dist.train', run_name='__main__')", "mnist_dist.utils.stdio"),
    ],
)
def test_ctrl_c_during_imports_is_one_line(start: str, module: str, home: Path) -> None:
    [ended] = run([*PYTHON, "-c", INTERRUPTED_IMPORT.format(start=start, module=module)], work=home)
    assert (ended.code, ended.out, ended.err) == (EXIT_FAILED, "", f"{LINE}\n")

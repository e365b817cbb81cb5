"""The examples with which each command's --help ends: its own parser takes them, and they run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from harness import run_ranks
from PIL import Image
from programs import write_digits

from mnist_dist.__main__ import main
from mnist_dist.config.loader import load

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "status",
    "evaluate",
    "predict",
    "runs",
    "compare",
    "report",
    "explain",
    "export",
    "demo",
    "models",
    "data",
    "data fetch",
    "data check",
    "data show",
    "doctor",
    "sweep",
    "repeat",
    "ensemble",
    "dashboard",
    "config",
    "completion",
)
WITH_SETTINGS = ("models", "doctor", "dashboard", "repeat")
"""Commands that hand the arguments which they do not know to the configuration's loader."""
MY_NET = "from torch import nn\n\ndef build(width=8):\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), "
MY_NET += "nn.ReLU(), nn.Linear(width, 10))\n"
RUN = (
    *("--data.root=data", "--data.source=local", "--data.val_size=50", "--run.dir=runs/digits", "--run.threads=1"),
    *("--model.name=basic", "--train.epochs=1", "--train.batch_size=50", "--train.precision=no", "--run.device=cpu"),
    *("--tracking.mode=disabled", "--run.quiet=true"),
)
CHEAP = ("status", "evaluate", "predict", "models", "data check", "data show")
"""Commands whose examples run here, except those that would start a launcher or need MNIST itself."""


def read_examples(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The examples in a command's help, as a user sees them."""
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    _, heading, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert heading, f"{command} --help has no examples"
    return [line.removeprefix("  ") for line in examples.replace(" \\\n      ", " ").splitlines()]


def arguments_of(example: str) -> list[str]:
    """What follows `mnist-dist` or `-m mnist_dist` in an example, up to a pipe or a redirection."""
    words = shlex.split(re.split(r" [|>] ", example)[0])
    return words[1:] if words[0] == "mnist-dist" else words[words.index("mnist_dist") + 1 :]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_the_parser_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = read_examples(command, capsys)
    assert 3 <= len(examples) <= 5
    name = command.split()[0]
    parser = import_module(f"mnist_dist.commands.{name}").build_parser()
    for example in examples:
        assert arguments_of(example)[: len(command.split())] == command.split(), example
        _, settings = parser.parse_known_args(arguments_of(example)[1:])
        assert name in WITH_SETTINGS or settings == [], example
        load(settings)
        for path in shlex.split(example):
            assert not path.startswith(("launch/", "configs/")) or (ROOT / path).is_file(), example


@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for an option with its choices in argparse's usage, which it does not break."""
    examples = {command: read_examples(command, capsys) for command in COMMANDS}
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("", "train", *COMMANDS):
        with contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
        usage, _, rest = capsys.readouterr().out.partition("\n\n")
        assert [line for line in rest.splitlines() if len(line) > width] == []
        assert width < 80 or [line for line in usage.splitlines() if len(line) > width] == []
    assert {command: read_examples(command, capsys) for command in COMMANDS} == examples


def run_commands(home: Path, commands: list[list[str]]) -> list[int]:
    """Run commands in a folder, one after the other; their exit codes."""
    os.chdir(home)
    return [main(command) for command in commands]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: data, a picture, a run, and my_net.py with a run of it."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    write_digits(home / "data", train=250, test=50)
    picture = Image.new("L", (28, 28))
    picture.paste(255, (8, 8, 20, 12))
    picture.save(home / "seven.png")
    (home / "my_net.py").write_text(MY_NET)
    mine = ["train", *RUN, "--run.dir=runs/mine", "--model.name=my_net.py:build"]
    assert run_ranks(1, run_commands, home, [mine, ["train", *RUN]]) == [[0, 0]]
    return home


@pytest.mark.parametrize("command", CHEAP)
def test_examples_run(command: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = [shlex.split(example) for example in read_examples(command, capsys)]
    here = [words[1:] for words in examples if words[0] == "mnist-dist" and "model.onnx" not in words]
    if command.startswith("data"):
        here = [words for words in here if "--data.root=data" in words]
    assert here
    assert run_ranks(1, run_commands, home, here) == [[0] * len(here)]

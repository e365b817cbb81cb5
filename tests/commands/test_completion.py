"""`mnist-dist completion`: the scripts name what there is, and bash completes with them."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from mnist_dist.__main__ import main
from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER

needs_shtab = pytest.mark.skipif(find_spec("shtab") is None, reason="needs the extra `completion`")

COMPLETE = """
source "$1"
COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
complete=$(complete -p mnist-dist | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$complete mnist-dist "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@needs_shtab
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_every_command_and_setting(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == EXIT_DONE
    script = capsys.readouterr().out
    for word in (*COMMANDS, "optim.lr", "onecycle", "speed99", "torch-export"):
        assert word in script
    if interpreter := shutil.which(shell):
        checked = subprocess.run([interpreter, "-n"], input=script, text=True, capture_output=True, timeout=60)
        assert (checked.returncode, checked.stderr) == (0, "")


@needs_shtab
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["mnist-dist", "ev"], ["evaluate"]),
        (["mnist-dist", "export", "--to", "o"], ["onnx"]),
        (["mnist-dist", "train", "--optim.sch"], ["--optim.schedule"]),
        (["mnist-dist", "train", "--optim.schedule", "one"], ["onecycle"]),
        (["mnist-dist", "train", "--config", "def"], ["default"]),
    ],
)
def test_bash_completes(words: list[str], found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == EXIT_DONE
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), *words], text=True, capture_output=True, timeout=60
    )
    assert done.stdout.split() == found, done.stderr


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == EXIT_USER
    assert "invalid choice: 'csh'" in capsys.readouterr().err

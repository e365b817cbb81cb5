"""The scripts of benchmarks/: found by the README there, started as help and documents say, and not in the wheel."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from programs import write_digits

from mnist_dist.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
COMMAND = re.compile(r"python benchmarks/(\w+)\.py([^`#\n]*)")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "launch").rglob("*.md"),
    *BENCHMARKS.glob("*.md"),
]


def parse(script: str, arguments: str) -> None:
    """Parse arguments as the script does; what follows two spaces explains them."""
    import_module(script).PARSER.parse_args(shlex.split(re.split(r"\s{2,}", arguments)[0]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_ends_with_three_to_five_examples_that_parse(script: str) -> None:
    shown = import_module(script).PARSER.format_help()
    examples = [line for line in shown.partition("\nexamples:\n")[2].splitlines() if line.strip()]
    assert 3 <= len(examples) <= 5
    for example in examples:
        found = COMMAND.match(example.strip())
        assert found, example
        assert found[1] == script
        parse(script, found[2])


def test_commands_in_documents_parse() -> None:
    found = [match for path in DOCUMENTS for match in COMMAND.findall(path.read_text())]
    assert {script for script, _ in found} == set(SCRIPTS)
    for script, arguments in found:
        parse(script, arguments)


def test_the_readme_names_every_script_and_no_other() -> None:
    table = re.findall(r"^\|.*`python benchmarks/(\w+)\.py", (BENCHMARKS / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(table) == SCRIPTS


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    """Python without site packages, from a checkout that is not installed."""
    for script in SCRIPTS:
        done = subprocess.run(
            [sys.executable, "-E", "-s", "-S", str(BENCHMARKS / f"{script}.py"), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert done.stderr == f"{script}.py: module mnist_dist is not installed; run: pip install -e .\n"


def test_nothing_of_the_benchmarks_is_in_the_package() -> None:
    """The wheel holds the folder mnist_dist and what is forced into it."""
    config = (ROOT / "pyproject.toml").read_text()
    wheel = config.partition("[tool.hatch.build.targets.wheel]")[2].partition("[tool.hatch.build.targets.sdist]")[0]
    settings = [line for line in wheel.splitlines() if line and not line.startswith(("#", "["))]
    assert settings == ['packages = ["mnist_dist"]', 'configs = "mnist_dist/config/recipes"']
    files = [path for folder in ("mnist_dist", "configs") for path in (ROOT / folder).rglob("*")]
    assert not [path for path in files if "benchmark" in path.name and path.suffix != ".pyc"]
    assert "benchmark" not in COMMANDS


def test_the_record_on_a_gpu_can_be_rehearsed_without_one(tmp_path: Path) -> None:
    write_digits(tmp_path, train=640, test=100)
    environment = {"REHEARSE": "1", "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    command = ["benchmarks/record.sh", f"--data.root={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "p that the mean is above 99.80 %" in ended.stdout
    assert re.search(r"test accuracy: .* of 100\)", ended.stdout)  # of the ensemble, as large as the test set
    assert not list(tmp_path.glob("tmp*"))

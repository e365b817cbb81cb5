"""Every file that asks which device it runs on is listed here, with what takes its branch for a GPU."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASKS = re.compile(r"device\.type|device_type|is_cuda|torch\.cuda\.|torch\.accelerator\.|torch\.mps|torch\.xpu")

UNTESTED = ""
BRANCHES: dict[str, tuple[int, str]] = {
    "commands/doctor_torch_checks.py": (5, UNTESTED),
    "data/augment.py": (1, "tests/training/test_no_wait.py"),
    "distributed/ddp.py": (1, UNTESTED),
    "distributed/device.py": (13, UNTESTED),
    "distributed/fixed_shards.py": (1, "tests/training/test_no_wait.py"),
    "distributed/fsdp.py": (1, UNTESTED),
    "distributed/mixed_precision.py": (2, UNTESTED),
    "distributed/runtime.py": (3, "tests/training/test_no_wait.py"),
    "distributed/step_timer.py": (2, "tests/distributed/test_step_timer.py"),
    "training/profiler.py": (6, UNTESTED),
    "training/rank_checks.py": (1, UNTESTED),
    "training/state.py": (1, "tests/training/test_nonfinite.py"),
    "training/visualizer.py": (1, UNTESTED),
}
"""File to the number of lines that ask, and the test that runs them for another device than the CPU."""


def test_the_list_of_branches_is_complete() -> None:
    package = ROOT / "mnist_dist"
    found = {}
    for path in sorted(package.rglob("*.py")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if ASKS.search(line)]
        if lines:
            found[path.relative_to(package).as_posix()] = len(lines)
    assert found == {file: count for file, (count, _) in BRANCHES.items()}


def test_each_branch_has_a_test_or_a_line_in_the_document() -> None:
    document = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    untested = re.search(r"- Untested on a GPU:(.*?)\n(?=- |\n)", document, re.DOTALL)
    assert untested
    for file, (_, test) in BRANCHES.items():
        if test:
            assert (ROOT / test).is_file()
        assert (f"`{file}`" in untested[1]) == (not test), file

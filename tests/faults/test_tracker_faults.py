"""wandb fails in many ways: weights, rows of metrics and exit code are those of a run without a tracker."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import FAKE_RUN, FAKE_SETTINGS
from forked_training import run_forked
from measured_keys import MEASURED_ROW_KEYS
from programs import write_digits

RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--run.dir=run", "--data.source=local"),
    *("--data.val_size=30", "--model.name=basic", "--train.epochs=2", "--train.batch_size=24", "--tracking.timeout=1"),
)
FAKE = textwrap.dedent(FAKE_SETTINGS + FAKE_RUN)
HANG = "import threading\nthreading.Event().wait()\n"
FAULTS = {
    "no wandb": "raise ModuleNotFoundError('no')",
    "an exception at import": "raise RuntimeError('no')",
    "a hang at import": HANG,
    "an exit at import": "import os; raise SystemExit(7)",
    "an exception in init": FAKE + "def init(**kwargs): raise OSError('no')",
    "a hang in init": FAKE + "import threading\ndef init(**kwargs): threading.Event().wait()",
    "an exception in log": FAKE + "def fail(self, row): raise KeyError('no')\nRun.log = fail",
    "a hang in log": FAKE + "import threading\ndef hang(self, row): threading.Event().wait()\nRun.log = hang",
    "a hang in finish": FAKE
    + "import threading\ndef hang(self, exit_code): threading.Event().wait()\nRun.finish = hang",
    "a full disk": FAKE + "def init(**kwargs): raise OSError(28, 'No space left on device')",
}


def run(work: Path, data: Path, *arguments: str, fake: str = "") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of a run in its own process.

    Args:
        fake: source of the module `wandb` that the process imports; by default the installed one.
    """
    work.mkdir()
    if fake:
        (work / "wandb.py").write_text(fake)
    ended = run_forked([*RECIPE, f"--data.root={data}", *arguments], work)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return (
        json.loads((work / "run" / "summary.json").read_text()),
        [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=30 + 24 * 4 + 7, test=50)
    return folder


@pytest.fixture(scope="module")
def untracked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of a run without a tracker."""
    return run(tmp_path_factory.mktemp("untracked") / "work", data, "--tracking.mode=disabled")


@pytest.mark.parametrize("fault", ["an exception at import", "a hang in log", "a full disk"])
def test_a_tracker_that_fails_changes_nothing(
    fault: str, data: Path, untracked: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert_same(fault, data, untracked, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_a_tracker_that_fails_in_any_way_changes_nothing(
    fault: str, data: Path, untracked: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert_same(fault, data, untracked, tmp_path)


def assert_same(fault: str, data: Path, untracked: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path) -> None:
    summary, rows = run(tmp_path / "work", data, "--tracking.mode=offline", fake=FAULTS[fault])
    assert summary["weights_sha256"] == untracked[0]["weights_sha256"]
    assert summary["test.loss"] == untracked[0]["test.loss"]
    assert rows == untracked[1]

"""Every benchmark prints the table of what it has measured, wherever it is interrupted, and writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import data_and_batch_size
import gpu
import large_batch
import overhead
import step_time
import time_to_accuracy
import tracking_cost
from common import comparison
from common.processes import TrainingRun
from mnist_dist.utils.errors import Stopped

SUMMARY = {
    "test.accuracy": 0.99,
    "test.count": 10000,
    "train.steps": 4,
    "train.seconds": 2.0,
    "train.flops_per_second": 4e12,
    "train.images_per_second": 1e6,
    "memory.peak_bytes": 2**30,
}
ROWS = [
    {"step": step, "time": float(step), "images_per_second": 256.0, "flops_per_second": 2e12, "mfu": 0.5}
    for step in (50, 215, 250, 430)
]
RUN = TrainingRun(SUMMARY, ROWS, 3.0)


def until(count: int, value: Any) -> Callable[..., Any]:
    """Gives a value so many times, and then is interrupted."""
    left = [value] * count

    def give(*_: object, **__: object) -> Any:
        if not left:
            raise KeyboardInterrupt
        return left.pop()

    return give


def interrupted(main: Callable[[Sequence[str]], int], *arguments: str) -> None:
    with pytest.raises(Stopped, match=r"^interrupted; the figures are of \d of 2 (rounds|seeds) and a part of one$"):
        main(arguments)


@pytest.mark.parametrize("count", [1, 6])
def test_a_comparison(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comparison, "rate_of", until(count, 10.0))
    interrupted(overhead.main, "--rounds", "2", "--json", str(tmp_path / "json"))
    found = json.loads((tmp_path / "json").read_text())
    assert [len(case["rates"]) for case in found.values()] == ([1] if count == 1 else [2, 1, 1, 1, 1])


@pytest.mark.parametrize("count", [1, 3])
def test_time_to_accuracy(count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"accuracy": 0.99, "seconds": 2.0, "whole": 4.0, "imports": 1.0, "data": 0.1}
    both = until(count, values)
    monkeypatch.setattr(time_to_accuracy, "train_reference", both)
    monkeypatch.setattr(time_to_accuracy, "train_recipe", both)
    interrupted(time_to_accuracy.main, "--seeds", "2")
    assert ("speed99, the whole command: 4.00 s" in capsys.readouterr().out) == (count == 3)


@pytest.mark.parametrize("count", [1, 10])
def test_large_batch(count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(large_batch, "train_once", until(count, SUMMARY))
    interrupted(large_batch.main, "--seeds", "2", "--batches", "64")
    tables = [line for line in capsys.readouterr().out.splitlines() if "test accuracy" in line]
    assert len(tables) == (1 if count == 1 else 3)


@pytest.mark.parametrize("module", [data_and_batch_size, step_time, tracking_cost])
@pytest.mark.parametrize("count", [1, 5])
def test_one_table_of_runs(
    module: Any, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "train", until(count, RUN))
    monkeypatch.setattr(data_and_batch_size, "write_copies", lambda folder, factor: None)
    chosen = {data_and_batch_size: ["--only", "batch 256"], step_time: ["--only", "batch 256", "--max_load", "1"]}
    interrupted(module.main, "--rounds", "2", *chosen.get(module, ["--max_load", "1"]))
    assert "medians of" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 4])
def test_gpu(count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "train", until(count, RUN))
    interrupted(gpu.main, "--seeds", "2", "--rounds", "0", "--only", "speed99")
    assert "99.00%" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "train", until(count + 1, RUN))  # the first for the peak: 2e12 FLOP/s are half of it
    interrupted(gpu.main, "--seeds", "0", "--rounds", "2", "--only", "cnn, batch 256")
    assert "peak 4.0 TFLOP/s" in capsys.readouterr().out

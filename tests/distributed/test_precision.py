"""The precision of a run: train.precision, else the launcher's, else the one that the device computes natively."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks, try_ranks
from programs import write_digits
from torch import nn

import mnist_dist.distributed.rendezvous
from mnist_dist.config.loader import load
from mnist_dist.distributed.device import describe_emulation, native_precision
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.train import main, start
from mnist_dist.utils.errors import UserError


def resolve(setting: str, launcher: str | None, native: str) -> tuple[str, torch.dtype]:
    """The precision of a run, and the dtype of the output of a layer under autocast."""
    if launcher is not None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = launcher
    mnist_dist.distributed.rendezvous.native_precision = lambda cpu: native  # type: ignore[assignment]
    config = load(["--run.device=cpu", f"--train.precision={setting}"]).config
    with start_runtime(config, read_topology()) as runtime, runtime.mixed_precision.autocast():
        return runtime.precision, nn.Linear(2, 2)(torch.ones(1, 2)).dtype


@pytest.mark.parametrize(
    ("setting", "launcher", "native", "expected"),
    [
        ("auto", None, "bf16", "bf16"),
        ("auto", None, "no", "fp32"),
        ("auto", "no", "bf16", "bf16"),  # `accelerate launch` passes `no` by default
        ("auto", "bf16", "no", "bf16"),
        ("no", "bf16", "bf16", "fp32"),
        ("bf16", "no", "no", "bf16"),
    ],
)
def test_the_precision_is_resolved(setting: str, launcher: str | None, native: str, expected: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[expected]
    assert run_ranks(1, resolve, setting, launcher, native) == [(expected, dtype)]


def test_fp16_from_the_launcher_is_refused_on_a_cpu() -> None:
    (outcome,) = try_ranks(1, resolve, "auto", "fp16", "no")
    assert isinstance(outcome.error, UserError)
    assert "fp16 (what the launcher says) needs a GPU" in str(outcome.error)


def test_an_unknown_precision_of_the_launchers_is_named() -> None:
    (outcome,) = try_ranks(1, resolve, "auto", "fp8", "no")
    assert str(outcome.error) == "mixed_precision=fp8 (what the launcher says): must be one of no, fp16, bf16"


def resolve_with_debug_mode(text: str) -> None:
    os.environ["ACCELERATE_DEBUG_MODE"] = text
    resolve("no", None, "no")


def test_another_error_of_accelerates_is_not_told_as_one_of_precision() -> None:
    (outcome,) = try_ranks(1, resolve_with_debug_mode, "perhaps")
    assert isinstance(outcome.error, UserError)
    assert str(outcome.error) == "accelerate cannot start: invalid truth value perhaps"


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "no")]
)
def test_bf16_is_native_on_a_cpu_with_instructions_for_it(
    bf16: bool, amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert native_precision(cpu=True) == expected


def test_bf16_is_native_on_a_gpu_that_does_not_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert native_precision(cpu=False) == "no"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert native_precision(cpu=False) == "bf16"


@pytest.mark.parametrize(("native", "precision", "warned"), [(False, "bf16", 1), (False, "no", 0), (True, "bf16", 0)])
def test_a_run_warns_of_emulated_bf16(
    native: bool,
    precision: str,
    warned: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    write_digits(tmp_path, train=40, test=10)
    arguments = ["--config=debug", f"--data.root={tmp_path}", "--data.source=local", f"--run.dir={tmp_path}/run"]
    assert main([*arguments, f"--train.precision={precision}", "--data.val_size=10", "--data.limit=0"]) == 0
    text = "this CPU emulates bf16, which takes longer than fp32; --train.precision=no is faster"
    assert capsys.readouterr().err.count(text) == warned


def test_a_gpu_that_emulates_bf16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert describe_emulation("bf16", cpu=False).startswith("this GPU emulates bf16")
    assert describe_emulation("fp32", cpu=False) == describe_emulation("fp16", cpu=False) == ""


def train_on_different_machines(work: Path, *options: str) -> Any:
    """Train; bf16 is native on rank 0 only."""
    native = "no" if read_topology().rank else "bf16"
    mnist_dist.distributed.rendezvous.native_precision = lambda cpu: native  # type: ignore[assignment]
    arguments = [
        f"--data.root={work}",
        "--data.source=local",
        "--data.val_size=0",
        "--train.epochs=1",
        "--run.quiet=true",
    ]
    return start([*arguments, "--model.name=basic", "--run.device=cpu", f"--run.dir={work}/run", *options])


@pytest.mark.parametrize("shards", [0, 2])
def test_ranks_with_different_native_precisions_are_refused(shards: int, tmp_path: Path) -> None:
    write_digits(tmp_path, train=40, test=10)
    settings = (f"--train.shards={shards}", "--train.batch_size=20", "--tracking.mode=disabled")
    for outcome in try_ranks(2, train_on_different_machines, tmp_path, *settings):
        assert isinstance(outcome.error, UserError)
        assert "precision=fp32 against 'bf16'" in str(outcome.error).replace("'fp32'", "fp32")
    assert run_ranks(2, train_on_different_machines, tmp_path, *settings, "--train.precision=no") == [0, 0]

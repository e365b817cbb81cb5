"""No step waits for the device or copies to it, and nothing is left on the CPU. The device is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import open_trainer
from stand_in_device import stand_in_device

from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model

SIZES = (50, 20)
BASICS = (
    "--run.device=cpu",
    "--run.threads=1",
    "--train.precision=no",
    "--train.batch_size=16",
    "--train.epochs=2",
    "--train.shards=0",
)


def train(arguments: tuple[str, ...], folder: Path, *, fused: bool = True, waits: int = 0) -> dict[str, int]:
    """Train on the stand-in device.

    Args:
        waits: number of waits that each step must have.

    Returns:
        Number of waits in evaluations, in checkpoints, and in the rest: rows.
    """
    config = load([*BASICS, *arguments]).config
    rows: list[dict[str, Any]] = []
    with stand_in_device(fused=fused) as device, start_runtime(config, Topology()) as runtime:
        assert runtime.device.type == "meta"
        build = lambda: create_model(config.model.name)  # noqa: E731
        trainer = open_trainer(runtime, config, folder, SIZES, build_model=build, rows=rows)
        counted = {"evaluate": 0, "save": 0}

        def count(name: str) -> None:
            method = getattr(trainer, name)

            def counting(*arguments: Any) -> Any:
                before = len(device.waits)
                result = method(*arguments)
                counted[name] += len(device.waits) - before
                return result

            setattr(trainer, name, counting)

        count("evaluate")
        count("save")
        step = trainer.train_step.step

        def checked_step(batch: Any) -> bool | None:
            with device.allow(waits):
                return step(batch)

        trainer.train_step.step = checked_step  # type: ignore[method-assign]
        trainer.train()
        assert trainer.progress.step == trainer.state.last_step
        assert [row["step"] for row in rows if "train.loss" in row] == [4, 8]
        rest = len(device.waits) - sum(counted.values()) - waits * trainer.progress.step
        return counted | {"rows": rest}


VARIANTS = {
    "adamw": ("--model.name=unshuffle",),
    "sgd, clipped": ("--optim.name=sgd", "--optim.momentum=0.9", "--optim.clip=0.5"),
    "muon, ema": ("--optim.name=muon", "--optim.ema=0.9", "--model.name=compact"),
    "augmented, accumulated": ("--data.shift=2", "--data.rotate=10", "--train.accumulate=2"),
    "skip": ("--train.nonfinite=skip", "--train.checkpoint_steps=2"),
    "shards": ("--train.shards=2", "--model.name=compact"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_step_waits_for_the_device(variant: str, tmp_path: Path) -> None:
    """An evaluation waits once. A row waits for the counts, the norms and the guard; an epoch's row for its counts."""
    waits = train(VARIANTS[variant], tmp_path)
    assert waits["evaluate"] == 2
    assert waits["rows"] == (2 * 4 if "--train.checkpoint_steps=2" not in VARIANTS[variant] else 2 * (4 + 2))
    assert waits["save"] > 0


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_an_optimizer_that_is_not_fused_waits_once_in_a_step(name: str, tmp_path: Path) -> None:
    train((f"--optim.name={name}", "--optim.ema=0.9"), tmp_path, fused=False, waits=1)


def test_the_stand_in_notices_what_a_step_must_not_do() -> None:
    with stand_in_device(fused=True) as device:
        values = torch.zeros(3, device="meta")
        for wait in (
            lambda: values.sum().item(),
            lambda: bool(values.sum() > 0),
            values.tolist,
            values.cpu,
            lambda: torch.zeros(3).copy_(values),
            lambda: torch.zeros(3).to("meta"),
            lambda: torch.zeros(3, device="meta").copy_(torch.zeros(3)),
        ):
            with pytest.raises(AssertionError, match="the host"), device.allow(0):
                wait()
        with pytest.raises(AssertionError, match="a tensor is on the CPU, another on the device"):
            values + torch.zeros(3)

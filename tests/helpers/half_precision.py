"""fp16 on the CPU, for tests: torch's autocast and GradScaler know it there; a run refuses it because it is slow."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from mnist_dist.config.schema import Config
from mnist_dist.distributed import runtime
from mnist_dist.distributed.topology import Topology


def use_fp16_on_cpu(monkeypatch: pytest.MonkeyPatch, scale: float = 2.0**16) -> None:
    """Make runs with train.precision=no train in fp16.

    Args:
        scale: initial scale of the loss.
    """
    create_accelerator = runtime.create_accelerator

    def create(config: Config, topology: Topology, cpu: bool) -> Accelerator:
        accelerator = create_accelerator(config, topology, cpu)
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    monkeypatch.setattr(runtime, "create_accelerator", create)

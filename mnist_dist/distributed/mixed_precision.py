"""Mixed precision: autocast for the forward pass and, in fp16, accelerate's gradient scaler.

fp32 and bf16 need no scaler: there `scale_loss` and `unscale` return their argument.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class UnscaledOptimizer(NamedTuple):
    """The part of `accelerate.optimizer.AcceleratedOptimizer` that a training step uses, without a gradient scaler."""

    step: Callable[[], Any]
    step_was_skipped: bool = False


class MixedPrecision:
    """The precision of a run: `fp32`, `bf16` or `fp16`.

    Args:
        accelerator: has resolved the precision, and holds the gradient scaler in fp16.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device_type: str = accelerator.device.type
        self.name: str = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass, for a model that accelerate has not wrapped. Threads may share it.

        Not accelerate's own `autocast()`, which takes 0.25 ms to enter. Casts are not cached: no weight is used twice
        in a pass, and threads would share the cache.
        """
        dtype = AUTOCAST_DTYPES.get(self.name)
        return torch.autocast(self.device_type, dtype, cache_enabled=False) if dtype else contextlib.nullcontext()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on: scaled in fp16."""
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def unscale(self, norm: Tensor) -> Tensor:
        """The norm of an unscaled gradient, from that of a scaled one. Does not wait for the device."""
        return norm if self.accelerator.scaler is None else norm / self.scale_loss(torch.ones_like(norm))

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Unscale gradients, then scale them down to L2 norm `max_norm` if they exceed it; returns the norm before."""
        return self.accelerator.clip_grad_norm_(parameters, max_norm)

    def prepare_optimizer(self, optimizer: Optimizer) -> Any:
        """The optimizer with the gradient scaler's `step()` and `step_was_skipped`.

        The optimizer is not moved: that would cut its ties to the parameters' memory. Without a scaler accelerate's
        wrapper is left out: it looks for an installed package at each step, which takes 0.2 ms.
        """
        if self.accelerator.scaler is None:
            return UnscaledOptimizer(optimizer.step)
        return self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def state_dict(self) -> dict[str, Any]:
        """The gradient scaler's state, plain numbers; empty without one."""
        scaler = self.accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the scale that `state_dict` gave."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

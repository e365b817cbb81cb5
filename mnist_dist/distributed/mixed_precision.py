"""Mixed precision: autocast for the forward pass and, in fp16, accelerate's gradient scaler.

fp32 and bf16 have no scaler: `scale_loss` and `unscale` return their argument.
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


class PlainOptimizer(NamedTuple):
    """The part of accelerate's `AcceleratedOptimizer` that a training step uses, for a run without gradient scaler."""

    step: Callable[[], Any]
    step_was_skipped: bool = False


class MixedPrecision:
    """The precision of a run; `name` is `fp32`, `bf16` or `fp16`.

    Args:
        accelerator: its precision is resolved. In fp16 it has the gradient scaler.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device_type: str = accelerator.device.type
        self.name: str = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast for a forward pass of a model that accelerate has not wrapped. Several threads may use it at once.

        accelerate's own `autocast()` takes 0.25 ms to enter. Casts are not cached: a forward pass uses each weight
        once, and threads would share the cache.
        """
        dtype = AUTOCAST_DTYPES.get(self.name)
        return torch.autocast(self.device_type, dtype, cache_enabled=False) if dtype else contextlib.nullcontext()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on. In fp16 it is multiplied by the scale."""
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def unscale(self, norm: Tensor) -> Tensor:
        """Norm of the unscaled gradient, given that of the scaled one, a tensor (). Does not wait for the device."""
        return norm if self.accelerator.scaler is None else norm / self.scale_loss(torch.ones_like(norm))

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Unscale the gradients, then clip their total L2 norm to `max_norm`.

        Returns:
            The norm before clipping, a tensor ().
        """
        return self.accelerator.clip_grad_norm_(parameters, max_norm)

    def prepare_optimizer(self, optimizer: Optimizer) -> Any:
        """Wrap an optimizer: `step()` uses the gradient scaler, and `step_was_skipped` tells whether it did nothing.

        Without a scaler, accelerate's wrapper is not used: it takes 0.2 ms per step to look for an installed package.
        """
        if self.accelerator.scaler is None:
            return PlainOptimizer(optimizer.step)
        # Without device placement, whose load_state_dict would disconnect MuonAdamW from the state of its optimizers.
        return self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def state_dict(self) -> dict[str, Any]:
        """State of the gradient scaler, as plain numbers; empty without one."""
        scaler = self.accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; does nothing if there is no scaler, or the state is empty."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

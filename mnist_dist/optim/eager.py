"""torch's optimizers without `torch._dynamo`, and with `found_inf` on every device.

Their first step imports `torch._dynamo`, which takes 1.6 s, to support compilation. Only a compiled optimizer step
needs that; this program compiles the model alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)
Function = TypeVar("Function", bound=Callable[..., Any])


def eager(optimizer_class: type[OptimizerT]) -> type[OptimizerT]:
    """A subclass that computes the same updates, bit for bit, and never imports `torch._dynamo`.

    If it has an attribute `found_inf`, a tensor (), it skips the next update where that is 1. A fused optimizer does so
    without waiting for the device. torch's others refuse `found_inf`: here the host reads it, once per step.
    """
    step = without_dynamo(optimizer_class.step)

    class Eager(optimizer_class):  # type: ignore[valid-type, misc]
        add_param_group = without_dynamo(optimizer_class.add_param_group)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """As `torch.optim.Optimizer.step`."""
            if not self.defaults.get("fused") and self.__dict__.pop("found_inf", None):
                return None
            return step(self, closure)

    Eager.__name__ = Eager.__qualname__ = optimizer_class.__name__
    return cast("type[OptimizerT]", Eager)


def without_dynamo(function: Function) -> Function:
    """The function below torch's decorators for the compiler."""
    return cast("Function", inspect.unwrap(function))

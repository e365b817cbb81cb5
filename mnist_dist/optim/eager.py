"""torch's optimizers without `torch._dynamo`: their first step imports it, which takes 1.6 s, to support compilation.

Only a compiled optimizer step needs that; this program compiles the model alone.
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
    """A subclass that computes the same updates, bit for bit, and never imports `torch._dynamo`."""
    step = without_dynamo(optimizer_class.step)

    class Eager(optimizer_class):  # type: ignore[valid-type, misc]
        add_param_group = without_dynamo(optimizer_class.add_param_group)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """As `torch.optim.Optimizer.step`."""
            return step(self, closure)

    Eager.__name__ = Eager.__qualname__ = optimizer_class.__name__
    return cast("type[OptimizerT]", Eager)


def without_dynamo(function: Function) -> Function:
    """The function below torch's decorators for the compiler."""
    return cast("Function", inspect.unwrap(function))

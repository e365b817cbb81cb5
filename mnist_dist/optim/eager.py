"""torch's optimizers without their compiler: at their first use they import torch._dynamo, which takes 1.6 s and which
only somebody who compiles an optimizer needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)
Function = TypeVar("Function", bound=Callable[..., Any])


def without_compiler(function: Function) -> Function:
    """The function that the compiler's wrappers wrap."""
    return cast("Function", inspect.unwrap(function))


def eager(kind: type[Kind]) -> type[Kind]:
    """A class that does the same as `kind`."""
    step = without_compiler(kind.step)

    class Eager(kind):  # type: ignore[valid-type, misc]
        add_param_group = without_compiler(kind.add_param_group)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """See torch."""
            return step(self, closure)

    Eager.__name__ = Eager.__qualname__ = kind.__name__
    return cast("type[Kind]", Eager)

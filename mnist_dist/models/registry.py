"""Models by name.

To add a model to the package, write a function that builds it, decorate it with `@register_model`, import its module in
`mnist_dist/models/__init__.py`, and add its name to `MODELS` in `mnist_dist/config/model_names.py`. `mnist-dist models`
prints the first line of the function's docstring. A model outside of the package needs none of this: see `builder`.

All registered functions take `num_classes`, the number of logits; `width`, the filters of the first convolution, with
which the other layers scale; and `dropout`, the probability of dropping a feature before the head. The registry adds
one to all of them: `shifts`, the largest test-time shift in pixels (see `shifts`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.shifts import Shifts

Builder = TypeVar("Builder", bound=Callable[..., ImageClassifier])

_BUILDERS: dict[str, Callable[..., ImageClassifier]] = {}


def register_model(builder: Builder) -> Builder:
    """Decorator: register a function that returns a new ImageClassifier, under the function's name.

    It takes the number of classes as `num_classes`, by default 10. The registered function takes `shifts` too.

    Raises:
        ValueError: a model of that name is registered already.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"a model named {name} is registered already, by {_BUILDERS[name].__module__}")
    _BUILDERS[name] = with_shifts(builder)
    return builder


def with_shifts(builder: Callable[..., ImageClassifier]) -> Callable[..., ImageClassifier]:
    """The function with one more parameter, `shifts`, for the model that it returns."""

    @functools.wraps(builder)
    def build(*args: Any, shifts: int = 0, **keywords: Any) -> ImageClassifier:
        model = builder(*args, **keywords)
        model.shifts = shifts
        return model

    signature = inspect.signature(builder)
    added = inspect.Parameter("shifts", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=Shifts)
    build.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    build.__annotations__ = builder.__annotations__ | {"shifts": Shifts}
    return build


def list_models() -> list[str]:
    """The names of all registered models, sorted."""
    return sorted(_BUILDERS)


def registered_builder(name: str) -> Callable[..., ImageClassifier]:
    """The function that builds a registered model.

    Raises:
        KeyError: no model of that name.
    """
    return _BUILDERS[name]

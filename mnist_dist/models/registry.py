"""Models by name.

To add a model, write a function that builds it, decorate it with `@register_model`, import its module in
`mnist_dist/models/__init__.py`, and add its name to `model.name` in `mnist_dist/config/schema.py`. `mnist-dist models`
prints the first line of the function's docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mnist_dist.models.classifier import ImageClassifier

Builder = TypeVar("Builder", bound=Callable[..., ImageClassifier])

_BUILDERS: dict[str, Callable[..., ImageClassifier]] = {}


def register_model(builder: Builder) -> Builder:
    """Decorator: register a function that returns a new ImageClassifier, under the function's name.

    It takes the number of classes as `num_classes`, by default 10.

    Raises:
        ValueError: a model of that name is registered already.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"a model named {name} is registered already, by {_BUILDERS[name].__module__}")
    _BUILDERS[name] = builder
    return builder


def list_models() -> list[str]:
    """The names of all registered models, sorted."""
    return sorted(_BUILDERS)


def describe_model(name: str) -> str:
    """One line about a model: the first of its builder's docstring.

    Raises:
        KeyError: no model of that name.
    """
    return (_BUILDERS[name].__doc__ or "").strip().splitlines()[0]


def create_model(name: str, num_classes: int = 10) -> ImageClassifier:
    """A new model on the CPU, its weights drawn from torch's global random generator.

    Args:
        num_classes: number of logits.

    Raises:
        KeyError: no model of that name.
    """
    return _BUILDERS[name](num_classes)

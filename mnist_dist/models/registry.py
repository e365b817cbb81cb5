"""Models by name: `@register_model` on a function that builds one, `create_model` to call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mnist_dist.models.classifier import ImageClassifier

Builder = TypeVar("Builder", bound=Callable[[], ImageClassifier])

_BUILDERS: dict[str, Callable[[], ImageClassifier]] = {}


def register_model(builder: Builder) -> Builder:
    """Make a function that takes nothing and returns an ImageClassifier known by its own name.

    Raises:
        ValueError: the name is taken.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"a model named {name} is registered already, by {_BUILDERS[name].__module__}")
    _BUILDERS[name] = builder
    return builder


def list_models() -> list[str]:
    """The names that `create_model` knows, sorted."""
    return sorted(_BUILDERS)


def describe_model(name: str) -> str:
    """The first line of the builder's docstring."""
    return (_BUILDERS[name].__doc__ or "").strip().splitlines()[0]


def create_model(name: str) -> ImageClassifier:
    """A freshly initialised model on the CPU, drawn from torch's global generator.

    Raises:
        KeyError: no model of that name.
    """
    return _BUILDERS[name]()

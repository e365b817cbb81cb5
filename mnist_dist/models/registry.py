"""Models by name.

To add a model to the package, write a function that builds it, decorate it with `@register_model`, import its module in
`mnist_dist/models/__init__.py`, and add its name to `MODELS` in `mnist_dist/config/model_names.py`. `mnist-dist models`
prints the first line of the function's docstring. A model outside of the package needs none of this: see `builder`.

All registered functions take `num_classes`, the number of logits; `width`, the filters of the first convolution, with
which the other layers scale; and `dropout`, the probability of dropping a feature before the head.
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


def registered_builder(name: str) -> Callable[..., ImageClassifier]:
    """The function that builds a registered model.

    Raises:
        KeyError: no model of that name.
    """
    return _BUILDERS[name]

"""Models from names: a registered one, or the user's own function as FILE.py:FUNCTION or MODULE:FUNCTION."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from torch import nn
from torch.nn.parameter import is_lazy

from mnist_dist.config.hints import suggest
from mnist_dist.config.model_file import split_name
from mnist_dist.models.registry import registered_builder
from mnist_dist.models.user_code import UserCode, digests_of, load_code
from mnist_dist.utils.errors import UserError

NUM_CLASSES = "num_classes"


@dataclass(frozen=True)
class ModelBuilder:
    """The function that a model's name stands for, and the code that it came with."""

    name: str
    function: Callable[..., Any]
    code: UserCode | None = None
    """None for a registered model."""

    @property
    def files(self) -> dict[str, bytes]:
        """Source files of the user's own model, by relative path; none for a registered one."""
        return self.code.files if self.code else {}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each of `files`, in hex."""
        return digests_of(self.files)

    def build(self, num_classes: int, args: Mapping[str, Any]) -> nn.Module:
        """A new model on the CPU, its weights drawn from torch's global random generator.

        Args:
            num_classes: given to the function if it has a parameter of that name and `args` does not set it.
            args: keyword arguments.

        Raises:
            UserError: an argument is missing, unknown or of another type, the function raised an exception, or what it
                returned is no module.
        """
        keywords = self.keywords(num_classes, args)
        with self.running():
            model = self.function(**keywords)
        if not isinstance(model, nn.Module):
            raise UserError(f"model.name={self.name}: returned {type(model).__name__}, not a torch.nn.Module")
        if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            with self.running("in the first forward pass, which lazy modules need:"), torch.no_grad():
                model.eval()(torch.zeros(2, 1, 28, 28))
        return model.train()

    @contextmanager
    def running(self, doing: str = "") -> Iterator[None]:
        """Run the function or its model in this block; its exceptions become a UserError: see `UserCode.running`."""
        if self.code is not None:
            with self.code.running(doing):
                yield
            return
        try:
            yield
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise UserError(f"model.name={self.name}: {' '.join(str(error).split())[:300]}") from error

    def describe(self) -> str:
        """The first line of the function's docstring; empty without one."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def describe_parameters(self) -> str:
        """The function's parameters as they are written, as in `num_classes=10, width=32`."""
        return ", ".join(
            f"{'*' * (parameter.kind - 1) if parameter.kind in VARIADIC else ''}{name}"
            + ("" if parameter.default is parameter.empty else f"={parameter.default!r}")
            for name, parameter in self.parameters().items()
        )

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The function's parameters; if it does not tell, any keyword argument."""
        try:
            return dict(inspect.signature(self.function).parameters)
        except (ValueError, TypeError):
            return {"args": inspect.Parameter("args", inspect.Parameter.VAR_KEYWORD)}

    def keywords(self, num_classes: int, args: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments to call the function with, each of the type that its annotation asks for.

        Raises:
            UserError: one is missing, unknown or of another type.
        """
        parameters = self.parameters()
        takes = f"{self.name} takes {self.describe_parameters() or 'no arguments'}"
        by_name = {n: p for n, p in parameters.items() if p.kind not in (*VARIADIC, inspect.Parameter.POSITIONAL_ONLY)}
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for name in args:
            if name not in by_name and not takes_any:
                hint = suggest(name, by_name)
                raise UserError(f"model.args.{name}: is no argument of this model{hint}; {takes}")
        given = ({NUM_CLASSES: num_classes} if NUM_CLASSES in by_name else {}) | dict(args)
        missing = [n for n, p in by_name.items() if p.default is p.empty and n not in given]
        if missing:
            raise UserError(f"model.args.{missing[0]}: is missing; give --model.args.{missing[0]}=VALUE; {takes}")
        hints = type_hints(self.function)
        return {name: self.convert(name, value, hints.get(name, Any), takes) for name, value in given.items()}

    def convert(self, name: str, value: Any, hint: Any, takes: str) -> Any:
        """A value as the type of an annotation; a list of the configuration, a tuple there, is a list."""
        text = json.dumps(value)
        try:
            return TypeAdapter(hint).validate_json(text, strict=True)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]["msg"]
            raise UserError(f"model.args.{name}={text}: {wrong[:1].lower()}{wrong[1:]}; {takes}") from None
        except (PydanticUserError, RecursionError, TypeError):  # an annotation that pydantic cannot check
            return json.loads(text)


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters, those that can be resolved or none; of a class, of its __init__."""
    try:
        return get_type_hints(function.__init__ if isinstance(function, type) else function, include_extras=True)  # type: ignore[misc]
    except Exception:  # an annotation is any expression
        return {}


def find_builder(name: str) -> ModelBuilder:
    """The builder of `model.name`; imports the user's code if it is not a registered model.

    Raises:
        UserError: the code cannot be imported, or has no such function.
        KeyError: no registered model of that name.
    """
    if not split_name(name)[0]:
        return ModelBuilder(name, registered_builder(name))
    code = load_code(name)
    if not callable(code.value):
        raise UserError(f"model.name={name}: is {type(code.value).__name__}, not a function or a class")
    return ModelBuilder(name, code.value, code)


def describe_model(name: str) -> str:
    """One line about a model: the first of its function's docstring.

    Raises:
        UserError, KeyError: as in `find_builder`.
    """
    return find_builder(name).describe()


def create_model(name: str, num_classes: int = 10, args: Mapping[str, Any] | None = None) -> nn.Module:
    """A new model on the CPU: `find_builder`, then `ModelBuilder.build`."""
    return find_builder(name).build(num_classes, args or {})

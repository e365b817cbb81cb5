"""JSON as its standard has it: readers other than Python's refuse NaN and Infinity. What is read is not trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

INT_LIMIT = 1 << 63
"""Whole numbers are smaller, either way: they fit into a tensor."""


def dump_strict(value: Any) -> str:
    """A value of plain types as one line of JSON; nan and infinity become null.

    Raises:
        TypeError: it holds something else than plain types.
    """
    return json.dumps(without_nan(value), allow_nan=False)


def without_nan(value: Any) -> Any:
    """The value with what JSON has no number for replaced by None."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_strict(data: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 text that somebody else may have written.

    Raises:
        ValueError: it is no object, names a key twice, nests too deeply, or holds a number that is not finite or does
            not fit into 64 bits.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=without_duplicates,
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=refuse_constant,
        )
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("does not hold an object")
    return value


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values, unless a key comes twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("names a key twice")
    return result


def parse_int(text: str) -> int:
    """A whole number of 64 bits; longer ones are not even converted, which takes time."""
    if len(text) > 20 or not -INT_LIMIT < int(text) < INT_LIMIT:
        raise ValueError("holds a number that is too large")
    return int(text)


def parse_float(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("holds a number that is too large")
    return value


def refuse_constant(text: str) -> NoReturn:
    """NaN and Infinity are no JSON."""
    raise ValueError(f"holds {text}, which is no number")


def type_error(value: Any, kind: Any, name: str = "it") -> str | None:
    """Why a value that was read from JSON is not of a type, in words that begin with its name; None if it is.

    Args:
        kind: a dataclass, of which every field must be there and nothing else; int, float, bool, str (printable); Any;
            a Literal, list, tuple or dict of these.
    """
    if kind is Any:
        return None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict):
            return f"{name} is no object"
        odd = sorted(value.keys() ^ {field.name for field in fields(kind)})
        if odd:
            return f"{name} {'holds' if odd[0] in value else 'lacks'} {odd[0]!r:.40}"
        return first(type_error(value[key], hint, key) for key, hint in hints.items())
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return None if value in args else f"{name} is not one of {', '.join(map(str, args))}"
    if origin is dict:
        if not isinstance(value, dict):
            return f"{name} is no object"
        return first(type_error(item, args[1], f"{name}.{key!r:.40}") for key, item in value.items())
    if origin in (list, tuple):
        if not isinstance(value, list) or (origin is tuple and args[-1] is not ... and len(value) != len(args)):
            return f"{name} is no list" + (f" of {len(args)}" if origin is tuple and args[-1] is not ... else "")
        return first(type_error(item, args[0], f"{name}[{index}]") for index, item in enumerate(value))
    fits = type(value) in ((int, float) if kind is float else (kind,)) and (kind is not str or value.isprintable())
    words = {int: "whole number", float: "number", bool: "true or false", str: "printable text"}
    return None if fits else f"{name} is no {words[kind]}"


def first(reasons: Any) -> str | None:
    """The first reason that there is."""
    return next((reason for reason in reasons if reason), None)

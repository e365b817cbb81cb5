"""Strict JSON: output that every JSON reader accepts (no NaN, no Infinity), and checks of input that is not trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

INT_LIMIT = 1 << 63
"""Bound on the absolute value of integers, so that they fit into an int64 tensor."""


def dump_strict(value: Any) -> str:
    """Serialise dictionaries, lists, strings, numbers, booleans and None to one line of JSON; nan and inf become null.

    Raises:
        TypeError: a value of another type.
    """
    return json.dumps(replace_nonfinite(value), allow_nan=False)


def replace_nonfinite(value: Any) -> Any:
    """The value with None in place of nan and infinity, for which JSON has no number."""
    if isinstance(value, Mapping):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_strict(data: bytes) -> dict[str, Any]:
    """Parse a JSON object from UTF-8 bytes that are not trusted.

    Raises:
        ValueError: not valid JSON, not an object, a key given twice, nested too deeply, or a number that is not finite
            or does not fit into 64 bits.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=parse_object,
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=refuse_constant,
        )
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("does not hold an object")
    return value


def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys and values of an object. Raises ValueError if a key is given twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("names a key twice")
    return result


def parse_int(text: str) -> int:
    """A 64-bit integer. Longer texts are refused before conversion, which takes quadratic time. Raises ValueError."""
    if len(text) > 20 or not -INT_LIMIT < int(text) < INT_LIMIT:
        raise ValueError("holds a number that is too large")
    return int(text)


def parse_float(text: str) -> float:
    """A finite number. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("holds a number that is too large")
    return value


def refuse_constant(text: str) -> NoReturn:
    """Refuse NaN, Infinity and -Infinity, which Python reads but JSON does not have. Raises ValueError."""
    raise ValueError(f"holds {text}, which is not a JSON number")


def type_error(value: Any, kind: Any, name: str = "it") -> str | None:
    """Check a value that was read from JSON against a type.

    Args:
        kind: a dataclass, whose fields must all be there and no others; int, float, bool, str (printable); Any; a
            Literal; a list, tuple or dict of these; any of them `| None`.
        name: what the value is called in the result.

    Returns:
        The first mismatch, as a clause that starts with the name of the value; None if there is none.
    """
    if kind is Any:
        return None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict):
            return f"{name} is not an object"
        odd = sorted(value.keys() ^ {field.name for field in fields(kind)})
        if odd:
            return f"{name} {'holds' if odd[0] in value else 'lacks'} {odd[0]!r:.40}"
        return first(type_error(value[key], hint, key) for key, hint in hints.items())
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else type_error(value, args[0], name)
    if origin is Literal:
        return None if value in args else f"{name} is not one of {', '.join(map(str, args))}"
    if origin is dict:
        if not isinstance(value, dict):
            return f"{name} is not an object"
        return first(type_error(item, args[1], f"{name}.{key!r:.40}") for key, item in value.items())
    if origin in (list, tuple):
        if not isinstance(value, list) or (origin is tuple and args[-1] is not ... and len(value) != len(args)):
            return f"{name} is not a list" + (f" of {len(args)}" if origin is tuple and args[-1] is not ... else "")
        return first(type_error(item, args[0], f"{name}[{index}]") for index, item in enumerate(value))
    fits = type(value) in ((int, float) if kind is float else (kind,)) and (kind is not str or value.isprintable())
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "printable text"}
    return None if fits else f"{name} is not {words[kind]}"


def first(mismatches: Iterable[str | None]) -> str | None:
    """The first mismatch that is not None; None if there is none."""
    return next((mismatch for mismatch in mismatches if mismatch), None)

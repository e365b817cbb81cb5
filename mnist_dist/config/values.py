"""Conversion of a setting's text to its value, and types and ranges in words, for errors and the help.

pydantic converts and checks. Types, ranges and choices are read from the JSON schema of the models, so that `schema` is
the only place that states them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import ValidationError

from mnist_dist.config.hints import hint_for_value
from mnist_dist.config.json_schema import json_schema
from mnist_dist.config.model_names import ARGUMENT_NAME, ARGUMENTS, Argument, Scalar
from mnist_dist.config.schema import SECTIONS
from mnist_dist.config.validation import shown
from mnist_dist.config.yaml_files import Setting, as_written
from mnist_dist.utils.errors import UserError

COMMAND_LINE = "command line"
SPELLINGS = {
    "integer": re.compile(r"[+-]?(0|[1-9][0-9]*)"),
    "number": re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"),
    "boolean": re.compile(
        "|".join(f"{w}|{w.title()}|{w.upper()}" for w in ("true", "false", "yes", "no", "on", "off"))
    ),
}
"""Spelling of each JSON type. pydantic alone would also take `1_000`, ` 5 `, `1.0` as an integer and `1` as true."""

WORDS = {
    "integer": "a whole number in plain digits",
    "number": "a number, as in 0.1 or 1e-3",
    "boolean": "true or false",
    "string": "a text without line breaks or control characters",
    "object": "a number, true, false, a text without line breaks, or a list of these in brackets",
}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
CODE_FORMS = ("FILE.py:FUNCTION", "MODULE:FUNCTION")
"""How a model is named by its code."""
MAX_DIGITS = 4000  # Python converts no more of an int; a text that looks like a longer one stays a text
INTERPOLATION = re.compile(r"\$\{[\w.]+(:[^}]*)?\}")
"""A reference that OmegaConf or a shell would replace, as in `${oc.env:HOME}`; here it would become part of a path."""

OUT_OF_RANGE = {"greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number"}
"""Error types of pydantic's for a value of the right type."""


def parse_value(setting: Setting) -> Any:
    """Convert a setting's text to its type and check its range, alike for files and for the command line.

    Raises:
        UserError: names the key, the text, its origin and what would work.
    """
    if setting.key.startswith(ARGUMENTS):
        return parse_argument(setting)
    section, _, name = setting.key.partition(".")
    schema, value = field_schema(setting.key), setting.value
    if INTERPOLATION.search(str(value)):
        raise UserError(
            f"{setting.key}={shown(value)} ({setting.origin}): ${{...}} is not replaced; write the value itself"
        )
    try:
        if schema["type"] == "array" and isinstance(value, str):
            value = split_list(setting.key, value)
        spelling = SPELLINGS.get(item_schema(schema)["type"])
        if spelling and not all(spelling.fullmatch(text) for text in ([value] if isinstance(value, str) else value)):
            raise ValueError(value)
        return getattr(SECTIONS[section].model_validate({name: value}, strict=False), name)  # not strict: from texts
    except ValidationError as error:
        wrong = describe_error(error, section)[1]
    except ValueError:
        wrong = f"must be {describe_type(schema)}"
    hint = hint_for_value(setting.key, value, choices_of(schema)) if isinstance(value, str) else ""
    raise UserError(f"{setting.key}={shown(setting.value)} ({setting.origin}): {wrong}{hint}")


def parse_argument(setting: Setting) -> Argument:
    """Convert the text of an entry of `model.args`: the type is that of its spelling.

    Raises:
        UserError: it has no name, or is no scalar and no flat list of scalars.
    """
    name = setting.key[len(ARGUMENTS) + 1 :]
    where = f"{setting.key}={shown(setting.value)} ({setting.origin})"
    if not re.fullmatch(ARGUMENT_NAME, name):
        raise UserError(f"{where}: name one argument of the model's function, as in --{ARGUMENTS}.width=64")
    try:
        value = setting.value
        if isinstance(value, str) and value.startswith("["):
            value = split_list(setting.key, value)
        parsed = parse_scalar(value) if isinstance(value, str) else tuple(map(parse_scalar, value))
        return SECTIONS["model"].model_validate({"args": {name: parsed}}).args[name]  # type: ignore[attr-defined]
    except (ValidationError, ValueError):
        raise UserError(f"{where}: must be {WORDS['object']}") from None


def parse_scalar(text: str) -> Scalar:
    """A text in quotes as it is between them; else a whole number, a number, true or false if it is spelled so.

    Raises:
        ValueError: the quotes are not closed.
    """
    if text[:1] in ("'", '"'):
        node = compose_text(text)
        if not isinstance(node, yaml.ScalarNode):
            raise ValueError(text)
        return str(node.value)
    if SPELLINGS["integer"].fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    if SPELLINGS["number"].fullmatch(text):
        return float(text)
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def compose_text(text: str) -> yaml.Node:
    """The node of a text in YAML. Raises ValueError if it is not valid YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(text) from None
    assert node is not None
    return node


def split_list(key: str, text: str) -> list[str]:
    """Split the text of a list, `[a, b]` or `a,b`, into its items. Raises ValueError if it is not valid YAML."""
    if not text.startswith("["):
        return [item.strip() for item in text.split(",")] if text else []
    items = as_written(compose_text(text), key, COMMAND_LINE)
    return [items] if isinstance(items, str) else items


def describe_error(error: ValidationError, *section: str) -> tuple[str, str]:
    """Put the first of pydantic's errors into words; a wrong type goes before a wrong range.

    Args:
        section: the section that was validated; none for the whole configuration.

    Returns:
        The key, and the rest of the sentence, such as `must be at least 0`.
    """
    first = min(error.errors(include_url=False), key=lambda each: each["type"] in OUT_OF_RANGE)
    key = ".".join([*section, *map(str, first["loc"])][:2])
    if first["type"] == "finite_number":
        return key, "must be a finite number"
    if first["type"] == "extra_forbidden":
        return key, "is unknown"
    if "." not in key:
        return key, "must be a section"
    if first["type"] in OUT_OF_RANGE:
        return key, f"must be {describe_range(field_schema(key))}"
    return key, f"must be {describe_type(field_schema(key))}"


def describe_type(schema: dict[str, Any]) -> str:
    """The type of a field, by its JSON schema, in words that follow `must be`."""
    item = item_schema(schema)
    if "anyOf" in schema:
        return f"one of {', '.join(choices_of(schema))}, or {' or '.join(CODE_FORMS)}"
    if schema["type"] != "array":
        return f"one of {', '.join(item['enum'])}" if "enum" in item else WORDS[item["type"]]
    if "enum" in item:
        return f"a list of some of {', '.join(item['enum'])}, as in [{item['enum'][0]}]"
    length = f"{len(schema['prefixItems'])} " if "prefixItems" in schema else ""
    return f"a list of {length}" + ("numbers, as in [0.9, 0.99]" if item["type"] == "number" else "texts, as in [a, b]")


def describe_range(schema: dict[str, Any]) -> str:
    """The range of a field's numbers, by its JSON schema, as in `at least 0 and below 1`; empty if there is none."""
    item = item_schema(schema)
    bounds = [(words, item[bound]) for bound, words in BOUNDS.items() if bound in item]
    # pydantic 2.10 gives the bound 0 of a float as 0.0.
    return " and ".join(f"{words} {int(bound) if bound == int(bound) else bound}" for words, bound in bounds)


def choices_of(schema: dict[str, Any]) -> list[str]:
    """The fixed choices of a field, by its JSON schema; of `model.name`, the registered ones."""
    return next((part["enum"] for part in (schema, *schema.get("anyOf", ())) if "enum" in part), [])


def item_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a list's items, which all have the same; of a scalar, its own."""
    return schema.get("items") or schema.get("prefixItems", [schema])[0]


def field_schema(key: str) -> dict[str, Any]:
    """The JSON schema of a setting, such as `optim.lr`."""
    section, _, name = key.partition(".")
    return json_schema()["$defs"][SECTIONS[section].__name__]["properties"][name]

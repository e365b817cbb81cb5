"""Read a run's configuration: defaults < YAML files, left to right < `--section.key=value`.

Each setting is checked on its own, so that an error names the key, where it came from and what would work.
Neither this module nor what it imports may import torch: help and errors must come at once.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser

from mnist_dist.config.fsdp import Fsdp
from mnist_dist.config.schema import FIELDS, SECTIONS, Config
from mnist_dist.config.validation import check_fsdp, check_range, check_together, describe_range
from mnist_dist.config.yaml_files import (
    Setting,
    as_written,
    check_key,
    find_recipe,
    list_recipes,
    read_yaml,
    shown,
    suggest,
)
from mnist_dist.utils.errors import UserError

COMMAND_LINE = "command line"
TYPES = {f"{s}.{k}": hint for s, kind in SECTIONS.items() for k, hint in get_type_hints(kind).items()}
NUMBERS = {
    int: re.compile(r"[+-]?(0|[1-9][0-9]*)"),
    float: re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}


@dataclasses.dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration, the names of the recipes it was made of, and what the command line asked for."""

    config: Config
    recipes: tuple[str, ...]
    print_config: bool


def load(arguments: Sequence[str], world_size: int = 1, fsdp: Fsdp | None = None) -> LoadedConfig:
    """The configuration that the arguments of `mnist_dist.train` ask for.

    Args:
        arguments: what follows the program's name.
        world_size: number of processes, which the global batch must divide into.
        fsdp: how these cut up the model, if they do.

    Raises:
        UserError: one line that names the key, its origin and the values that would work.
        SystemExit: 0, after printing the help.
    """
    if {"-h", "--help"} & set(arguments):
        help_parser().print_help()
        raise SystemExit(0)
    recipes, settings, print_config = read_command_line(arguments)
    files = [find_recipe(recipe) for recipe in recipes]
    settings = [setting for path in files for setting in read_yaml(path)] + settings
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for setting in settings:
        section, _, key = setting.key.partition(".")
        values[section][key] = parse_value(setting)
    config = Config(**{section: kind(**values[section]) for section, kind in SECTIONS.items()})
    origins = {setting.key: setting.origin for setting in settings}
    check_together(config, world_size, origins)
    if fsdp:
        check_fsdp(config, os.environ, origins)
    return LoadedConfig(config, tuple(path.stem for path in files), print_config)


def help_parser() -> ArgumentParser:
    """A parser that only prints the help: each field with its docstring, range, type and default."""
    parser = ArgumentParser(
        prog="python -m mnist_dist.train",
        usage="%(prog)s [--config NAME|PATH]... [--section.key=VALUE]...",
        description="Train a network on MNIST, on one process or many: the launcher decides.",
    )
    recipes = f"a recipe or YAML file, later ones over earlier ones; recipes: {', '.join(list_recipes())}"
    parser.add_argument("--config", metavar="NAME|PATH", default=SUPPRESS, help=recipes)
    parser.add_argument(
        "--print_config",
        action="store_true",
        default=SUPPRESS,
        help="print the resolved configuration as YAML and stop",
    )
    for section, kind in SECTIONS.items():
        group = parser.add_argument_group((kind.__doc__ or section).rstrip("."))
        for name, text in field_docs(kind).items():
            key = f"{section}.{name}"
            values = f" Must be {describe_range(key)}." if describe_range(key) else ""
            group.add_argument(f"--{key}", type=TYPES[key], default=FIELDS[key].default, help=text + values)
    return parser


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a section, by the field's name."""
    documented = docstring_parser.parse_from_object(kind).params
    return {param.arg_name: (param.description or "").replace("%", "%%") for param in documented}


def read_command_line(arguments: Sequence[str]) -> tuple[list[str], list[Setting], bool]:
    """Split the arguments into recipes, settings, and whether to print the configuration."""
    recipes: list[str] = []
    settings: list[Setting] = []
    print_config = False
    queue = list(arguments)
    while queue:
        option, equals, value = queue.pop(0).partition("=")
        if option == "--print_config" and not equals:
            print_config = True
            continue
        key = option.removeprefix("--")
        if not option.startswith("--") or not key:
            raise UserError(
                f"{shown(option)!r} ({COMMAND_LINE}) is not an option; settings are given as --section.key=value"
            )
        if key != "config":
            check_key(key, COMMAND_LINE)
        if not equals and queue and not queue[0].startswith("--"):
            value, equals = queue.pop(0), "="
        if not equals or (key == "config" and not value):
            raise UserError(f"--{key} ({COMMAND_LINE}) needs a value: --{key}=VALUE")
        if key == "config":
            recipes.append(value)
        else:
            settings.append(Setting(key, value, COMMAND_LINE))
    return recipes, settings, print_config


def parse_value(setting: Setting) -> Any:
    """The setting's value in its field's type, within its range; the same text means the same in a file and here."""
    key, value = setting.key, setting.value
    kind = TYPES[key]
    wrong: str | None
    try:
        if get_origin(kind) is tuple and isinstance(value, str):
            value = split_list(key, value)
        result = convert(kind, value)
        wrong = check_range(key, result)
    except (ArgumentError, TypeError, ValueError):
        wrong = f"must be {describe(kind)}"
    if wrong:
        options = get_args(kind) if get_origin(kind) is Literal else ()
        hint = suggest(value, options) if isinstance(value, str) else ""
        raise UserError(f"{key}={shown(setting.value)} ({setting.origin}): {wrong}{hint}")
    return result


def convert(kind: Any, value: str | list[str]) -> Any:
    """A text, or a list of texts, in the type of a field. Raises ArgumentError, TypeError or ValueError."""
    number = NUMBERS.get(get_args(kind)[0] if get_origin(kind) is tuple else kind)
    for text in [value] if isinstance(value, str) else value:
        if not text.isprintable() or (number and not number.fullmatch(text)):
            raise ValueError(text)
    if kind is str and isinstance(value, str):
        return value  # jsonargparse might see a number or null in it
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser.parse_object({"value": value}).value


def split_list(key: str, text: str) -> list[str]:
    """The items of a list in one text, `[a, b]` or `a,b`. Raises ValueError."""
    if not text.startswith("["):
        return [item.strip() for item in text.split(",")] if text else []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(text) from None
    assert node is not None
    items = as_written(node, key, COMMAND_LINE)
    return [items] if isinstance(items, str) else items


def describe(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        if get_origin(item) is Literal:
            return f"a list of some of {', '.join(get_args(item))}, as in [{get_args(item)[0]}]"
        what, example = {str: ("texts", "[a, b]"), float: ("numbers", "[0.9, 0.99]")}[item]
        return f"a list of {'' if rest == [Ellipsis] else f'{len(rest) + 1} '}{what}, as in {example}"
    return {
        int: "a whole number in plain digits",
        float: "a number, as in 0.1 or 1e-3",
        bool: "true or false",
        str: "a text without line breaks or control characters",
    }[kind]


def dump(config: Config) -> str:
    """The configuration as YAML that `--config` reads back to the same configuration."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def print_config(config: Config) -> None:
    """Write the configuration to standard output."""
    sys.stdout.write(dump(config))

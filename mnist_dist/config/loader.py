"""Read a run's configuration: defaults < YAML files, left to right < `--section.key=value`.

Each setting is checked on its own, so that an error names the key, where it came from and what would work. This module
and its imports may not import torch: help and errors have to appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mnist_dist.config.frozen_model import Source
from mnist_dist.config.fsdp import FSDPConfig, read_fsdp
from mnist_dist.config.hints import hint_for_argument
from mnist_dist.config.model_file import check_model_file
from mnist_dist.config.model_names import ARGUMENTS
from mnist_dist.config.schema import FIELDS, SECTIONS, Config
from mnist_dist.config.validation import check_key, check_together, shown
from mnist_dist.config.values import COMMAND_LINE, field_schema, parse_value
from mnist_dist.config.yaml_files import Setting, find_recipe, list_recipes, read_yaml
from mnist_dist.utils.errors import UserError


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, the names of its recipes in order, and whether `--print_config` was given."""

    config: Config
    recipes: tuple[str, ...]
    print_config: bool


def load(arguments: Sequence[str], world_size: int = 1, fsdp: FSDPConfig | None = None) -> LoadedConfig:
    """Build the configuration from the command line of `mnist_dist.train`.

    Args:
        arguments: the command line, without the program.
        world_size: number of processes, among which the global batch has to be divisible.
        fsdp: the launcher's FSDP settings, if it asks for FSDP.

    Raises:
        UserError: one line that names the key, its origin and the values that would work.
        SystemExit: 0, after printing the help.
    """
    if {"-h", "--help"} & set(arguments):
        from mnist_dist.config.help import format_help

        sys.stdout.write(format_help())
        raise SystemExit(0)
    recipes, settings, print_config = read_command_line(arguments)
    config = assemble(recipes, settings)
    check_for_launch(config, world_size, fsdp)
    return LoadedConfig(config, config.source.recipes, print_config)


def assemble(recipes: Sequence[str], settings: Sequence[Setting]) -> Config:
    """The configuration of YAML files, left to right, and of settings that win over them; each is checked alone.

    Raises:
        UserError: as `load`.
    """
    files = [find_recipe(recipe) for recipe in recipes]
    settings = [setting for path in files for setting in read_yaml(path)] + list(settings)
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for setting in settings:
        section, _, key = setting.key.partition(".")
        if setting.key.startswith(f"{ARGUMENTS}."):
            values["model"].setdefault("args", {})[key.partition(".")[2]] = parse_value(setting)
        else:
            values[section][key] = parse_value(setting)
    config = Config.model_validate(values)
    config._source = Source(tuple(path.stem for path in files), {setting.key: setting.origin for setting in settings})
    return config


def check_for_launch(config: Config, world_size: int, fsdp: FSDPConfig | None) -> None:
    """Check the settings against each other, the number of processes and the launcher's FSDP settings.

    Raises:
        UserError: as `load`.
    """
    if config.run.as_processes > 1:
        fsdp = read_fsdp(os.environ)  # a single process ignores it
    check_together(config, world_size, fsdp, config.source.origins)
    check_model_file(config.model.name, config.source.origins.get("model.name", "default"))


def read_command_line(arguments: Sequence[str]) -> tuple[list[str], list[Setting], bool]:
    """Split the command line into recipes, settings, and whether `--print_config` was given. Raises UserError."""
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
            hint = hint_for_argument(f"{option}{equals}{value}", list_recipes())
            raise UserError(f"{shown(option)!r} ({COMMAND_LINE}) is not an option{hint}")
        if key != "config":
            check_key(key, COMMAND_LINE)
        if not equals and queue and not queue[0].startswith("--"):
            value, equals = queue.pop(0), "="
        if not equals or (key == "config" and not value):
            value = "true" if key in FIELDS and field_schema(key)["type"] == "boolean" else "VALUE"
            raise UserError(f"--{key} ({COMMAND_LINE}) needs a value: --{key}={value}")
        if key == "config":
            recipes.append(value)
        else:
            settings.append(Setting(key, value, COMMAND_LINE))
    return recipes, settings, print_config


def dump(config: Config) -> str:
    """The configuration as YAML, from which `--config` gives an equal configuration."""
    settings = config.to_dict()
    arguments = settings["model"]["args"]
    settings["model"]["args"] = {name: quote_texts(value) for name, value in arguments.items()}
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 120}
    return yaml.dump(settings, Dumper=SettingsDumper, **options)


class QuotedText(str):
    """A text that is written in quotes: the type of a model's argument is that of its spelling."""


class SettingsDumper(yaml.SafeDumper):
    """Plain YAML, with quotes around `QuotedText`."""


SettingsDumper.add_representer(
    QuotedText, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


def quote_texts(value: Any) -> Any:
    """A scalar or a list of scalars, with its texts as `QuotedText`."""
    if isinstance(value, list):
        return [quote_texts(item) for item in value]
    return QuotedText(value) if isinstance(value, str) else value


def print_config(config: Config) -> None:
    """Write the configuration to standard output."""
    sys.stdout.write(dump(config))

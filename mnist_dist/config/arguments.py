"""A configuration from Python: recipes with overrides, and the checks of one that a program made by itself."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mnist_dist.config.frozen_model import Source
from mnist_dist.config.fsdp import FSDPConfig
from mnist_dist.config.loader import LoadedConfig, assemble, check_for_launch
from mnist_dist.config.model_names import ARGUMENTS
from mnist_dist.config.schema import Config, flat
from mnist_dist.config.validation import check_key, shown
from mnist_dist.config.values import describe_error
from mnist_dist.config.yaml_files import Setting
from mnist_dist.utils.errors import UserError

ARGUMENT = "argument"
"""The origin of a setting that a program gave."""


def load_recipe(
    recipe: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], overrides: Mapping[str, Any]
) -> Config:
    """As `Config.from_recipe`."""
    recipes = [recipe] if isinstance(recipe, (str, os.PathLike)) else recipe
    given = [entry for item in overrides.items() for entry in arguments_of(*item)]
    config = assemble([os.fspath(each) for each in recipes], [read_override(*entry) for entry in given])
    check_for_launch(config, world_size=1, fsdp=None)
    return config


def arguments_of(key: str, value: Any) -> list[tuple[str, Any]]:
    """A setting and its value; of a mapping for `model.args` each of its entries instead."""
    if key == ARGUMENTS and isinstance(value, Mapping):
        return [(f"{key}.{name}", entry) for name, entry in value.items()]
    return [(key, value)]


def read_override(key: str, value: Any) -> Setting:
    """A setting from its name and its value or text. Raises UserError: an unknown name, no such type."""
    check_key(str(key), ARGUMENT)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = [text_of(item) for item in items]
    if key.startswith(f"{ARGUMENTS}."):  # whose type is that of its spelling
        texts = [quoted(item) if isinstance(item, str) else text for item, text in zip(items, texts, strict=True)]
    if None in texts:
        raise UserError(f"{key}={shown(repr(value))} ({ARGUMENT}): must be a number, true or false, a text or a list")
    known = [text for text in texts if text is not None]
    return Setting(key, known if isinstance(value, (list, tuple)) else known[0], ARGUMENT)


def quoted(text: str) -> str:
    """A text in quotes, as YAML reads it."""
    return json.dumps(text, ensure_ascii=False)


def text_of(value: Any) -> str | None:
    """A value as it is written on the command line; None if it cannot be."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, numbers.Integral):
        return str(int(value))
    return repr(float(value)) if isinstance(value, numbers.Real) else None


def check_config(config: Config, world_size: int, fsdp: FSDPConfig | None) -> LoadedConfig:
    """Check a configuration that a program may have built or copied without any check, as `load` checks one.

    Raises:
        TypeError: it is no Config. UserError: as `load`.
    """
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise TypeError(f"expected a Config, as Config.from_recipe(...) gives, not {shown(repr(config))} ({kind})")
    try:
        checked = Config.model_validate_json(config.model_dump_json(warnings=False))
    except ValidationError as error:
        key, wrong = describe_error(error)
        raise UserError(f"{key} ({ARGUMENT}): {wrong}") from None
    defaults = flat(Config())
    changed = {key: ARGUMENT for key, value in flat(checked).items() if value != defaults.get(key)}
    checked._source = Source(config.source.recipes, {**changed, **config.source.origins})
    check_for_launch(checked, world_size, fsdp)
    return LoadedConfig(checked, checked.source.recipes, print_config=False)

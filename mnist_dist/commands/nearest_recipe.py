"""The shipped recipe that a run's settings are nearest to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from mnist_dist.config.loader import load
from mnist_dist.config.schema import flat
from mnist_dist.config.yaml_files import list_recipes

NOT_OF_A_RECIPE = ("run.", "tracking.", "data.root", "data.source")
"""Where a run is stored, its seed and what it records: these do not make it another recipe."""


def nearest_recipe(config: Mapping[str, Any]) -> str:
    """The name of the recipe with the fewest settings that differ: `default`, or `default, 2 changed`.

    Args:
        config: settings with dotted keys; empty if they are not known.

    Returns:
        `-` without settings.
    """
    if not config:
        return "-"
    differing = {name: count_differing(config, recipe) for name, recipe in recipes().items()}
    name = min(differing, key=lambda name: (differing[name], name))
    return f"{name}, {differing[name]} changed" if differing[name] else name


def count_differing(config: Mapping[str, Any], recipe: Mapping[str, Any]) -> int:
    """Number of settings that differ; one that the run does not know has its default."""
    keys = [key for key in recipe if not key.startswith(NOT_OF_A_RECIPE)]
    return sum(config.get(key, recipe[key]) != recipe[key] for key in keys)


@cache
def recipes() -> dict[str, dict[str, Any]]:
    """The settings of each shipped recipe."""
    return {name: flat(load([f"--config={name}"]).config) for name in list_recipes()}

"""configs/schema.json, by which editors check recipes: up to date, named by every recipe, and true of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_dist.config.json_schema import json_schema
from mnist_dist.config.schema import FIELDS
from mnist_dist.config.yaml_files import find_recipe, list_recipes, recipes_folder

SCHEMA = recipes_folder() / "schema.json"


def violations(recipe: Any) -> set[str]:
    """Paths of the values in a recipe that an editor would mark."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    return {error.json_path for error in validator.iter_errors(recipe)}


def test_the_file_is_what_the_command_prints() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run: mnist-dist config schema > configs/schema.json"


def test_it_tells_type_default_and_meaning_of_every_setting() -> None:
    sections = json_schema()["$defs"]
    found = [field for section in sections.values() for field in section["properties"].values()]
    assert len(found) == len(FIELDS)
    assert all({"type", "default", "description"} <= field.keys() for field in found)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_names_the_file_and_keeps_to_it(name: str) -> None:
    path = find_recipe(name)
    named = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), flags=re.MULTILINE)
    assert [(path.parent / each).resolve() for each in named] == [SCHEMA.resolve()]
    assert violations(yaml.safe_load(path.read_text()) or {}) == set()


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ("optim: {lr: fast}", "$.optim.lr"),
        ("optim: {lr: -1}", "$.optim.lr"),
        ("optim: {warmup: 1}", "$.optim.warmup"),
        ("optim: {lrate: 1}", "$.optim"),
        ("optm: {lr: 1}", "$"),
        ("optim: {betas: [0.9]}", "$.optim.betas"),
        ("optim: {betas: [0.9, 1]}", "$.optim.betas[1]"),
        ("train: {precision: no}", "$.train.precision"),
        ("tracking: {share: [all]}", "$.tracking.share[0]"),
        ("run: {seed: 1.5}", "$.run.seed"),
    ],
)
def test_mistakes_are_found_where_they_are(recipe: str, where: str) -> None:
    assert violations(yaml.safe_load(recipe)) == {where}


def test_it_travels_in_the_package_beside_the_recipes() -> None:
    """pyproject.toml copies the whole folder, so relative paths in recipes hold there too."""
    assert SCHEMA.parent == Path(find_recipe("default")).parent

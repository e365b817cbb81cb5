"""docs/architecture.md names files, classes and functions: each exists where it says, and the ways stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
WAYS = ("The way of a batch", "The way of a setting", "The way of a stop")


def names_in(path: Path) -> set[str]:
    """The functions, classes and methods (`Class.method`) that a module defines."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def mentions() -> list[tuple[str, str]]:
    """(file, name) for each name that follows a file in the same item or paragraph."""
    found = []
    for paragraph in re.split(r"\n(?=\d+\. |\n)", TEXT):
        pieces = re.split(r"`([\w/]+\.py)`", paragraph)
        for file, rest in zip(pieces[1::2], pieces[2::2], strict=True):
            found.append((file, ""))
            found += [(file, name) for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`", rest) if is_code(name)]
    return found


def is_code(name: str) -> bool:
    """Whether a word in backticks is a class, a method or a function, not a setting, a column or a file."""
    return name[0].isupper() or ("_" in name and "." not in name) or name in ("load", "normalize")


@pytest.mark.parametrize(("file", "name"), sorted(set(mentions())))
def test_what_is_named_exists(file: str, name: str) -> None:
    path = ROOT / "mnist_dist" / file
    assert path.is_file()
    assert not name or name in names_in(path)


@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_ten_lines_at_most_and_enters_no_file_twice(way: str) -> None:
    section = TEXT.split(f"## {way}\n")[1].split("\n## ")[0]
    items = [line for line in section.splitlines() if re.match(r"\d+\. |   ", line)]
    files = re.findall(r"`([\w/]+\.py)`", "\n".join(items))
    assert 5 <= len(items) <= 10
    assert len(files) == len(set(files)) <= 9


def test_the_layers_are_those_that_are_checked() -> None:
    layers = (ROOT / "pyproject.toml").read_text().partition("\nlayers = [\n")[2].partition("]")[0]
    assert TEXT.split("```text\n")[1].split("```")[0].splitlines() == re.findall(r'"(.*)"', layers)


def test_every_package_is_described() -> None:
    packages = {path.parent.name for path in (ROOT / "mnist_dist").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == packages

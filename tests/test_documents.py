"""Every path, link and pytest command in a Markdown file of the repository leads to something that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "configs", "docs", "launch", "mnist_dist", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))])
MODULES = {path.name for name in ("mnist_dist", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py")}

FOLDER_PATH = r"(?:tests|docs|launch|benchmarks|configs)/[\w/.*-]*[\w/*]"
PATH = re.compile(rf"(?<![\w/-])(?:\.\./)*({FOLDER_PATH}|mnist_dist/[\w/]+\.py)")
"""A path from the root of the repository; `*` stands for any text."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(r"[\w/]+\.py")
PYTEST = re.compile(r"^pytest(?: .*)?$", re.MULTILINE)


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown text."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def missing_paths(text: str) -> list[str]:
    """The paths in a text that do not exist; a pattern must match a file."""
    return [path for path in PATH.findall(text) if not any(ROOT.glob(path.rstrip("/")))]


def missing_modules(text: str, folder: Path) -> list[str]:
    """The `.py` files named as code that do not exist: from the root, the package, the document or by name alone."""
    names = [name for name in CODE.findall(text) if MODULE.fullmatch(name)]
    folders = (ROOT, ROOT / "mnist_dist", folder)
    return [name for name in names if name not in MODULES and not any((each / name).is_file() for each in folders)]


def broken_links(document: Path) -> list[str]:
    """The links in a document to a file or a heading that does not exist; other sites are not checked."""
    found = []
    for link in LINK.findall(document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (target.exists() and (not anchor or anchor in headings(target.read_text()))):
            found.append(link)
    return found


def pytest_arguments(text: str) -> list[str]:
    """The files and folders that the pytest commands in a text name, in code spans and in code blocks."""
    commands = PYTEST.findall("\n".join([*CODE.findall(text), *re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]))
    found = []
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        values = {i + 1 for i, word in enumerate(words) if word in ("-m", "-k")}
        found += [word for i, word in enumerate(words) if i not in values and not word.startswith("-")]
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    assert missing_paths(text) == []
    assert missing_modules(text, document.parent) == []
    assert broken_links(document) == []
    assert [path for path in pytest_arguments(text) if not (ROOT / path).exists()] == []


def test_every_guarantee_has_a_command() -> None:
    rows = (ROOT / "docs" / "reliability.md").read_text().split("## Guarantees\n")[1].split("\n## ")[0].splitlines()
    guarantees = [row for row in rows if row.startswith("| **")]
    assert len(guarantees) > 10
    assert [row for row in guarantees if not pytest_arguments(row)] == []


def test_mistakes_are_found() -> None:
    text = "`tests/test_gone.py`, [x](../docs/gone.md), docs/gone-*.svg, `mnist_dist/gone.py`, `data/gone.py`, tests/"
    assert missing_paths(text) == ["tests/test_gone.py", "docs/gone.md", "docs/gone-*.svg", "mnist_dist/gone.py"]
    assert missing_modules(text, ROOT) == ["tests/test_gone.py", "mnist_dist/gone.py", "data/gone.py"]
    assert pytest_arguments('`pytest -m "a or b" one.py -k two three`\n```sh\npytest four  # five\n```') == [
        "one.py",
        "three",
        "four",
    ]
    assert headings("# Time to 99 %\n```sh\n# no heading\n```") == {"time-to-99-"}

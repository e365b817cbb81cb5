"""The site of docs/ is built strictly, asks no other server, has every setting and command; pictures are as drawn."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.config.help import format_default
from mnist_dist.config.schema import FIELDS
from mnist_dist.config.values import field_schema

ROOT = Path(__file__).parents[1]
EXPLANATIONS = ("order", "exact-metrics", "fixed-shards", "resume", "watchdog")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*\shref=["']?(?:https?:)?//"""
)
"""What a browser fetches from another server when it opens a page; a link that a reader follows is none."""


def load_script(name: str) -> ModuleType:
    """A program in docs/, which is no package."""
    spec = util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once. Without MkDocs its tests are skipped."""
    pytest.importorskip("material", reason="mkdocs-material: not installed; pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def text_of(page: Path) -> str:
    """What a reader sees of a page."""
    return html.unescape(re.sub(r"<[^>]*>", "", page.read_text()))


def test_no_page_loads_anything_from_another_server(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert [page.name for page in pages if LOADED.search(page.read_text())] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", styles)


def test_what_a_browser_would_fetch_is_found() -> None:
    assert LOADED.search('<script async src="https://a/b.js">')
    assert LOADED.search("<link rel=stylesheet href=//fonts.example>")
    assert not LOADED.search('<a href="https://a/b"><img alt="" src="pictures/order.svg">')


def test_links_out_of_docs_lead_to_pages_and_files_of_the_site(site: Path) -> None:
    assert 'href="launch.html#check-before-a-run"' in (site / "hangs.html").read_text()
    assert 'href="source/launch/slurm/train.sbatch"' in (site / "slurm.html").read_text()
    assert (site / "source/launch/slurm/train.sbatch").read_text() == (ROOT / "launch/slurm/train.sbatch").read_text()


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key in FIELDS}))
def test_every_setting_has_type_default_and_meaning(site: Path, section: str) -> None:
    page = " ".join(text_of(site / "reference" / f"{section}.html").split())
    for key in FIELDS:
        if key.startswith(f"{section}."):
            schema: dict[str, Any] = field_schema(key)
            entry = page[page.index(f"{key}¶") :].removeprefix(f"{key}¶")
            entry = re.split(rf"{section}\.\w+¶", entry)[0]
            assert f"default: {format_default(schema['default'])}" in entry, key
            assert " ".join(schema["description"].replace("`", "").split()) in entry, key
    assert "at least 0 and below 2147483648" in text_of(site / "reference" / "run.html")


def test_every_command_has_its_help(site: Path) -> None:
    page = text_of(site / "reference" / "commands.html")
    for name in COMMANDS:
        assert f"usage: mnist-dist {name}" in page or name == "train", name
    assert "usage: python -m mnist_dist.train" in page
    assert "usage: mnist-dist data fetch" in page
    assert "mnist-dist config schema | python -m json.tool --compact" in page  # the examples, too


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_an_explanation_has_its_picture_as_it_is_drawn_and_says_what_it_shows(name: str) -> None:
    pictures = load_script("pictures")
    assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text() == pictures.PICTURES[name]().svg()
    [(description, path)] = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", (ROOT / "docs" / f"{name}.md").read_text())
    assert path == f"pictures/{name}.svg"
    assert len(description) > 60

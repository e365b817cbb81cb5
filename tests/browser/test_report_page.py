"""The report in a real browser: nothing is wider than a phone, and axe-core finds no obstacle, light and dark."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from kept_run import copy_kept_run

from mnist_dist.__main__ import main
from mnist_dist.utils.errors import EXIT_DONE


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report of two runs."""
    if find_spec("matplotlib") is None:
        pytest.skip("needs the extra `report`")
    monkeypatch.chdir(copy_kept_run(tmp_path))
    shutil.copytree("run", "a-second-run-with-a-name-that-is-rather-long")
    assert main(["report", "run", "a-second-run-with-a-name-that-is-rather-long", "--out", "page.html"]) == EXIT_DONE
    return tmp_path / "page.html"


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_and_is_accessible(report: Path, open_page: Any, violations: Any, width: int, scheme: str) -> None:
    page = open_page(f"file://{report}", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert colours == sorted(colours, reverse=scheme == "light", key=lambda colour: int(colour[4:].split(",")[0]))
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == colours[1]

"""The report in a real browser: nothing is wider than a phone, and axe-core finds no obstacle, light and dark."""

from __future__ import annotations

import io
import json
import shutil
from importlib.util import find_spec
from itertools import pairwise
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
    ink = page.evaluate("getComputedStyle(document.querySelector('.figure text')).fill")
    assert ink == colours[1]
    for figure in page.locator(".figure svg").all():
        assert corner(figure) == colours[0]  # a white ground would hide light text
        assert figure.evaluate("svg => svg.getBoundingClientRect().right") <= width


def corner(element: Any) -> str:
    """The colour of the first pixel of an element, as CSS writes it."""
    from PIL import Image

    pixel = Image.open(io.BytesIO(element.screenshot())).convert("RGB").getpixel((0, 0))
    return f"rgb({', '.join(map(str, pixel))})"


@pytest.mark.parametrize("classes", [47, 150])
@pytest.mark.parametrize("width", [390, 1400])
def test_many_classes_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_page: Any, violations: Any, classes: int, width: int
) -> None:
    """The names along the matrix are at least 8 pixels high, and do not overlap; a phone scrolls the matrix alone."""
    pytest.importorskip("matplotlib", reason="needs the extra `report`")
    monkeypatch.chdir(copy_kept_run(tmp_path))
    shutil.rmtree("run/checkpoints")
    summary = json.loads(Path("run/summary.json").read_text())
    summary["test.confusion"] = [[20 * (i == j) + (j == i // 2) for j in range(classes)] for i in range(classes)]
    Path("run/summary.json").write_text(json.dumps(summary))
    assert main(["report", "run", "--out", "page.html"]) == EXIT_DONE
    page = open_page(f"file://{tmp_path}/page.html", width, "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    names = [text.bounding_box() for text in page.locator(".large g[id*=ytick] text").all()]
    assert len(names) >= 40
    assert min(box["height"] for box in names) >= 8
    lines = sorted(box["y"] + box["height"] / 2 for box in names)
    assert min(after - before for before, after in pairwise(lines)) >= 8

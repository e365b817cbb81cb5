"""A real Chromium, driven by playwright, and axe-core's rules of accessibility; tests are skipped without them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks

from mnist_dist.checkpoint.load_model import load_model
from mnist_dist.data.prepare import find_files, resolve_root
from mnist_dist.train import main as train
from mnist_dist.utils.errors import EXIT_DONE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

Open = Callable[..., Any]
"""Opens a page in a window of a width and a colour scheme, and returns playwright's page."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium here (Debian: chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: pip install -e '.[browser]'")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """Opens pages. An error of a script in one, or a request to another address, fails the test."""
    contexts, problems = [], []

    def open_page(url: str, width: int, scheme: str) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"{error}"))
        page.on("console", lambda line: line.type == "error" and problems.append(line.text))
        origin = url.split("/", 3)[2]
        page.on("request", lambda request: foreign(request.url, origin) and problems.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def foreign(url: str, origin: str) -> bool:
    """Whether a request leaves the page: not data within it, and not the address that it came from."""
    return not url.startswith(("data:", "blob:")) and url.split("/", 3)[2] != origin


@pytest.fixture
def violations() -> Callable[[Any], list[str]]:
    """Checks a page by axe-core: what it finds, one line each."""
    if not AXE.is_file():
        pytest.skip("no axe-core here (npm install axe-core, or AXE_CORE names its axe.min.js)")

    def check(page: Any) -> list[str]:
        page.evaluate(AXE.read_text())
        found = page.evaluate("rules => axe.run(document, rules)", RULES)
        return [
            f"{rule['id']}: {node['target']}: {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    return check


@pytest.fixture(scope="session")
def trained_on_mnist(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that was trained on MNIST itself, by the recipe speed99."""
    root = resolve_root("")
    if find_files(root) is None:
        pytest.skip(f"no MNIST in {root} (mnist-dist data fetch)")
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = ["--config=speed99", f"--run.dir={folder}", "--tracking.mode=disabled", "--run.quiet=true"]
    assert run_ranks(1, train, settings) == [EXIT_DONE]
    return load_model(str(folder))

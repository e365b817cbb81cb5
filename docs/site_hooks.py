"""Hooks of MkDocs: pages that are generated, and links that lead out of docs/.

The Markdown files link each other by relative paths, as a code host shows them. On the site a page from outside docs/,
such as launch/README.md, has a place of its own (`PAGES`); any other file is copied below `source/`, so that no link
leaves the site.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "launch/README.md": "launch.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""File of the repository to its page on the site. The start page is docs/index.md: of README.md only links matter."""
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
"""The path of a Markdown link, without its anchor."""
ORIGIN = {page: path for path, page in PAGES.items() if path != "README.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that a code host gives them, and put every decision into the navigation."""
    config.mdx_configs["toc"]["slugify"] = slugify
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert config.nav is not None
    [place] = [entry for entry in config.nav if "Decisions" in entry]
    place["Decisions"] = [f"decisions/{name}" for name in decisions]
    return config


def slugify(title: str, separator: str) -> str:
    """The anchor of a heading on a code host: `Time to 99 %` has `time-to-99-`."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, the pages from outside docs/, and the other files of the repository that a page links."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    generated = {f"reference/{section}.md": reference.settings_page(section) for section in reference.SECTIONS}
    generated["reference/commands.md"] = reference.commands_page()
    generated |= {page: (ROOT / path).read_text() for page, path in ORIGIN.items()}
    for uri, text in generated.items():
        files.append(File.generated(config, uri, content=text))
    for file in list(files.documentation_pages()):
        for target in linked_files(file.src_uri, file.content_string):
            if files.get_file_from_path(f"source/{target}") is None:
                files.append(File.generated(config, f"source/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside docs/ into links to their places on the site."""
    return LINK.sub(lambda match: relink(match[0], page.file.src_uri), markdown)


def linked_files(uri: str, text: str) -> set[str]:
    """The files outside docs/ that a page links and that are no pages of the site, as paths in the repository."""
    targets = {repository_path(link, uri) for link in LINK.findall(text)}
    return {path for path in targets if path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file()}


def repository_path(link: str, uri: str) -> str:
    """What a link on a page leads to, as a path in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(ORIGIN.get(uri, f"docs/{uri}")), link))


def relink(link: str, uri: str) -> str:
    """A relative link between places on the site, for a relative link in the repository; others as they are."""
    path = repository_path(link, uri)
    if "://" in link or not (ROOT / path).exists():
        return link
    if path in PAGES:
        place = PAGES[path]
    elif path.startswith("docs/"):
        place = path.removeprefix("docs/")
    else:
        place = f"source/{path}"
    return os.path.relpath(place, posixpath.dirname(uri) or ".")

"""The width of help texts, and lines of them that fit it."""

from __future__ import annotations

import shutil
from textwrap import fill

MIN_WIDTH, MAX_WIDTH = 40, 100


def help_width() -> int:
    """The width of the terminal, within `MIN_WIDTH` and `MAX_WIDTH`; 80 if there is none."""
    return min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)


def wrap(text: str, width: int, indent: int, next_indent: int | None = None) -> str:
    """A paragraph of indented lines of at most `width` columns; words with hyphens are kept whole."""
    if max(map(len, text.split())) > width - indent:
        text = text.replace("|", "| ")  # a long list of choices
    first, later = " " * indent, " " * (indent if next_indent is None else next_indent)
    collapsed = " ".join(text.split())
    return fill(
        collapsed, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def wrap_commands(text: str, width: int) -> str:
    """Command lines that are indented by two columns; too long ones are continued after a backslash, as in a shell."""
    lines = []
    for line in text.splitlines(keepends=True):
        if len(line.rstrip("\n")) > width:
            *parts, last = wrap(line, width - 2, 2, 6).splitlines()
            line = "".join(f"{part} \\\n" for part in parts) + f"{last}\n"
        lines.append(line)
    return "".join(lines)

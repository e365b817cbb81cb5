"""docs/troubleshooting.md quotes messages as the program prints them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| `([^`]*)`(.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
OURS = [message for message, by in ROWS if "accelerate" not in by and "torchrun" not in by]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "mnist_dist").rglob("*.py")))
JOINED = re.sub(r"\"\s*\n\s*f?\"", "", SOURCE).replace("`", "")


def phrases(message: str) -> list[str]:
    """Runs of words that are the same each time: of three words, or of two where there are no three."""
    parts = [part.split() for part in re.split(r"[A-Z_]{2,}|\d[\w.:…]*|[;:=,()'…?]|\.\.\.", message)]
    found = [[" ".join(part[i : i + size]) for part in parts for i in range(len(part) - size + 1)] for size in (3, 2)]
    return found[0] or found[1]


@pytest.mark.parametrize("message", OURS)
def test_a_message_is_one_of_ours(message: str) -> None:
    assert any(phrase in JOINED for phrase in phrases(message)), phrases(message)


def test_many_messages_are_checked() -> None:
    assert len(OURS) > 15

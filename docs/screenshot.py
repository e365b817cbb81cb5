"""Draw docs/training.svg: the terminal of a real run of the default recipe, by rich's own SVG export.

Run it from anywhere: `python docs/screenshot.py`. It trains for about ten seconds in a temporary folder.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console as Terminal

from mnist_dist.console import console
from mnist_dist.train import main

SVG = Path(__file__).resolve().parent / "training.svg"
ARGUMENTS = ("--run.dir=runs/first", "--tracking.mode=disabled")


class StillConsole(console.RichConsole):
    """Without the live progress, of which each redraw would be recorded."""

    def start_progress(self, total_steps: int, step: int, epochs: int) -> None:
        """Nothing."""


def draw() -> None:
    """Train with a console that records, and export what it recorded."""
    terminal = Terminal(
        record=True,
        width=92,
        height=60,
        force_terminal=True,
        color_system="truecolor",
        file=io.StringIO(),
        highlight=False,
    )
    console.open_console = lambda is_main, quiet: StillConsole(terminal)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        code = main(ARGUMENTS)
        os.chdir("/")
    if code:
        raise SystemExit(code)
    svg = terminal.export_svg(title="python -m mnist_dist.train")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from the network
    SVG.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    draw()

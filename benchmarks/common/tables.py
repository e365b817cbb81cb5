"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

WIDTH = 200  # columns, where standard output is no terminal


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> None:
    """Print a title and a table below it.

    Args:
        left: headings of the columns that are aligned at their left; all others are numbers.
    """
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(title, soft_wrap=True)
    console.print(table)

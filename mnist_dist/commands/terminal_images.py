"""Draw digits and probabilities in a terminal: colours and block characters if it has them, else ASCII."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from mnist_dist.console.formatting import format_percent

if TYPE_CHECKING:
    from torch import Tensor

SHADES = " .:-=+*#%@"
BAR_CELLS = 20
NAME_CELLS = 12
MAX_BARS = 12
"""Classes whose probabilities are all drawn; as high as an image."""


def is_plain(console: Console) -> bool:
    """Whether a console has no colours or cannot encode block characters: draw with `plain=True` then."""
    try:
        "▀█".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return True
    return console.color_system is None or console.no_color


def draw_digit(image: Tensor, plain: bool = False) -> Text:
    """Draw an image as H / 2 lines of text: a character is two pixels, one above the other.

    Args:
        image: uint8 (H, W), H even, 0 black to 255 white.
        plain: ASCII characters from light to dense instead of grey half blocks.
    """
    pixels = image.tolist()
    lines = []
    for above, below in zip(pixels[0::2], pixels[1::2], strict=True):
        pairs = list(zip(above, below, strict=True))
        if plain:
            lines.append(Text("".join(SHADES[(top + bottom) * len(SHADES) // 512] for top, bottom in pairs)))
        else:
            lines.append(Text.assemble(*(("▀", grey_style(top, bottom)) for top, bottom in pairs)))
    return Text("\n", no_wrap=True).join(lines)


def grey_style(top: int, bottom: int) -> Style:
    """The style of an upper half block that shows two pixels, each 0 to 255."""
    return Style(color=Color.from_rgb(top, top, top), bgcolor=Color.from_rgb(bottom, bottom, bottom))


def draw_bars(probabilities: Tensor, classes: Sequence[str], truth: int | None = None, plain: bool = False) -> Text:
    """Draw one line per class: name, bar and probability. `>` marks the prediction, `true` the label.

    Of more than MAX_BARS classes only the likeliest ones and the label are drawn.

    Args:
        probabilities: float (C,), each 0 to 1.
        classes: the C names.
        truth: the label, if it is known.
        plain: ASCII characters only, except in the names.
    """
    values = probabilities.tolist()
    likeliest = max(range(len(values)), key=values.__getitem__)
    width = min(NAME_CELLS, max(map(cell_len, classes)))
    lines = []
    drawn = list(range(len(values)))
    if len(values) > MAX_BARS:
        drawn = sorted(drawn, key=lambda index: -values[index])[:MAX_BARS]
        drawn += [truth] if truth is not None and truth not in drawn else []
    for index in drawn:
        name, value = classes[index], values[index]
        length = round(value * BAR_CELLS)
        bar = ("#" if plain else "█") * length + ("." if plain else "·") * (BAR_CELLS - length)
        marked, true = ">" if index == likeliest else " ", " true" if index == truth else ""
        line = f"{marked} {set_cell_size(name, width)} {bar} {format_percent(value):>8}{true}"
        lines.append(Text(line, style=line_style(index, likeliest, truth)))
    return Text("\n", no_wrap=True).join(lines)


def line_style(index: int, likeliest: int, truth: int | None) -> str:
    """The style of a class's line: the label green, a wrong prediction red."""
    if index == truth:
        return "bold green"
    if index == likeliest:
        return "bold" if truth is None else "bold red"
    return "dim"


def side_by_side(left: Text, right: Text, columns: int) -> RenderableType:
    """Two drawings side by side, the right one centred vertically; one above the other where they have no room.

    Args:
        columns: width of the terminal.
    """
    if sum(max(map(cell_len, drawing.plain.split("\n"))) for drawing in (left, right)) + 2 > columns:
        return Group(left, right)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, vertical="middle")
    grid.add_row(left, right)
    return grid

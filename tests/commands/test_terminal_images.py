"""Digits and probabilities drawn in terminals of every kind."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from mnist_dist.commands.terminal_images import draw_bars, draw_digit, is_plain, side_by_side

DIGITS = tuple("0123456789")


def image() -> torch.Tensor:
    pixels = torch.zeros(28, 28, dtype=torch.uint8)
    pixels[0, 0] = 255
    pixels[1, 1] = 255
    pixels[26:, 27] = 255
    return pixels


def likely(label: int, probability: float = 0.91) -> torch.Tensor:
    row = torch.full((10,), (1 - probability) / 9)
    row[label] = probability
    return row


def console(encoding: str = "utf-8", **options: object) -> tuple[Console, io.BytesIO]:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, write_through=True)
    return Console(file=file, width=80, **options), buffer


def test_half_blocks_hold_two_pixels() -> None:
    text = draw_digit(image())
    lines = text.split("\n")
    assert [line.plain for line in lines] == ["▀" * 28] * 14
    target, buffer = console(force_terminal=True, color_system="truecolor")
    target.print(text)
    first = buffer.getvalue().decode().splitlines()[0]
    assert first.startswith(
        "\x1b[38;2;255;255;255;48;2;0;0;0m▀\x1b[0m\x1b[38;2;0;0;0;48;2;255;255;255m▀\x1b[0m\x1b[38;2;0;0;0;48;2;0;0;0m▀"
    )


def test_plain_shades_are_ascii() -> None:
    lines = draw_digit(image(), plain=True).plain.split("\n")
    assert len(lines) == 14
    assert lines[0] == "==" + " " * 26
    assert lines[13] == " " * 27 + "@"
    assert all(line.isascii() and len(line) == 28 for line in lines)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"force_terminal": True, "color_system": "truecolor"}, False),
        ({"force_terminal": True, "color_system": "standard"}, False),
        ({"force_terminal": True, "color_system": "truecolor", "no_color": True}, True),
        ({"force_terminal": True, "color_system": "truecolor", "encoding": "ascii"}, True),
        ({"force_terminal": True, "color_system": "truecolor", "encoding": "latin-1"}, True),
        ({}, True),
    ],
)
def test_plain_where_colours_or_blocks_are_missing(options: dict[str, object], plain: bool) -> None:
    target, buffer = console(**options)  # type: ignore[arg-type]
    assert is_plain(target) is plain
    target.print(side_by_side(draw_digit(image(), plain), draw_bars(likely(3), DIGITS, 5, plain), 80))
    assert buffer.getvalue().isascii() is plain


def test_bars_mark_prediction_and_truth() -> None:
    lines = draw_bars(likely(3), DIGITS, truth=5, plain=True).plain.split("\n")
    assert lines[3] == "> 3 ##################..  91.00 %"
    assert lines[5] == "  5 ....................   1.00 % true"
    assert len(lines) == 10
    assert sum(line.startswith(">") for line in lines) == sum(line.endswith("true") for line in lines) == 1
    assert draw_bars(likely(3), DIGITS, 3, True).plain.split("\n")[3] == "> 3 ##################..  91.00 % true"
    assert "true" not in draw_bars(likely(3), DIGITS, plain=True).plain


def test_of_many_classes_the_likeliest_and_the_label_are_drawn() -> None:
    probabilities = torch.linspace(0, 1, 47).softmax(0)
    names = [f"class {index}" for index in range(47)]
    lines = draw_bars(probabilities, names, truth=3, plain=True).plain.splitlines()
    assert [line[2:10] for line in lines] == [f"class {index}" for index in range(46, 34, -1)] + ["class 3 "]
    assert lines[0].startswith("> ")
    assert lines[-1].endswith(" true")
    assert len(draw_bars(probabilities, names, truth=46, plain=True).plain.splitlines()) == 12


def test_colours_say_right_and_wrong() -> None:
    def colours(truth: int | None) -> list[str]:
        return [str(line.spans[0].style) for line in draw_bars(likely(3), DIGITS, truth).split("\n")]

    assert colours(3) == ["dim"] * 3 + ["bold green"] + ["dim"] * 6
    assert colours(5) == ["dim"] * 3 + ["bold red", "dim", "bold green"] + ["dim"] * 4
    assert colours(None) == ["dim"] * 3 + ["bold"] + ["dim"] * 6


def test_names_are_aligned_and_never_markup() -> None:
    names = ("[red]x", "宽宽", "a very long name of a class", *"3456789")
    lines = draw_bars(likely(0, 1.0), names, plain=True).plain.split("\n")
    assert lines[0] == "> [red]x       #################### 100.00 %"
    assert lines[1] == "  宽宽         ....................   0.00 %"
    assert lines[2] == "  a very long  ....................   0.00 %"


def test_a_drawing_fits_80_columns() -> None:
    target, buffer = console()
    target.print(
        side_by_side(draw_digit(image(), True), draw_bars(likely(0, 1.0), ["a very long name"] * 10, 0, True), 80)
    )
    lines = buffer.getvalue().decode().splitlines()
    assert len(lines) == 14
    assert lines[2].rstrip().endswith("100.00 % true")


@pytest.mark.parametrize("width", [49, 60, 76])
def test_without_room_for_both_the_bars_come_below_the_digit(width: int) -> None:
    file = io.StringIO()
    target = Console(file=file, width=width)
    target.print(side_by_side(draw_digit(image(), True), draw_bars(likely(0), ["twelve cells"] * 10, 0, True), width))
    lines = file.getvalue().splitlines()
    assert len(lines) == 14 + 10
    assert "\u2026" not in file.getvalue()
    assert lines[14].rstrip().endswith("% true")

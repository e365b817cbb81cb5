"""`mnist-dist demo` in a real browser: digits drawn with a pointer and with the keyboard are recognised."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_run import copy_kept_run

from mnist_dist.checkpoint.load_model import load_model, read_config
from mnist_dist.commands.demo_server import SIDE, DemoServer, recognise

Point = tuple[float, float]


def arc(x: float, y: float, across: float, down: float, start: float, end: float) -> list[Point]:
    """Part of an ellipse, in degrees clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


DIGITS: dict[str, list[list[Point]]] = {
    "0": [arc(0.5, 0.5, 0.2, 0.3, -90, 270)],
    "1": [[(0.42, 0.3), (0.52, 0.2), (0.5, 0.8)]],
    "2": [[*arc(0.48, 0.34, 0.18, 0.15, -170, 30), (0.32, 0.78), (0.72, 0.78)]],
    "3": [arc(0.46, 0.34, 0.17, 0.14, -150, 80) + arc(0.46, 0.63, 0.2, 0.16, -80, 150)],
    "4": [[(0.38, 0.2), (0.3, 0.52), (0.68, 0.52)], [(0.6, 0.25), (0.58, 0.82)]],
    "5": [[(0.68, 0.22), (0.38, 0.22), (0.36, 0.45), *arc(0.48, 0.6, 0.19, 0.18, -120, 140)]],
    "6": [[(0.6, 0.18), (0.42, 0.4), *arc(0.48, 0.64, 0.15, 0.16, -150, 210)]],
    "7": [[(0.3, 0.22), (0.7, 0.22), (0.45, 0.82)]],
    "8": [arc(0.5, 0.34, 0.14, 0.14, 90, 450) + arc(0.5, 0.64, 0.17, 0.16, -90, 270)],
    "9": [[*arc(0.5, 0.36, 0.16, 0.15, 0, -360), (0.66, 0.36), (0.6, 0.82)]],
}
"""Strokes of each digit, in fractions of the drawing field."""


@pytest.fixture
def serve() -> Iterator[Callable[[Any], int]]:
    """Serves the demo of a model in a thread; gives the port."""
    servers: list[DemoServer] = []

    def start(loaded: Any) -> int:
        server = DemoServer(loaded, 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever).start()
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of the kept run."""
    monkeypatch.chdir(copy_kept_run(tmp_path))
    return load_model("run")


def draw(page: Any, strokes: list[list[Point]]) -> str:
    """Draw with the pointer on an empty field; the answer."""
    page.click("#clear")
    page.wait_for_selector("body[data-state=answered][data-answer='']")
    box = page.locator("#drawing").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=2)
        page.mouse.up()
    page.wait_for_selector("body[data-state=answered]:not([data-answer=''])")
    return page.get_attribute("body", "data-answer")


@pytest.mark.parametrize(("width", "scheme", "digits"), [(1400, "light", "0123456789"), (390, "dark", "37")])
def test_drawn_digits_are_recognised(
    trained_on_mnist: Any,
    serve: Callable[[Any], int],
    open_page: Any,
    violations: Any,
    width: int,
    scheme: str,
    digits: str,
) -> None:
    page = open_page(f"http://127.0.0.1:{serve(trained_on_mnist)}/", width, scheme)
    answers = {name: draw(page, DIGITS[name]) for name in digits}
    assert sum(name == answer for name, answer in answers.items()) >= 0.9 * len(digits), answers
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#maps img").count() >= 2
    assert violations(page) == []


def test_the_keyboard_draws_too(kept: Any, serve: Callable[[Any], int], open_page: Any) -> None:
    page = open_page(f"http://127.0.0.1:{serve(kept)}/", 1400, "light")
    page.wait_for_selector("body[data-state=answered][data-answer='']")
    for name in ("#pen", "#given"):
        assert not page.is_visible(name)  # as long as nothing is drawn
    field = page.locator("#drawing").bounding_box()
    page.focus("#drawing")
    page.keyboard.press("ArrowUp")
    before = page.locator("#pen").bounding_box()
    page.keyboard.press("ArrowUp")
    assert page.locator("#pen").bounding_box()["y"] < before["y"]
    for key in (" ", *["ArrowDown"] * 12):
        page.keyboard.press(key)
    page.wait_for_selector("body[data-state=answered]:not([data-answer=''])")
    assert page.is_visible("#given")
    assert page.locator("#drawing").bounding_box() == field  # it does not move while a digit is drawn
    page.keyboard.press("Delete")
    page.wait_for_selector("body[data-state=answered][data-answer='']")


def test_the_page_of_other_classes_asks_for_no_digit(kept: Any, serve: Callable[[Any], int], open_page: Any) -> None:
    settings = kept.config.to_dict()
    settings["data"] |= {"name": "fashion", "classes": []}
    other = replace(kept, config=read_config(settings, "settings"))
    page = open_page(f"http://127.0.0.1:{serve(other)}/", 390, "dark")
    page.wait_for_selector("body[data-state=answered][data-answer='']")
    assert page.text_content("#title") == "Draw a picture"
    assert "It knows 10 classes: T-shirt/top, Trouser" in page.text_content("#about")


# The server, without a browser


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_it_answers_only_this_machine_s_page(kept: Any, serve: Callable[[Any], int]) -> None:
    port, drawing = serve(kept), bytes(SIDE * SIDE)
    assert ask(port, "POST", "/recognise", drawing) == (200, b"{}")
    assert ask(port, "GET", "/", Host="evil.example")[0] == 403
    assert ask(port, "POST", "/recognise", drawing, Origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/recognise", drawing, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(port, "POST", "/recognise", b"short")[0] == 400
    assert ask(port, "GET", "/../../etc/passwd")[0] == 404
    assert ask(port, "GET", "/about")[0] == 200


def test_a_drawing_is_prepared_as_mnist_was(kept: Any) -> None:
    """The stroke is scaled into a box of 20 pixels, and its mass is in the middle."""
    drawing = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    drawing[10:60, 100:110] = 255
    found = recognise(kept, drawing)
    assert len(found["probabilities"]) == 10
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert found["image"].startswith("data:image/png;base64,")
    assert set(found["maps"]) == {"body.0", "body.3"}
    moved = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    moved[80:130, 20:30] = 255
    assert recognise(kept, moved) == found

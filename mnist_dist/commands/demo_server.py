"""The server of `mnist-dist demo`: the page, and what the network says about a drawing.

Python's own HTTP server is enough for one page and one kind of request on this machine. Gradio would bring 50 packages,
and its page asks other addresses for fonts and sends statistics.
"""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.data.loader import normalize
from mnist_dist.data.photo import grey_to_image
from mnist_dist.models import classifier
from mnist_dist.models.feature_maps import feature_maps, montage
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.pictures import png_data_url
from mnist_dist.utils.strict_json import dump_strict

PAGE = Path(__file__).parent / "demo.html"
SIDE = 140
"""Side of the drawing in pixels: the page sends SIDE x SIDE bytes, 0 for paper to 255 for ink."""
MAP_WIDTH = 16
"""Feature maps in one row of a picture."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class DemoServer(ThreadingHTTPServer):
    """Serves the page for a model on 127.0.0.1. Use it as a context manager.

    Args:
        port: 0 for a free one.

    Raises:
        OSError: the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, loaded: LoadedModel, port: int) -> None:
        self.loaded = loaded
        self.lock = Lock()  # one drawing at a time: each already uses all threads of torch
        super().__init__(("127.0.0.1", port), DemoHandler)


class DemoHandler(BaseHTTPRequestHandler):
    """Answers GET / with the page and POST /recognise with JSON."""

    server: DemoServer
    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def do_GET(self) -> None:
        """The page, or the names of the classes."""
        if not self.is_local():
            self.refuse(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self.answer(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/about":
            self.answer(dump_strict(about(self.server.loaded)).encode(), "application/json")
        else:
            self.refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """What the network says about a drawing of SIDE x SIDE bytes."""
        length = self.headers.get("Content-Length", "")
        if not self.is_local():
            self.refuse(HTTPStatus.FORBIDDEN)
        elif self.path != "/recognise":
            self.refuse(HTTPStatus.NOT_FOUND)
        elif length != str(SIDE * SIDE):
            self.refuse(HTTPStatus.BAD_REQUEST)
        else:
            drawing = torch.frombuffer(bytearray(self.rfile.read(SIDE * SIDE)), dtype=torch.uint8)
            with self.server.lock:
                found = recognise(self.server.loaded, drawing.view(SIDE, SIDE))
            self.answer(dump_strict(found).encode(), "application/json")

    def is_local(self) -> bool:
        """Whether the request is for this address: a page of another site may know a name that leads here."""
        port = self.server.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin", "")
        return self.headers.get("Host", "") in hosts and (not origin or origin.removeprefix("http://") in hosts)

    def answer(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: HTTPStatus) -> None:
        """Send an error, and close the connection: what follows in it was not read."""
        self.close_connection = True
        self.answer(f"{status.phrase}\n".encode(), "text/plain", status)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


def about(loaded: LoadedModel) -> dict[str, Any]:
    """What the page says about the network."""
    return {"classes": list(loaded.config.data.class_names), "model": loaded.config.model.name, "step": loaded.step}


@torch.inference_mode()
def recognise(loaded: LoadedModel, drawing: Tensor) -> dict[str, Any]:
    """What the network says about a drawing.

    Args:
        drawing: uint8 (SIDE, SIDE), 0 for paper to 255 for ink.

    Returns:
        `probabilities` of each class; `image`, what the network was given, and `maps`, its feature maps by layer, as
        data URLs. An empty drawing gives `{}`.
    """
    try:
        image = grey_to_image(drawing.float() / 255)
    except UserError:  # blank
        return {}
    pixels = normalize(image[None], loaded.config.data)
    probabilities = classifier.probabilities(loaded.model, loaded.model(pixels[None]))[0]
    maps = {name: png_data_url(draw_rows(channels).numpy()) for name, channels in feature_maps(loaded.model, pixels)}
    return {"probabilities": probabilities.tolist(), "image": png_data_url(image.numpy()), "maps": maps}


def draw_rows(maps: Tensor) -> Tensor:
    """Feature maps (C, H, W) in one grey picture, MAP_WIDTH in each row."""
    return montage(maps, width=MAP_WIDTH * (maps.shape[-1] + 1), rows=-(-len(maps) // MAP_WIDTH))

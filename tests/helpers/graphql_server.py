"""Stands in for the GraphQL half of wandb's server: answers what a test names, and keeps what was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "someone"
KEY = "local-" + "0123456789abcdef" * 3  # of a length that wandb takes for a key
TEAMS: dict[str, Any] = {"edges": [{"node": {"name": ENTITY}}]}
PERSON = dict.fromkeys(("name", "username", "entity"), ENTITY) | {"email": "", "admin": False, "flags": "{}"}
ACCOUNT = {"__typename": "User", "id": "1", "deletedAt": None, "apiKeys": {"edges": []}, "teams": TEAMS}
VIEWER = {"viewer": PERSON | ACCOUNT}
Answer = Callable[[dict[str, Any]], Any]


class GraphqlServer:
    """The server, on a port of 127.0.0.1 that the system chose. A context manager.

    Args:
        answers: for each operation's name what gives its data from its variables. Operations that ask who is there are
            answered; others are refused.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Operations and their variables, in order."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path != "/graphql":
                    self.reply({})
                    return
                told = json.loads(body)
                name = re.findall(r"\b(?:query|mutation)\s+(\w+)", told["query"])[0]
                server.asked.append((name, told.get("variables") or {}))
                answer = answers.get(name) or (lambda _: VIEWER if "viewer" in told["query"] else None)
                data = answer(told.get("variables") or {})
                self.reply({"data": data} if data is not None else {"errors": [{"message": f"no {name} here"}]})

            def reply(self, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What leads wandb here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.http.server_port}", "WANDB_API_KEY": KEY}

    def calls(self, name: str) -> list[dict[str, Any]]:
        """The variables of each call of an operation."""
        return [variables for asked, variables in self.asked if asked == name]

    def __enter__(self) -> GraphqlServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

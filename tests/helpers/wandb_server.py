"""A fake wandb server for the real wandb client: it stores what it receives, and fails on demand.

It answers the requests of wandb 0.31 with the least that wandb-core needs: https://github.com/wandb/wandb,
`core/api/graphql`.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

ENTITY = "someone"
HISTORY, EVENTS, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"


@dataclass
class Run:
    """What the server received of a run."""

    fields: dict[str, Any] = field(default_factory=dict)
    """As wandb's mutation names them: project, displayName, groupName, jobType, tags, notes."""
    config: dict[str, Any] = field(default_factory=dict)
    """By section; and `_wandb`."""
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    """The lines of each streamed file, by line number."""
    sent: list[tuple[str, int]] = field(default_factory=list)
    """File and line number of each received line, in order, repetitions included."""
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    """One for each segment that ended."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, in order."""
        lines = self.lines.get(HISTORY, {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        """The last one received."""
        lines = self.lines.get(SUMMARY, {})
        return json.loads(lines[max(lines)]) if lines else {}

    def tail(self, name: str) -> str:
        """The last line of a streamed file as a resumed run gets it: JSON in JSON."""
        lines = self.lines.get(name, {})
        return json.dumps([lines[max(lines)]] if lines else [])


@dataclass
class Artifact:
    """A version of an artifact."""

    name: str
    kind: str
    aliases: list[str]
    metadata: dict[str, Any]
    run: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class Fault:
    """What happens to requests instead of an answer."""

    does: Literal["fail", "drop", "hold"] = "fail"
    """fail: answer with `status`. drop: close the connection. hold: answer only after `release` is called."""
    at: str = ""
    """Only requests that have this in their path or body."""
    status: int = 500
    times: float = math.inf
    """How many requests."""


class WandbServer:
    """The server, on a free port of 127.0.0.1. A context manager."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.requests: list[str] = []
        """Method, path, body and headers of each; without the Authorization header."""
        self.keys: set[str] = set()
        """The keys of all requests."""
        self.unknown: set[str] = set()
        """Requests without an answer, and exceptions of the server."""
        self.fault: Fault | None = None
        self.stopped = False
        """Whether the stop button in the browser was pressed."""
        self.changed = threading.Condition()
        self._released, self._gone = threading.Event(), False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            do_GET = do_PUT = do_POST

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        class Threads(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may disconnect
                    server.unknown.add(traceback.format_exc())

        self.http = Threads(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def go_away(self) -> None:
        """Refuse new connections and drop the present ones."""
        self._gone = True
        self._released.set()
        if self._thread.is_alive():
            self.http.shutdown()
            self._thread.join()
        self.http.server_close()

    def release(self) -> None:
        """Answer the held requests."""
        self._released.set()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until a request makes this true."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), f"not within {seconds} s; {self.requests[-3:]}"

    # On the threads that answer requests

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Store a request and answer it, or apply the fault."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        text = f"{request.command} {unquote(request.path)} {body.decode(errors='replace')}"
        with self.changed:
            self.note_key(request.headers["Authorization"])
            del request.headers["Authorization"]
            self.requests.append(f"{text} {request.headers}")
            fault = self.fault if self.fault and self.fault.times > 0 and self.fault.at in text else None
            if fault:
                fault.times -= 1
            self.changed.notify_all()
        if fault and fault.does == "hold":
            self._released.wait()
        if self._gone or (fault and fault.does == "drop"):
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and fault.does == "fail":
            status, answer = fault.status, {"errors": [{"message": "as the test wants"}]}
        else:
            with self.changed:
                status, answer = self.answer(request.path, body)
                self.changed.notify_all()
        data = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def note_key(self, authorization: str | None) -> None:
        """Store the password of a request's basic authentication."""
        if authorization:
            self.keys.add(base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")[2])

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for a request."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts == ["graphql"]:
            query = json.loads(body)
            kind, name = re.findall(r"\b(query|mutation)\s+(\w+)", query["query"])[0]
            method = getattr(self, f"{kind}_{name}", None)
            if method is not None:
                return 200, {"data": method(query.get("variables") or {})}
        elif parts[0] == "files" and parts[-1] == "file_stream":
            self.stream(self.runs[parts[3]], json.loads(body))
            return 200, {"stopped": self.stopped}
        elif parts[0] == "run-files":
            self.runs[parts[1]].files["/".join(parts[2:])] = body
            return 200, {}
        elif parts[0] == "artifact-files":
            self.artifacts[int(parts[1])].files["/".join(parts[2:])] = body
            return 200, {}
        elif parts == ["healthz"] or parts[:2] == ["sdk", "otel"]:  # the telemetry of wandb's commands
            return 200, {}
        self.unknown.add(f"{path} {body[:300].decode(errors='replace')}")
        return 200, {"errors": [{"message": "unknown to the fake server"}]}

    def stream(self, run: Run, update: dict[str, Any]) -> None:
        """Store lines of history, events, summary and output; and the end of a segment."""
        for name, part in update.get("files", {}).items():
            for number, line in enumerate(part["content"], part["offset"]):
                run.lines.setdefault(name, {})[number] = line
                run.sent.append((name, number))
        if update.get("complete"):
            run.exit_codes.append(update["exitcode"])

    # GraphQL: one method for each operation

    def query_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}}

    def query_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def query_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "project", "name": variables["project"], "entity": {"id": "entity", "name": ENTITY}}
        return {"model": project | {"bucket": self.resumable(variables["name"])}}

    def resumable(self, name: str) -> dict[str, Any] | None:
        """What a resumed run gets of its earlier segments; None if it is new."""
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            "id": name,
            "name": name,
            "displayName": run.fields.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines.get(HISTORY, {})),
            "eventsLineCount": len(run.lines.get(EVENTS, {})),
            "logLineCount": len(run.lines.get(OUTPUT, {})),
            "historyTail": run.tail(HISTORY),
            "eventsTail": run.tail(EVENTS),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "tags": run.fields.get("tags") or [],
            "notes": run.fields.get("notes"),
            "wandbConfig": json.dumps({"t": run.config["_wandb"]["t"]}),
        }

    def mutation_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], Run())
        run.fields |= {key: value for key, value in variables.items() if value is not None and key != "config"}
        config = json.loads(variables.get("config") or "{}")
        run.config |= {key: entry["value"] for key, entry in config.items()}
        project = {"id": "project", "name": run.fields["project"], "entity": {"id": "entity", "name": ENTITY}}
        bucket = {"id": variables["name"], "name": variables["name"], "displayName": run.fields.get("displayName")}
        lines = {"historyLineCount": len(run.lines.get(HISTORY, {})), "config": variables.get("config") or "{}"}
        return {"upsertBucket": {"bucket": bucket | lines | {"project": project}, "inserted": inserted}}

    def query_ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        kinds = [each.kind for each in self.artifacts if each.name == variables["name"].partition(":")[0]]
        return {"project": {"artifact": {"artifactType": {"name": kinds[0]}} if kinds else None}}

    def mutation_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/run-files/{variables['run']}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def mutation_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        variables = variables["input"]
        aliases = [alias["alias"] for alias in variables.get("aliases") or []]
        metadata = json.loads(variables.get("metadata") or "{}")
        name, kind = variables["artifactCollectionName"], variables["artifactTypeName"]
        earlier = [number for number, each in enumerate(self.artifacts) if each.name == name]
        latest = {"id": str(earlier[-1])} if earlier else None
        for each in self.artifacts:
            if each.name == name:
                each.aliases = [alias for alias in each.aliases if alias not in aliases]
        self.artifacts.append(Artifact(name, kind, aliases, metadata, variables.get("runName") or ""))
        number = str(len(self.artifacts) - 1)
        sequence = {"latestArtifact": latest}
        return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": sequence}}}

    def mutation_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["artifactID"]
        url = f"{self.url}/artifact-files/{number}/{variables['name']}"
        file = (
            {"id": f"file-{number}", "uploadUrl": url, "uploadHeaders": []}
            if variables["includeUpload"]
            else {"id": "0"}
        )
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": file}}}

    def mutation_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in variables.get("input", variables)["artifactFiles"]:
            number = spec["artifactID"]
            url = f"{self.url}/artifact-files/{number}/{spec['name']}"
            node = {"storagePath": spec["name"], "uploadUrl": url, "uploadHeaders": [], "artifact": {"id": number}}
            edges.append({"node": node | {"name": spec["name"], "uploadMultipartUrls": None}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def mutation_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[int(variables["artifactID"])].committed = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "0"}}}

"""Reads the .wandb file of an offline run, of which wandb has no public reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, which is a LevelDB log of protocol buffers after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, offset, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while offset < len(data):
        if (left := 32768 - offset % 32768) < 7:
            offset += left
            continue
        size, kind = struct.unpack_from("<HB", data, offset + 4)  # after a checksum of 4 bytes
        parts += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # a record's only or last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def items(entries: Any) -> dict[str, Any]:
    """Keys and values of a history, config or summary record."""
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


@dataclass(frozen=True)
class Artifact:
    """An artifact in an offline run."""

    name: str
    kind: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, Path]
    """The staged copy of each file, by its path in the artifact."""


@dataclass
class Recorded:
    """The contents of one segment of an offline run."""

    folder: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    system: list[dict[str, float]] = field(default_factory=list)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)
    """Title, text and level of each."""
    run: Any = None
    environment: Any = None
    exit_code: int | None = None

    def logged(self, key: str) -> list[tuple[int, Any]]:
        """Each value of a key with its global step."""
        return [(entry["global_step"], entry[key]) for entry in self.history if key in entry]

    def table(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a table, from the file that the history names."""
        assert value["_type"] == "table-file"
        found = rows_of(self.folder / "files" / value["path"])
        assert (len(found[0]), len(found)) == (value["ncols"], value["nrows"])
        return found

    def tables_with_images(self, key: str) -> list[tuple[list[dict[str, Any]], dict[str, Path]]]:
        """The rows of each table of this key, in order, and its images by their paths in the rows."""
        tables = [each for each in self.artifacts if f"{key}.table.json" in each.files]
        return [(rows_of(each.files[f"{key}.table.json"]), each.files) for each in tables]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table file."""
    table = json.loads(path.read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def read_run(folder: Path) -> Recorded:
    """Read a segment of an offline run from its folder `offline-run-...`."""
    (file,) = folder.glob("*.wandb")
    found = Recorded(folder)
    for record in read_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found.history.append({})
            merge(found.history[-1], record.history.item)
        elif kind == "summary":
            merge(found.summary, record.summary.update)
        elif kind in ("run", "config"):
            found.run = record.run if kind == "run" else found.run
            merge(found.config, (record.run.config if kind == "run" else record.config).update)
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "output_logger":
            found.output.append(record.output_logger.line)
        elif kind == "stats":
            found.system.append({item.key: json.loads(item.value_json) for item in record.stats.item})
        elif kind == "alert":
            found.alerts.append((record.alert.title, record.alert.text, record.alert.level))
        elif kind == "environment":
            found.environment = record.environment
        elif kind == "artifact":
            found.artifacts.append(read_artifact(record.artifact))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def merge(into: dict[str, Any], entries: Any) -> None:
    """Set the values of a record's entries, each at its path of keys."""
    for entry in entries:
        *folders, name = list(entry.nested_key) or [entry.key]
        target = into
        for folder in folders:
            target = target.setdefault(folder, {})
        target[name] = json.loads(entry.value_json)


def read_artifact(record: Any) -> Artifact:
    """An artifact from its record."""
    files = {entry.path: Path(entry.local_path) for entry in record.manifest.contents}
    return Artifact(record.name, record.type, list(record.aliases), json.loads(record.metadata or "{}"), files)

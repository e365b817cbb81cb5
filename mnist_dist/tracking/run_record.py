"""What the files of a run's folder say: settings, rows of metrics, results and checkpoints. Read without torch.

The folder may be that of a run in progress, or of one that was stopped or killed: what is missing is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnist_dist.config.data_sets import CLASS_NAMES
from mnist_dist.config.schema import Config, flat, flatten
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import read_json_or_empty

Row = Mapping[str, Any]
NO_DIFFERENCE = ("run.dir", "run.resume", "run.quiet")
"""Settings that make no other run."""
MISSING = "-"
"""How tables show a value that a run does not have."""
MAX_SHOWN = 40
"""Characters of a value in a table for people: of more, the rest is left out."""
RUN_FILES = ("metrics.jsonl", "summary.json", "checkpoints")
"""What a folder holds that is a run: one of them at least."""
STEP_FOLDER = re.compile(r"step-([0-9]{8})")


@dataclass(frozen=True)
class RunRecord:
    """A run, as its files describe it."""

    folder: Path
    config: Row
    """Settings with dotted keys such as `optim.lr`, as in config.yaml, in the form of this version: those that are
    newer than the run have their default, and classes that are named as those of their data set are not named."""
    rows: Sequence[Row]
    """Rows of metrics.jsonl."""
    summary: Row
    """summary.json; empty until the run has finished."""
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints, ascending."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; empty if it is not known."""
        classes = self.config.get("data.classes") or CLASS_NAMES.get(self.config.get("data.name", ""), ())
        return tuple(map(str, classes))

    @property
    def step(self) -> int:
        """The last step that the files know of; 0 without any."""
        logged = (row["step"] for row in self.rows)
        return max([*logged, *self.checkpoints, self.summary.get("train.steps", 0)], default=0)

    def last(self, key: str) -> Any:
        """The newest value of a metric: of the summary, else of the last row that has it; None without one."""
        if self.summary.get(key) is not None:
            return self.summary[key]
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, without those that were not finite."""
        points = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def training_seconds(self) -> dict[int, float]:
        """Seconds of training at each step that has a row, from the measured time per step; evaluations excluded."""
        seconds, step, times = 0.0, 0, {0: 0.0}
        for row in self.rows:
            if row.get("step_seconds") is not None and row["step"] > step:
                seconds += (row["step"] - step) * row["step_seconds"]
                step = row["step"]
                times[step] = seconds
        return times


def read_record(folder: Path) -> RunRecord:
    """The record of the run in a folder.

    Raises:
        UserError: there is no run.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder of a run, which it prints at its end")
    record = RunRecord(
        folder,
        read_settings(folder / "config.yaml"),
        read_rows(folder),
        read_json_or_empty(folder / "summary.json"),
        checkpoint_steps(folder / "checkpoints"),
    )
    if not (record.config or record.rows or record.summary or record.checkpoints):
        raise UserError(f"{folder}: holds no run; give the folder of a run, which it prints at its end")
    return record


def is_run(folder: Path) -> bool:
    """Whether a folder holds the files of a run."""
    return any((folder / name).exists() for name in RUN_FILES)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a config.yaml as `RunRecord.config` has them; empty if it cannot be read."""
    try:
        sections = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        return {}
    settings = flat(Config()) | flatten(sections)
    names = CLASS_NAMES.get(str(settings["data.name"]))
    if names and settings["data.classes"] == list(names):  # as version 0.1.0 wrote them
        settings["data.classes"] = []
    return settings


def checkpoint_steps(checkpoints: Path) -> tuple[int, ...]:
    """The steps of the checkpoints in a folder, ascending; they are not verified. Empty if it cannot be read."""
    with suppress(OSError):
        return tuple(
            sorted(int(found[1]) for path in checkpoints.iterdir() if (found := STEP_FOLDER.fullmatch(path.name)))
        )
    return ()


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl, without a line that is being written; empty if it cannot be read."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    return [row for row in parse_lines(lines) if isinstance(row.get("step"), int)]


def parse_lines(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of lines; other lines are left out."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def shown(value: Any) -> str:
    """A setting or a result as a table shows it."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def differing_settings(records: Sequence[RunRecord], ignore: Sequence[str] = NO_DIFFERENCE) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with the value of each run; MISSING where a run has none."""
    keys = dict.fromkeys(key for record in records for key in record.config)
    values = {key: [record.config.get(key, MISSING) for record in records] for key in keys if key not in ignore}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}

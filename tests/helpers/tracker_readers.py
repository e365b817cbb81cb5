"""Reads what the tools of tracking.also recorded, with each tool's own reader."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Point = tuple[str, int]
"""A key and a step."""


@dataclass(frozen=True)
class TrackerRun:
    """What a tool has of a run. Images are the keys and steps of images, and of the tables of examples."""

    points: list[tuple[Point, float]]
    """Every number, in the tool's order; a point that was recorded twice is there twice."""
    config: dict[str, Any]
    texts: dict[str, str]
    images: set[Point]


def read_tensorboard(folder: Path) -> TrackerRun:
    """By TensorBoard's EventAccumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    points = [((key, each.step), each.value) for key in tags["scalars"] for each in events.Scalars(key)]
    images = {(key, each.step) for key in tags["images"] for each in events.Images(key)}
    texts = {
        key.removesuffix("/text_summary"): events.Tensors(key)[-1].tensor_proto.string_val[0].decode()
        for key in tags["tensors"]
    }
    import yaml

    (settings,) = (folder / "tensorboard").glob("*/hparams.yml")
    return TrackerRun(points, yaml.safe_load(settings.read_text()), texts, images)


def read_mlflow(folder: Path) -> TrackerRun:
    """By MLflow's client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(folder / 'mlflow' / 'mlflow.db').absolute()}")
    experiments = [each for each in client.search_experiments() if each.name != "Default"]
    (run,) = client.search_runs([each.experiment_id for each in experiments])
    points = [
        ((key, metric.step), metric.value)
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    files = (folder / "mlflow" / "artifacts" / run.info.run_id / "artifacts").rglob("*.png")
    images = {
        (path.parent.as_posix().partition("/artifacts/")[2].partition("/artifacts/")[2], int(path.stem[5:]))
        for path in files
    }
    return TrackerRun(points, dict(run.data.params), dict(run.data.tags) | {"status": run.info.status}, images)


def read_trackio(folder: Path) -> TrackerRun:
    """From trackio's SQLite file: its own reader takes the folder of its environment."""
    rows: list[tuple[int, dict[str, Any]]] = []
    with contextlib.closing(sqlite3.connect(folder / "trackio" / "mnist_dist.db")) as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            rows.append((step, json.loads(metrics)))
        ((config,),) = database.execute("SELECT config FROM configs")
    points = [
        ((key, step), value) for step, row in rows for key, value in row.items() if isinstance(value, (int, float))
    ]
    texts = {key: value for _, row in rows for key, value in row.items() if isinstance(value, str)}
    images = {(key, step) for step, row in rows for key, value in row.items() if isinstance(value, dict)}
    return TrackerRun(points, json.loads(config), texts, images)


READERS: dict[str, Callable[[Path], TrackerRun]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}

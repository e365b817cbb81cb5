"""What wandb shows beside lines, read back from an offline run: bars, matrices, tables, images, histograms."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from wandb_records import Recorded, read_run

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig, TrackingConfig
from mnist_dist.tracking.media import Example, Histogram, Media
from mnist_dist.tracking.tracker import open_tracker
from mnist_dist.tracking.wandb_media import media_values, row_values
from mnist_dist.training.metrics import Metrics

pytest.importorskip("wandb")

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FACTS = {"world_size": 2, "versions.torch": "2"}
CONFIG = Config(data=DataConfig(classes=CLASSES), tracking=TrackingConfig(mode="offline", timeout=100))


def record(folder: Path, *calls: tuple[str, Any], summary: dict[str, Any] | None = None) -> Recorded:
    """A run whose tracker got these calls."""
    tracker = open_tracker(CONFIG, folder, "run1234", False, pytest.fail, True, FACTS)
    for name, arguments in calls:
        getattr(tracker, name)(*arguments)
    tracker.finish(summary or {}, 0)
    assert not tracker.timed_out
    (segment,) = (folder / "wandb").glob("offline-run-*")
    return read_run(segment)


def row(step: int, **metrics: Any) -> tuple[str, Any]:
    named = {key.replace("__", "."): value for key, value in metrics.items()}
    return "log", ({"step": step, "epoch": 1, "time": 1000.0 + step, **named},)


def picture(seed: int, height: int = 28, width: int = 28) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def example(index: int, label: int, predicted: int, loss: float = 2.5) -> Example:
    probabilities = tuple(0.55 if each == predicted else 0.05 for each in range(10))
    return Example(index, picture(index), label, predicted, probabilities, loss)


def media(seed: int) -> Media:
    return Media(
        "val",
        mistakes=(example(17 + seed, 4, 9), example(3, 7, 1, math.inf)),
        samples=tuple(example(index, 5, (5 + seed) % 10) for index in range(3)),
        maps={"conv1": picture(100 + seed, 56, 112)},
        filters={"body.conv1": picture(200 + seed, 5, 40)},
        parameters={"conv1.weight": Histogram((seed, 5, 2), (-1.0, 0.0, 0.5, 2.0))},
        gradients={"conv1.weight": Histogram((1, seed), (-1e-3, 0.0, 1e-3))},
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Rows and media of two steps, and a summary."""
    confusion = [[10 * (i == j) + (i == 4 and j == 9) for j in range(10)] for i in range(10)]
    train = {"epoch__train__recall": [1.0] * 10, "epoch__train__confusion": confusion, "epoch__train__loss": 0.5}
    details = {"val__recall": [0.5, math.nan] + [1.0] * 8, "val__precision": [0.25] * 10, "val__confusion": confusion}
    test = {"test.recall": [0.75] * 10, "test.precision": [1.0] * 10, "test.confusion": confusion}
    return record(
        tmp_path_factory.mktemp("shown"),
        row(50, val__accuracy=0.9, **details),
        ("log_media", (50, 1, media(0))),
        row(100, val__accuracy=0.8, **details),
        row(100, **train),
        ("log_media", (100, 2, media(1))),
        summary={"train.steps": 100, "test.accuracy": 0.75, **test},
    )


def test_rows_and_media_of_a_step_are_entries_of_their_own(shown: Recorded) -> None:
    assert [entry["global_step"] for entry in shown.history] == [50, 50, 100, 100, 100, 100]
    assert [entry["_step"] for entry in shown.history] == [0, 1, 2, 3, 4, 5]
    assert shown.logged("val/accuracy") == [(50, 0.9), (100, 0.8)]
    assert [step for step, _ in shown.logged("mistakes")] == [50, 100]
    assert shown.metrics["*"].step_metric == "global_step"
    assert shown.metrics["global_step"].options.hidden
    assert not shown.metrics["global_step"].step_metric
    assert shown.metrics["epoch"].options.hidden


def test_epochs_between_have_numbers_only(tmp_path: Path) -> None:
    recorded = record(tmp_path, row(50, epoch=2, val__accuracy=0.9, val__recall=[1.0] * 10))
    assert recorded.logged("val/accuracy") == [(50, 0.9)]
    assert not recorded.logged("val/recall_table")


@pytest.mark.parametrize(("split", "steps"), [("val", [50, 100]), ("test", [100])])
def test_bars_of_each_class(shown: Recorded, split: str, steps: list[int]) -> None:
    recalls = shown.logged(f"{split}/recall_table")
    assert [step for step, _ in recalls] == steps
    expected = [0.5, None] + [1.0] * 8 if split == "val" else [0.75] * 10
    for _, value in recalls:
        bars = {bar["class"]: bar["recall"] for bar in shown.table(value)}
        assert bars == dict(zip(CLASSES, expected, strict=True))
    (_, value), *_ = shown.logged(f"{split}/precision_table")
    assert [bar["precision"] for bar in shown.table(value)] == ([0.25] if split == "val" else [1.0]) * 10
    chart = shown.config["_wandb"]["visualize"][f"{split}/recall"]
    assert chart["panel_config"]["panelDefId"] == "wandb/bar/v0"
    assert chart["panel_config"]["fieldSettings"] == {"label": "class", "value": "recall"}


def test_an_epochs_training_has_numbers_alone(shown: Recorded) -> None:
    assert shown.logged("epoch/train/loss") == [(100, 0.5)]
    assert not [key for entry in shown.history for key in entry if key.startswith("epoch/train") and "table" in key]


def test_confusion_matrix(shown: Recorded) -> None:
    for _, value in shown.logged("val/confusion_table"):
        cells = shown.table(value)
        assert len(cells) == 100
        counts = {(cell["Actual"], cell["Predicted"]): cell["nPredictions"] for cell in cells if cell["nPredictions"]}
        assert counts == {(name, name): 10 for name in CLASSES} | {("four", "nine"): 1}
    chart = shown.config["_wandb"]["visualize"]["val/confusion"]
    assert chart["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"


@pytest.mark.parametrize(("num_classes", "columns", "charts"), [(47, 8 + 47, 3), (1000, 8, 2)])
def test_many_classes_have_no_matrix_and_no_columns(num_classes: int, columns: int, charts: int) -> None:
    """wandb draws tables of at most 10,000 rows."""
    plot = SimpleNamespace(bar=lambda table, *args, title: table)
    wandb: Any = SimpleNamespace(
        Table=lambda columns, data, **options: data, Image=Mock(), plot=plot, plot_table=lambda **options: options
    )
    names = [f"class {index}" for index in range(num_classes)]
    metrics = Metrics.from_counts([0, 0, 0, *([1] * num_classes**2)])
    values = row_values(wandb, metrics.row("val") | metrics.details("val"), names)
    assert len([value for value in values.values() if isinstance(value, list | dict)]) == charts
    assert len(values["val/recall"]) == num_classes
    example = Example(3, np.zeros((28, 28), np.uint8), 1, 2, (1 / num_classes,) * num_classes, 0.5)
    (row_of_example,) = media_values(wandb, 1, 1, Media("val", mistakes=(example,)), names)["mistakes"]
    assert len(row_of_example) == columns
    assert row_of_example[5:8] == ["class 1", "class 2", 0.5]


def test_mistakes_and_samples_have_a_table_at_each_step(shown: Recorded) -> None:
    assert [value["_type"] for _, value in shown.logged("mistakes")] == ["table-file"] * 2
    for seed, (table, images) in enumerate(shown.tables_with_images("mistakes")):
        worst, infinite = table
        step = 50 * (seed + 1)
        assert np.array_equal(np.asarray(Image.open(images[worst["image"]["path"]])), picture(17 + seed))
        facts = {"global_step": step, "epoch": seed + 1, "split": "val", "index": 17 + seed}
        facts |= {"label": "four", "predicted": "nine", "loss": 2.5}
        assert facts.items() <= worst.items()
        assert [worst[f"p({name})"] for name in CLASSES] == [0.05] * 9 + [0.55]
        assert infinite["loss"] is None
    tables = [table for table, _ in shown.tables_with_images("samples")]
    assert [[sample["index"] for sample in table] for table in tables] == [[0, 1, 2]] * 2
    assert [{sample["predicted"] for sample in table} for table in tables] == [{"five"}, {"six"}]


@pytest.mark.parametrize(("key", "seed"), [("maps/conv1", 100), ("filters/body/conv1", 200)])
def test_maps_and_filters_are_images(shown: Recorded, key: str, seed: int) -> None:
    values = shown.logged(key)
    assert [step for step, _ in values] == [50, 100]
    for number, (_, value) in enumerate(values):
        assert value["_type"] == "image-file"
        path = shown.folder / "files" / value["path"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == value["sha256"]
        size = (56, 112) if key.startswith("maps") else (5, 40)
        assert np.array_equal(np.asarray(Image.open(path)), picture(seed + number, *size))


def test_histograms_keep_their_own_bins(shown: Recorded) -> None:
    assert [value for _, value in shown.logged("parameters/conv1/weight")] == [
        {"_type": "histogram", "values": [seed, 5, 2], "bins": [-1.0, 0.0, 0.5, 2.0]} for seed in (0, 1)
    ]
    (_, first), _ = shown.logged("gradients/conv1/weight")
    assert first == {"_type": "histogram", "values": [1, 0], "bins": [-0.001, 0.0, 0.001]}


def test_facts_are_part_of_the_configuration(shown: Recorded) -> None:
    assert shown.config["facts"] == {"world_size": 2, "versions/torch": "2"}
    assert {key: shown.config[key] for key in CONFIG.to_dict()} == CONFIG.to_dict()


def test_what_is_empty_is_not_logged(tmp_path: Path) -> None:
    recorded = record(tmp_path, ("log_media", (5, 1, Media("val"))))
    (entry,) = recorded.history
    assert {key for key in entry if not key.startswith("_")} == {"global_step", "epoch"}


def test_nothing_is_left_in_the_home(nobody: Path, tmp_path: Path) -> None:
    recorded = record(tmp_path, ("log_media", (5, 1, media(0))))
    assert {path.parent.relative_to(nobody) for path in nobody.rglob("*") if path.is_file()} <= {
        Path(".cache/wandb/logs")
    }
    for artifact in recorded.artifacts:
        assert all(path.is_relative_to(tmp_path) and path.is_file() for path in artifact.files.values())

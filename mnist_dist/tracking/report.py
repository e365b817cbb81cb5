"""The report of one or several runs: one HTML file that needs no network, no script and no other file.

Imports neither torch nor matplotlib; `render` needs matplotlib (`pip install 'mnist_dist[report]'`). jinja2 fills the
page in `report.html`, and escapes all that comes from a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnist_dist.tracking.backend import is_installed
from mnist_dist.tracking.media import Example
from mnist_dist.tracking.run_record import MISSING, RunRecord, differing_settings
from mnist_dist.utils.confusion import most_frequent_mistakes
from mnist_dist.utils.files import atomic_write
from mnist_dist.utils.pictures import png_data_url

if TYPE_CHECKING:
    import numpy as np

INSTALL = "reports need the package matplotlib: pip install 'mnist_dist[report]'"
SHOWN_PROBABILITIES = 3
MIX_UPS = 10
"""Most frequent mistakes that are listed."""


@dataclass(frozen=True)
class ModelView:
    """What a report shows of a trained model; everything is empty if only the run's files were read."""

    mistakes: Sequence[Example] = ()
    """Misclassified test images, by falling loss."""
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For each convolution, its feature maps of one image: uint8 (H, W)."""
    filters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For each convolution, its filters in one image: uint8 (H, W)."""
    layers: Sequence[tuple[str, str, str, str]] = ()
    """Name, kind, output shape and number of parameters of each layer."""


def can_render() -> bool:
    """Whether matplotlib and jinja2 are installed."""
    return is_installed("matplotlib") and is_installed("jinja2")


def write_report(path: Path, records: Sequence[RunRecord], views: Sequence[ModelView]) -> None:
    """Write the report to a file, whole or not at all.

    Args:
        records: the runs, at least one.
        views: one for each run.

    Raises:
        OSError: it cannot be written.
    """
    page = render(records, views)
    with atomic_write(path) as aside:
        aside.write_text(page, encoding="utf-8")


def render(records: Sequence[RunRecord], views: Sequence[ModelView]) -> str:
    """The page as HTML; arguments as in `write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from mnist_dist.tracking.report_figures import draw_curves, legend

    environment = Environment(
        loader=PackageLoader("mnist_dist.tracking", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.2f} %"
    environment.filters["plain"] = lambda value: f"{value:.6g}" if isinstance(value, float) else value
    differing = differing_settings(records) if len(records) > 1 else {}
    return environment.get_template("report.html").render(
        records=records,
        results=results(records),
        charts={"step": draw_curves(records, by_time=False), "time": draw_curves(records, by_time=True)},
        legend=legend(records),
        differing=differing,
        runs=[describe_run(number, *pair) for number, pair in enumerate(zip(records, views, strict=True))],
    )


def results(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """The table of results: for each line a value per run; without lines that no run has."""
    lines: dict[str, tuple[str, Any]] = {
        "test accuracy": ("test.accuracy", "{:.2%}"),
        "test loss": ("test.loss", "{:.4f}"),
        "validation accuracy": ("val.accuracy", "{:.2%}"),
        "steps": ("train.steps", "{}"),
        "training time": ("train.seconds", "{:.1f} s"),
        "images per second": ("train.images_per_second", "{:,.0f}"),
        "parameters": ("model.parameters", "{:,}"),
        "processes": ("world_size", "{}"),
        "device": ("device", "{}"),
        "precision": ("precision", "{}"),
        "weights (SHA-256)": ("weights_sha256", "{:.12}"),
    }
    table = {
        name: [MISSING if (value := record.last(key)) is None else text.format(value) for record in records]
        for name, (key, text) in lines.items()
    }
    table["state"] = ["finished" if record.summary else f"not finished: step {record.step}" for record in records]
    return {name: values for name, values in table.items() if set(values) != {MISSING}}


def describe_run(number: int, record: RunRecord, view: ModelView) -> dict[str, Any]:
    """What the template needs of one run."""
    from mnist_dist.tracking.report_figures import draw_confusion, draw_rank_times

    name = f"run-{number + 1}"
    split = next((split for split in ("test", "val") if confusion_of(record, split)), "")
    confusion = confusion_of(record, split)
    names = record.class_names
    classes = names if len(names) == len(confusion) else tuple(map(str, range(len(confusion))))
    return {
        "id": name,
        "record": record,
        "split": {"test": "test", "val": "validation"}.get(split, ""),
        "confusion": draw_confusion(confusion, classes, name) if confusion else "",
        "classes": class_table(confusion, classes),
        "mix_ups": [(n, classes[a], classes[b]) for n, a, b in most_frequent_mistakes(confusion, MIX_UPS)],
        "mistakes": [describe_mistake(example, classes) for example in view.mistakes],
        "maps": {name: png_data_url(image) for name, image in view.maps.items()},
        "filters": {name: png_data_url(image) for name, image in view.filters.items()},
        "layers": view.layers,
        "rank_times": draw_rank_times(record, name),
        "facts": {key: value for key, value in record.summary.items() if is_fact(key) and value is not None},
        "versions": {key[9:]: value for key, value in record.summary.items() if key.startswith("versions.")},
        "yaml": to_yaml(record.config),
    }


def confusion_of(record: RunRecord, split: str) -> list[list[int]]:
    """The newest confusion matrix of a split; of more than 100 classes from its cells. Empty without one."""
    if matrix := record.last(f"{split}.confusion"):
        return matrix
    cells, recall = record.last(f"{split}.confusion_cells") or [], record.last(f"{split}.recall") or []
    matrix = [[0] * len(recall) for _ in recall] if cells else []  # the recall has a value for each class
    try:
        for label, predicted, images in cells:
            matrix[label][predicted] = images
    except (IndexError, TypeError, ValueError):  # the file is damaged
        return []
    return matrix


def class_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, int, str, str]]:
    """For each class: name, images, precision and recall, the last two as text."""
    rows = []
    for label, counts in enumerate(confusion):
        predicted, images = sum(row[label] for row in confusion), sum(counts)
        ratios = [f"{counts[label] / whole:.2%}" if whole else MISSING for whole in (predicted, images)]
        rows.append((classes[label], images, ratios[0], ratios[1]))
    return rows


def describe_mistake(example: Example, classes: Sequence[str]) -> dict[str, Any]:
    """A misclassified image for the gallery."""
    likeliest = sorted(range(len(example.probabilities)), key=lambda label: -example.probabilities[label])
    return {
        "index": example.index,
        "image": png_data_url(example.image),
        "label": classes[example.label],
        "predicted": classes[example.predicted],
        "probabilities": [(classes[label], example.probabilities[label]) for label in likeliest[:SHOWN_PROBABILITIES]],
    }


def is_fact(key: str) -> bool:
    """Whether a value of the summary is shown among the facts of its run: not as a result, a table or a version."""
    parts = key.split(".")
    return parts[0] not in ("test", "val", "versions") and parts[-1] not in (
        "precision",
        "recall",
        "confusion",
        "confusion_cells",
    )


def to_yaml(config: Mapping[str, Any]) -> str:
    """Settings with dotted keys as a YAML file of sections."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)

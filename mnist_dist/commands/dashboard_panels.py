"""The sections and panels of a wandb dashboard, over the keys that a run logs. Imports neither torch nor wandb.

`dashboard.py` builds a workspace and a report of them. Tests compare them with the logs of real runs: each panel has
its metric, and each metric its panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mnist_dist.config.data_sets import MAX_MATRIX_CLASSES
from mnist_dist.config.schema import Config
from mnist_dist.tracking.media import wandb_key

Kind = Literal["lines", "bars", "chart", "table", "images", "histograms", "machine"]

STEP = "global_step"


@dataclass(frozen=True)
class Panel:
    """One panel, as wide as a third of the screen."""

    title: str
    kind: Kind
    """lines: numbers over the steps. bars: numbers of each run. chart: a table with a bar or a cell for each class.
    table: one with images. images: at each step. histograms: over the steps, as a heat map. machine: lines over
    time, of what wandb itself measures."""
    keys: tuple[str, ...]
    """wandb's keys, such as `train/loss`; of `machine` one regular expression."""


@dataclass(frozen=True)
class Section:
    """A heading, an explanation, and panels."""

    title: str
    text: str
    panels: tuple[Panel, ...]


def watched_split(config: Config) -> str:
    """The split that is evaluated during training."""
    return "val" if config.data.val_size else "test"


def describe(config: Config, layers: Sequence[str], parameters: Sequence[str]) -> list[Section]:
    """The sections for runs of a configuration.

    Args:
        layers: names of the model's convolutions, in order; empty: no feature maps and filters.
        parameters: names of the model's parameters, in order; empty: no histograms.
    """
    sections = [training(), evaluation(config), examples(config, layers), histograms(config, parameters)]
    sections += [speed(config), processes()]
    return [section for section in sections if section.panels]


def plotted(config: Config) -> list[str]:
    """The numeric keys that a run of this configuration logs over time, on any number of processes."""
    sections = [training(), evaluation(config), speed(config)]
    return [key for section in sections for panel in section.panels if panel.kind == "lines" for key in panel.keys]


def training() -> Section:
    """Training metrics by step and by epoch."""
    return Section(
        "Training",
        "Means over all images since the row before, on all processes; `epoch/` over a whole epoch.",
        (
            Panel("Loss", "lines", ("train/loss", "epoch/train/loss")),
            Panel("Accuracy", "lines", ("train/accuracy", "epoch/train/accuracy", "epoch/train/top2")),
            Panel("Learning rate", "lines", ("lr",)),
            Panel("Norm of the gradient", "lines", ("gradient/norm", "gradient/norm_max")),
            Panel("Images of an epoch, and right ones", "lines", ("epoch/train/count", "epoch/train/correct")),
        ),
    )


def evaluation(config: Config) -> Section:
    """Evaluations during training, and the test set at the end."""
    split = watched_split(config)
    held_out_metrics = (
        Panel(f"Loss, {split}", "lines", (f"{split}/loss",)),
        Panel(f"Accuracy, {split}", "lines", (f"{split}/accuracy", f"{split}/top2")),
        Panel(f"Images of {split}, and right ones", "lines", (f"{split}/count", f"{split}/correct")),
        Panel(f"Highest accuracy, {split}", "bars", ("train/highest_accuracy",)),
        *classes(config, split, f"images of {split}"),
    )
    test: tuple[Panel, ...] = (
        Panel("Test accuracy", "bars", ("test/accuracy", "test/top2")),
        Panel("Test loss", "bars", ("test/loss",)),
        Panel("Test images, and right ones", "bars", ("test/count", "test/correct")),
    )
    if split != "test":
        test += classes(config, "test", "test images")
    return Section(
        "Evaluation",
        "Each evaluation counts every image of its split exactly once. Bars are of finished runs.",
        held_out_metrics + test,
    )


def classes(config: Config, prefix: str, of: str) -> tuple[Panel, ...]:
    """Metrics of each class. Of many classes there is no confusion matrix."""
    matrix = (Panel(f"Confusion, {of}", "chart", (f"{prefix}/confusion_table",)),)
    return (
        *(matrix if len(config.data.class_names) <= MAX_MATRIX_CLASSES else ()),
        Panel(f"Recall of each class, {of}", "chart", (f"{prefix}/recall_table",)),
        Panel(f"Precision of each class, {of}", "chart", (f"{prefix}/precision_table",)),
    )


def examples(config: Config, layers: Sequence[str]) -> Section:
    """Images with predictions, feature maps and filters."""
    shown = (
        Panel("Worst mistakes", "table", ("mistakes",)),
        Panel("The same images each time", "table", ("samples",)),
        Panel("Maps of the first sample", "images", tuple(f"maps/{wandb_key(name)}" for name in layers)),
        Panel("Filters", "images", tuple(f"filters/{wandb_key(name)}" for name in layers)),
    )
    return Section(
        "Examples",
        "At the end of epochs that `tracking.media_epochs` says; `tracking.examples` says how many.",
        tuple(panel for panel in shown if panel.keys) if config.tracking.examples else (),
    )


def histograms(config: Config, parameters: Sequence[str]) -> Section:
    """Histograms of parameters and gradients."""
    return Section(
        "Histograms",
        "At the end of epochs that `tracking.media_epochs` says. wandb draws them for one run at a time.",
        tuple(
            Panel(f"{kind.capitalize()}, {name}", "histograms", (f"{kind}/{wandb_key(name)}",))
            for kind in ("parameters", "gradients")
            for name in (parameters if config.tracking.histograms else ())
        ),
    )


MACHINE = (
    Panel("Processors", "machine", ("system/(proc.)?cpu.*",)),
    Panel("Memory of the machine", "machine", ("system/(proc.)?memory.*",)),
    Panel("Disks, network, accelerators", "machine", ("system/(disk|network|gpu|tpu).*",)),
)
"""Panels of wandb's own measurements; the keys depend on the machine."""


def speed(config: Config) -> Section:
    """Throughput, memory and system load."""
    return Section(
        "Speed and system",
        "Time of training alone: evaluations and checkpoints are left out. Bars are of finished runs.",
        (
            Panel("Images a second", "lines", ("images_per_second",)),
            Panel("Seconds a step", "lines", ("step_seconds",)),
            Panel("FLOP/s achieved", "lines", ("flops_per_second",)),
            *((Panel("Model FLOP utilisation", "lines", ("mfu",)),) if config.train.profile else ()),
            Panel("Peak memory of process 0, bytes", "lines", ("memory/peak_bytes",)),
            Panel("Seconds of training so far", "lines", ("epoch/seconds",)),
            Panel("Seconds of training", "bars", ("train/seconds",)),
            Panel("Images a second, whole run", "bars", ("train/images_per_second",)),
            Panel("Seconds a step, whole run", "bars", ("train/step_seconds",)),
            Panel("FLOP/s, whole run", "bars", ("train/flops_per_second",)),
            Panel("Steps and epochs", "bars", ("train/steps", "train/epochs")),
            Panel("Images learned from", "bars", ("train/images",)),
            *(MACHINE if "system" in config.tracking.share else ()),
        ),
    )


SPREAD = ("step_seconds/least", "step_seconds/most")
SLOWEST = "step_seconds/slowest_rank"
RATIO, STRAGGLERS = "step_seconds/ratio", "step_seconds/stragglers"


def processes() -> Section:
    """Stragglers among the processes, skipped steps and rollbacks."""
    return Section(
        "Distributed health",
        "The quickest and the slowest process's own work for a step, without waiting for others: where they part, one "
        "holds up all. Only runs of several processes have these lines.",
        (
            Panel("Own seconds a step, least and most", "lines", SPREAD),
            Panel("Slowest rank", "lines", (SLOWEST,)),
            Panel("Its own seconds, in medians of the others", "lines", (RATIO,)),
            Panel("Ranks that hold up the others", "lines", (STRAGGLERS,)),
            Panel("Processes and machines", "bars", ("world_size", "machines")),
            Panel("Steps left out, and rollbacks", "bars", ("train/skipped_steps", "train/rollbacks")),
        ),
    )

"""A small training run with the real Trainer, for tests on one or several ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.checkpoint.manager import CheckpointData, newest_verified
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import ImageSet, Splits
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import create_model
from mnist_dist.tracking.media import Media
from mnist_dist.training import profiler
from mnist_dist.training.metric_logger import MetricLogger
from mnist_dist.training.state import TrainingState
from mnist_dist.training.train_step import TrainStep
from mnist_dist.training.trainer import Trainer
from mnist_dist.training.visualizer import Visualizer

BASICS = ("--run.device=cpu", "--run.threads=1", "--model.name=basic", "--tracking.log_steps=1", "--train.precision=no")


def synthetic_images(count: int, seed: int) -> ImageSet:
    """Noise with a bright row, whose position is the class. The first two pixels of an image encode its index."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(0, 160, (count, 1, 28, 28), generator=generator).to(torch.uint8)
    images[torch.arange(count), 0, 4 + 2 * labels] = 255
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(count) // 256, torch.arange(count) % 256
    return ImageSet(images, labels)


def decode_indices(images: Tensor, config: DataConfig) -> list[int]:
    """The indices of normalised images that were not augmented."""
    pixels = (images[:, 0, 0, :2] * config.std + config.mean).mul(255).round().long()
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


class StepCallback(Console):
    """A console that prints nothing and calls a function after each step of this rank."""

    def __init__(self, after_step: Callable[[int], None]) -> None:
        self.after_step = after_step

    def progress(self, step: int, epoch: int) -> None:
        """Call the function."""
        self.after_step(step)


class MetricsInMemory:
    """Keeps rows in a list, with the interface of MetricsFile."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(row)

    def rewind(self, step: int) -> None:
        """Remove the rows of later steps."""
        self.rows[:] = [row for row in self.rows if row["step"] <= step]


def build_trainer(
    config: Config,
    runtime: Runtime,
    model: nn.Module,
    data: Splits,
    console: Console,
    checkpoint_dir: Path,
    *,
    rows: list[dict[str, Any]] | None = None,
    metrics_file: Any = None,
    log_media: Callable[[int, int, Media], None] | None = None,
    resume: CheckpointData | None = None,
    profile_dir: Path = Path("profile"),
) -> Trainer:
    """A Trainer, built as `train.py` builds it.

    Args:
        model: on the device.
        rows: list that the rows of metrics are appended to, on every rank.
        metrics_file: gets the rows instead of `rows`.
        log_media: called with step, epoch and media, as the tracker's method; None: no media.
        resume: the checkpoint to resume from.
    """
    state = TrainingState(model, config, runtime, images=len(data.train))
    if resume is not None:
        state.restore(resume, "here")
    alerts: list[tuple[str, ...]] = []
    tracker: Any = SimpleNamespace(
        log=lambda row: None, log_media=log_media, alert=lambda *event: alerts.append(event), alerts=alerts
    )
    metrics_file = metrics_file or MetricsInMemory([] if rows is None else rows)
    peak_flops = profiler.measure_peak_flops(runtime) if config.train.profile else 0.0
    return Trainer(
        TrainStep(state),
        data,
        console,
        MetricLogger(state, console, tracker, metrics_file, peak_flops),
        "id",
        checkpoint_dir,
        profile_dir,
        visualizer=Visualizer(state, data, tracker) if log_media else None,
        saved_step=state.progress.step if resume else -1,
    )


def open_trainer(
    runtime: Runtime,
    config: Config,
    folder: Path,
    sizes: tuple[int, int],
    after_step: Callable[[int], None] = lambda _: None,
    build_model: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer on synthetic images, restored from the folder's newest checkpoint if it has one.

    Args:
        sizes: number of training images and of test images.
        after_step: called after each step with its number, from 1.
        build_model: creates the model. By default it is the configured one in float64: in float32, rounding moves
            activations over the kink of a ReLU, which may hide a bug or look like one.
        options: of `build_trainer`.
    """
    empty = ImageSet(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    splits = Splits(synthetic_images(sizes[0], seed=1), empty, synthetic_images(sizes[1], seed=2)).to(runtime.device)
    torch.manual_seed(config.run.seed)
    model = runtime.to_device(build_model() if build_model else create_model(config.model.name).double())
    if build_model is None:
        model.register_forward_pre_hook(to_double)
    newest = newest_verified(folder, print)
    resume = newest.parse() if newest else None
    return build_trainer(config, runtime, model, splits, StepCallback(after_step), folder, resume=resume, **options)


def to_double(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A forward pre-hook that converts the images to float64."""
    return (inputs[0].double(),)


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run on one rank."""

    rows: list[dict[str, Any]]
    batches: list[list[int]]
    """For each step, the indices of the images that this rank trained on; meaningless with augmentation."""
    weights: dict[str, Tensor]
    eval_weights: dict[str, Tensor]
    sha256: str
    """Of the evaluated weights."""


def train(arguments: Sequence[str], folder: Path, sizes: tuple[int, int]) -> TrainResult:
    """Train on this rank, from the folder's newest checkpoint if it has one.

    Args:
        arguments: command-line arguments, in addition to BASICS.
        folder: the folder of the checkpoints.
        sizes: number of training images and of test images.
    """
    topology = read_topology()
    config = load([*BASICS, *arguments], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        rows: list[dict[str, Any]] = []
        batches: list[list[int]] = [[]]
        trainer = open_trainer(runtime, config, folder, sizes, lambda step: batches.append([]), rows=rows)

        def record_batch(module: nn.Module, inputs: tuple[Tensor]) -> None:
            if module.training:
                batches[-1] += decode_indices(inputs[0], config.data)

        trainer.state.model.register_forward_pre_hook(record_batch)
        trainer.train()
        return TrainResult(
            rows,
            batches[:-1],
            trainer.state.model.state_dict(),
            trainer.state.eval_model.state_dict(),
            weights_sha256(trainer.state.eval_model),
        )

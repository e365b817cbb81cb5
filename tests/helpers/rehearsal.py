"""What ranks do in these tests: a small, real training run, of which everything that matters is brought home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.checkpoint.manager import CheckpointData, load_checkpoint, newest_checkpoint
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config, DataConfig
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


def image_set(count: int, seed: int) -> ImageSet:
    """Noise with a bright row that says the class. The first two pixels of an image spell its index."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(0, 160, (count, 1, 28, 28), generator=generator).to(torch.uint8)
    images[torch.arange(count), 0, 4 + 2 * labels] = 255
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(count) // 256, torch.arange(count) % 256
    return ImageSet(images, labels)


def indices_of(images: Tensor, config: DataConfig) -> list[int]:
    """The indices that normalised, not augmented images spell."""
    spelt = (images[:, 0, 0, :2] * config.std + config.mean).mul(255).round().long()
    return (spelt[:, 0] * 256 + spelt[:, 1]).tolist()


class Watcher(Console):
    """Calls something after each step of this rank."""

    def __init__(self, after_step: Callable[[int], None]) -> None:
        self.after_step = after_step

    def progress(self, step: int, epoch: int) -> None:
        """One more step is done."""
        self.after_step(step)


class Rows:
    """metrics.jsonl in memory."""

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
    show: Callable[[int, int, Media], None] | None = None,
    resume: CheckpointData | None = None,
    profile_dir: Path = Path("profile"),
) -> Trainer:
    """A trainer with all that `train.py` builds for it.

    Args:
        model: on the device.
        rows: takes the rows of metrics, on every rank; or give a whole `metrics_file`.
        show: takes what the tracker is shown; None: nothing is.
        resume: the checkpoint to go on from.
    """
    state = TrainingState(model, config, runtime, images=len(data.train))
    if resume is not None:
        state.restore(resume, "here")
    tracker: Any = SimpleNamespace(log=lambda row: None, log_media=show)
    peak_flops = profiler.measure_peak_flops(runtime) if config.train.profile else 0.0
    return Trainer(
        TrainStep(state),
        data,
        console,
        MetricLogger(state, console, tracker, metrics_file or Rows([] if rows is None else rows), peak_flops),
        "id",
        checkpoint_dir,
        profile_dir,
        visualizer=Visualizer(state, data, tracker) if show else None,
        saved_step=state.progress.step if resume else -1,
    )


def open_trainer(
    runtime: Runtime,
    config: Config,
    folder: Path,
    sizes: tuple[int, int],
    after_step: Callable[[int], None] = lambda _: None,
    network: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Trainer:
    """A trainer over `sizes` random training and test images, at the folder's newest checkpoint if it has one.

    Without another `network`, the configured one computes in double precision: then rounding, which may push an
    activation to the other side of a ReLU, neither hides a mistake nor looks like one.

    Args:
        options: of `build_trainer`.
    """
    nothing = ImageSet(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    splits = Splits(image_set(sizes[0], seed=1), nothing, image_set(sizes[1], seed=2)).to(runtime.device)
    torch.manual_seed(config.run.seed)
    model = runtime.to_device(network() if network else create_model(config.model.name).double())
    if network is None:
        model.register_forward_pre_hook(to_double)
    newest = newest_checkpoint(folder, print)
    resume = load_checkpoint(newest) if newest else None
    return build_trainer(config, runtime, model, splits, Watcher(after_step), folder, resume=resume, **options)


def to_double(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A hook before a network: double precision is what it gets."""
    return (inputs[0].double(),)


@dataclass(frozen=True)
class Run:
    """What one rank saw of a training run."""

    rows: list[dict[str, Any]]
    seen: list[list[int]]
    """For each step, the indices of the images that this rank's model was given; empty with augmentation."""
    weights: dict[str, Tensor]
    network: dict[str, Tensor]
    sha256: str


def train(arguments: Sequence[str], folder: Path, sizes: tuple[int, int]) -> Run:
    """Train as the arguments say."""
    topology = read_topology()
    config = load([*BASICS, *arguments], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        rows: list[dict[str, Any]] = []
        seen: list[list[int]] = [[]]
        trainer = open_trainer(runtime, config, folder, sizes, lambda step: seen.append([]), rows=rows)

        def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
            if module.training:
                seen[-1] += indices_of(inputs[0], config.data)

        trainer.state.model.register_forward_pre_hook(note)
        trainer.train()
        return Run(
            rows,
            seen[:-1],
            trainer.state.model.state_dict(),
            trainer.state.eval_model.state_dict(),
            weights_sha256(trainer.state.eval_model),
        )

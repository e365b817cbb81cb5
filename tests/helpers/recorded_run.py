"""A run of the real Trainer on one rank, on 50 random images, with everything recorded that it logs and shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measured_keys import MEASURED_ROW_KEYS
from small_training import build_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.manager import CheckpointData, list_checkpoints, load_verified, step_of
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig, ModelConfig, OptimConfig, RunConfig, TrackingConfig, TrainConfig
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import ImageSet, Splits
from mnist_dist.data.loader import normalize
from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model
from mnist_dist.optim.lr_schedule import lr_at
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.errors import Stopped

Row = dict[str, Any]
IMAGES, BATCH, STEPS = 50, 16, 4
"""Training images, images of a global batch, and steps of an epoch. The last batch has only two images."""


def images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(10, (count,), generator=generator))


DATA = Splits(images(IMAGES, 0), images(11, 1), images(7, 2))
WITHOUT_VAL = Splits(images(IMAGES, 0), images(0, 1), images(7, 2))


def config(
    optim: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None, model: str = "basic", **train: Any
) -> Config:
    """Two epochs of plain SGD at a constant learning rate by default; `log_steps` is a setting of tracking."""
    sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
    log_steps = train.pop("log_steps", 3)
    return Config(
        run=RunConfig(threads=1, device="cpu"),
        data=DataConfig(**(data or {})),
        model=ModelConfig(name=model),  # type: ignore[arg-type]
        optim=OptimConfig(**(sgd | dict(optim or {}))),  # type: ignore[arg-type]
        train=TrainConfig(**({"batch_size": BATCH, "epochs": 2, "eval_batch_size": 4, "precision": "no"} | train)),
        tracking=TrackingConfig(log_steps=log_steps),
    )


class RecordingConsole(Console):
    """Records what the trainer passes to the console, and calls a function after each step."""

    def __init__(self) -> None:
        self.epochs: list[Row] = []
        self.evaluations: list[str] = []
        self.warnings: list[str] = []
        self.after_step: Callable[[int], None] = lambda step: None

    def progress(self, step: int, epoch: int) -> None:
        self.after_step(step)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs.append(dict(row))

    def evaluation(self, split: str, row: Mapping[str, Any]) -> None:
        self.evaluations.append(split)


@dataclass
class Run:
    """Result of training from one start to the next stop or the end."""

    trainer: Trainer
    stopped: bool = False
    rows: list[Row] = field(default_factory=list)

    @property
    def console(self) -> RecordingConsole:
        assert isinstance(self.trainer.console, RecordingConsole)
        return self.trainer.console

    @property
    def sha256(self) -> str:
        return weights_sha256(self.trainer.state.eval_model)

    def values(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) of each row that has the key."""
        return [(row["step"], row[key]) for row in self.rows if key in row]


def build(
    config: Config, runtime: Runtime, data: Splits = DATA, checkpoints: Path = Path("checkpoints"), **options: Any
) -> Trainer:
    torch.manual_seed(config.run.seed)
    model = runtime.to_device(create_model(config.model.name))
    return build_trainer(config, runtime, model, data, RecordingConsole(), checkpoints, **options)


def start(
    config: Config,
    checkpoints: Path,
    data: Splits = DATA,
    *,
    resume: Path | CheckpointData | None = None,
    before: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train from the beginning or from a checkpoint, to the next stop or the end.

    Args:
        before: called with the run before training.
    """
    with start_runtime(config, Topology()) as runtime:
        saved = load_verified(resume).parse() if isinstance(resume, Path) else resume
        rows: list[Row] = []
        run = Run(build(config, runtime, data, checkpoints, rows=rows, resume=saved), rows=rows)
        before(run)
        try:
            run.trainer.train()
        except Stopped:
            run.stopped = True
    return run


def stop_after(step: int) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        run.console.after_step = lambda done: run.trainer.runtime.request_stop() if done == step else None

    return prepare


def comparable(rows: list[Row]) -> list[Row]:
    """Rows without measured times and memory."""
    return [{k: v for k, v in row.items() if k not in MEASURED_ROW_KEYS} for row in rows]


def steps_of(checkpoints: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(checkpoints)]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def train_by_hand(config: Config, epochs: int, smoothing: float = 0.0) -> tuple[nn.Module, list[float]]:
    """Plain SGD on the mean loss of each global batch; the model, and the loss of each batch."""
    torch.manual_seed(config.run.seed)
    model: nn.Module = create_model(config.model.name)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr)
    sampler = GlobalBatchSampler(IMAGES, BATCH, seed=config.run.seed)
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for rows in sampler:
            inputs = normalize(DATA.train.images[rows], config.data)
            loss = F.cross_entropy(model(inputs), DATA.train.labels[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr_at(len(losses), 2 * STEPS, config.optim)
            optimizer.step()
            losses.append(loss.item())
    return model, losses


def update_norms(settings: Config, checkpoints: Path) -> tuple[list[float], str]:
    """The L2 norm of the change of all weights in each step, and the SHA-256 of the final weights."""
    norms: list[float] = []
    history: list[list[Tensor]] = []

    def prepare(run: Run) -> None:
        history.append(weights(run.trainer.state.model))

        def measure(step: int) -> None:
            now = weights(run.trainer.state.model)
            norms.append(math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(now, history[-1], strict=True))))
            history.append(now)

        run.console.after_step = measure

    return norms, start(settings, checkpoints, before=prepare).sha256

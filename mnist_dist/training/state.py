"""The training state: what a checkpoint saves and restores. The rest of a run is a function of it and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from mnist_dist.checkpoint.manager import CheckpointData
from mnist_dist.checkpoint.state import InitialWeights, NormSums, TrainProgress
from mnist_dist.checkpoint.tensors import load_weights
from mnist_dist.config.schema import Config
from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.strategy import build_strategy
from mnist_dist.models.classifier import without_shifts
from mnist_dist.models.summary import count_flops, count_parameters
from mnist_dist.models.user_code import digests_of
from mnist_dist.optim.ema import build_ema
from mnist_dist.optim.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from mnist_dist.training.metrics import Counts, GradientNorms, Metrics, pack_counts
from mnist_dist.utils.errors import UserError


class TrainingState:
    """Model, strategy, optimizer, EMA, sampler, progress, and the metrics that are not logged yet.

    It has no random state: permutation, augmentation and dropout are functions of the seed and the epoch or step.

    Args:
        model: on its device, with the same values on every rank. FSDP2 shards it in place.
        images: number of training images.
        initial_weights: where the model's weights are from.
        code: source files of a model of the user's own, by relative path.

    Raises:
        UserError: with data.drop_last there is no full batch to train on.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        runtime: Runtime,
        images: int,
        initial_weights: InitialWeights | None = None,
        code: Mapping[str, bytes] | None = None,
    ) -> None:
        self.config, self.runtime, self.model = config, runtime, model
        self.code = dict(code or {})
        self.flops_per_image = 3 * count_flops(
            without_shifts(model)
        )  # a backward pass costs as much as two forward passes
        self.strategy = build_strategy(model, config, runtime)
        self.local_model = self.strategy.local_model
        self.ema = build_ema(self.local_model, config.optim.ema)
        self.optimizer = build_optimizer(self.local_model, config.optim, fused=can_fuse(runtime))
        self.sampler = build_sampler(config, runtime, images)
        self.total_steps = config.train.epochs * len(self.sampler)
        self.last_step = min(config.train.max_steps or self.total_steps, self.total_steps)
        self.progress = TrainProgress()
        self.initial_weights = initial_weights or InitialWeights()
        num_classes = len(config.data.class_names)
        self.window = Counts(runtime.device, num_classes)  # of this rank, since the last row of metrics
        self.norms = GradientNorms()  # since the last row of metrics, the same on every rank
        self.epoch_counts = Counts(runtime.device, num_classes)  # likewise, from the epoch's start to the last row

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and export: the EMA if there is one, else the model.

        Every rank must read this property: with FSDP2 each read gathers the shards of all ranks.
        """
        return self.strategy.full_model(self.local_model if self.ema is None else self.ema.module)

    def describe(self) -> dict[str, str]:
        """Model, gradients, optimizer and number of steps, for the console."""
        config, progress = self.config, self.progress
        fused = " (fused)" if can_fuse(self.runtime) else ""
        steps = f"{self.last_step} ({config.train.epochs} epoch{'s' * (config.train.epochs > 1)} x {len(self.sampler)})"
        done = f", {progress.step} done" if progress.step else ""
        return {
            "model": f"{config.model.name}, {count_parameters(self.model):,} parameters",
            "gradients": self.strategy.describe(),
            "optimizer": f"{config.optim.name}{fused}, lr {config.optim.lr:g} {config.optim.schedule}",
            "steps": f"{steps} of {config.train.batch_size} images{done}",
        }

    def reduce_counts(self, counts: Counts) -> Metrics:
        """Metrics of counts, summed over all ranks. Every rank must call it."""
        return Metrics.from_counts(self.runtime.all_reduce_sum(counts.tensor.clone()).tolist())

    def checkpoint_data(self, facts: dict[str, Any]) -> CheckpointData:
        """The state as a checkpoint. Every rank must call it.

        The tensors may be those in training, not copies: see `CheckpointData.to_host`.

        Args:
            facts: further keys of the checkpoint's state.json.
        """
        counts = torch.stack([self.window.tensor, self.epoch_counts.tensor])
        window, epoch = self.runtime.all_reduce_sum(counts).tolist()
        state = facts | {
            "progress": asdict(self.progress),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
            "window": pack_counts(window),
            "epoch_counts": pack_counts(epoch),
            "norms": asdict(self.norms.collect()),
            "scaler": self.runtime.mixed_precision.state_dict(),
            "code": digests_of(self.code),
            "initial_weights": asdict(self.initial_weights),
        }
        full = self.strategy.full_state_dict
        return CheckpointData(
            model=full(self.local_model.state_dict()),
            optimizer=full(optimizer_tensors(self.optimizer, self.local_model)),
            ema=full({} if self.ema is None else self.ema.module.state_dict()),
            state=state,
        )

    def restore(self, saved: CheckpointData, source: str) -> None:
        """Load a checkpoint, written by any number of ranks with any strategy.

        Args:
            saved: the checkpoint, with full tensors.
            source: its path, for error messages.

        Raises:
            UserError: the checkpoint is of another model, or its epoch has more batches than this run's.
        """
        done = saved.state["progress"]["step_in_epoch"]
        if done > len(self.sampler):
            raise UserError(
                f"{source}: is at batch {done} of an epoch that has {len(self.sampler)}; choose another one"
            )
        model, optimizer, ema = (
            self.strategy.local_state_dict(getattr(saved, name), f"{source}/{name}.safetensors")
            for name in ("model", "optimizer", "ema")
        )
        load_weights(self.local_model, model, f"{source}/model.safetensors")
        if self.ema is not None:
            load_weights(self.ema.module, ema, f"{source}/ema.safetensors")
            self.ema.n_averaged.fill_(saved.state["ema_updates"])
        load_optimizer_tensors(self.optimizer, self.local_model, optimizer)
        vars(self.progress).update(saved.state["progress"])
        self.initial_weights = InitialWeights.from_json(saved.state["initial_weights"])
        self.norms.restore(NormSums(**saved.state["norms"]))
        self.runtime.mixed_precision.load_state_dict(saved.state["scaler"])
        # A checkpoint has counts summed over all ranks, so only one rank keeps them.
        self.window.restore(saved.state["window"], keep=self.runtime.is_main)
        self.epoch_counts.restore(saved.state["epoch_counts"], keep=self.runtime.is_main)


def build_sampler(config: Config, runtime: Runtime, images: int) -> GlobalBatchSampler:
    """The sampler of the training images, for this rank. Raises UserError as `sampler_of_rank`."""
    return sampler_of_rank(config, images, runtime.rank, runtime.world_size, runtime.shards)


def sampler_of_rank(config: Config, images: int, rank: int, world_size: int, shards: int) -> GlobalBatchSampler:
    """The sampler of the training images, for any rank.

    Args:
        images: number of training images.
        shards: number of fixed shards of a global batch; 0 without them.

    Raises:
        UserError: with data.drop_last there is no full batch to train on.
    """
    sampler = GlobalBatchSampler(
        images,
        config.train.batch_size,
        rank=rank,
        world_size=world_size,
        shards=shards,
        accumulate=config.train.accumulate,
        seed=config.run.seed,
        shuffle=not config.train.overfit_batches,
        drop_last=config.data.drop_last,
    )
    if not len(sampler):
        raise UserError(
            f"data.drop_last=true leaves nothing: {images} training images are less than one batch of "
            f"train.batch_size={config.train.batch_size}; lower it or keep the last batch"
        )
    return sampler


def can_fuse(runtime: Runtime) -> bool:
    """Whether to use torch's fused optimizer. Not in fp16: accelerate would not notice the steps that it skips."""
    return runtime.precision != "fp16" and runtime.device.type in ("cpu", "cuda")

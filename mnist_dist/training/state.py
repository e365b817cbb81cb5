"""Everything that a run's future depends on: what a checkpoint holds, and how it comes back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mnist_dist.checkpoint.manager import CheckpointData
from mnist_dist.checkpoint.state import NormSums, TrainProgress
from mnist_dist.checkpoint.tensors import load_weights
from mnist_dist.config.schema import Config
from mnist_dist.distributed.fsdp import hold
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.optim.ema import build_ema
from mnist_dist.optim.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from mnist_dist.training.metrics import Counts, GradientNorms, Metrics


class TrainingState:
    """The model with its optimizer and moving average, the position, and the counts that are not recorded yet.

    Nothing random is in it: permutation, augmentation and dropout are functions of (seed, epoch or step).

    Args:
        model: placed on the device; cut up in place where the launcher asked for that.
    """

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime) -> None:
        self.holding, self.runtime = hold(model, runtime), runtime
        self.model = self.holding.own
        self.ema: AveragedModel | None = build_ema(self.model, config.optim.ema)
        self.optimizer = build_optimizer(self.model, config.optim, fused=can_fuse(runtime))
        self.progress = TrainProgress()
        self.window = Counts(runtime.device)  # since the last row of metrics, this process only
        self.norms = GradientNorms()  # since the last row of metrics, the same on every process
        self.epoch_counts = Counts(runtime.device)  # since the epoch began, without the window

    @property
    def eval_model(self) -> nn.Module:
        """What is evaluated and exported: the moving average of the weights where there is one.

        Every process must ask for it: a model that is cut up is put together each time.
        """
        return self.holding.assemble(self.model if self.ema is None else self.ema.module)

    def total(self, counts: Counts) -> Metrics:
        """What counts say, summed over all processes."""
        return Metrics.from_counts(self.runtime.all_reduce_sum(counts.tensor.clone()).tolist())

    def snapshot(self, facts: dict[str, Any]) -> CheckpointData:
        """Everything, for a checkpoint; the tensors may be those in use, not copies. Every process must call it.

        Args:
            facts: what else the checkpoint's state is to say.
        """
        counts = torch.stack([self.window.tensor, self.epoch_counts.tensor])
        window, epoch = self.runtime.all_reduce_sum(counts).tolist()
        state = facts | {
            "progress": asdict(self.progress),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
            "window": window,
            "epoch_counts": epoch,
            "norms": asdict(self.norms.collect()),
            "scaler": self.runtime.scaler_state(),
        }
        ema = {} if self.ema is None else self.ema.module.state_dict()
        gather = self.holding.gather
        return CheckpointData(
            gather(self.model.state_dict()), gather(optimizer_tensors(self.optimizer, self.model)), gather(ema), state
        )

    def restore(self, saved: CheckpointData, source: str) -> None:
        """Go back to a snapshot, taken by any number of processes.

        Raises:
            UserError: it belongs to another model.
        """
        model, optimizer, ema = (
            self.holding.cut(getattr(saved, part), f"{source}/{part}.safetensors")
            for part in ("model", "optimizer", "ema")
        )
        load_weights(self.model, model, f"{source}/model.safetensors")
        if self.ema is not None:
            load_weights(self.ema.module, ema, f"{source}/ema.safetensors")
            self.ema.n_averaged.fill_(saved.state["ema_updates"])
        load_optimizer_tensors(self.optimizer, self.model, optimizer)
        vars(self.progress).update(saved.state["progress"])
        self.norms.restore(NormSums(**saved.state["norms"]))
        self.runtime.load_scaler_state(saved.state["scaler"])
        for counts, values in ((self.window, "window"), (self.epoch_counts, "epoch_counts")):
            # The counts are sums over all processes: one of them goes on with them.
            counts.restore(saved.state[values], keep=self.runtime.is_main)


def can_fuse(runtime: Runtime) -> bool:
    """Whether the optimizer may be one fused kernel: not with a gradient scaler, which it would hide skips from."""
    return runtime.precision != "fp16" and runtime.device.type in ("cpu", "cuda")

"""One step: from a global batch to an update of the weights."""

from __future__ import annotations

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.fixed_shards import FixedShardStrategy
from mnist_dist.distributed.fsdp import FSDPStrategy, Pieces
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.strategy import Strategy, Whole
from mnist_dist.optim.lr_schedule import lr_at
from mnist_dist.optim.optimizer import set_lr
from mnist_dist.training.nonfinite import NonfiniteGuard
from mnist_dist.training.state import TrainingState


def build_gradients(holding: Whole | Pieces, config: Config, runtime: Runtime) -> Strategy:
    """The way to gradients that launcher and configuration ask for. The model's parameters are final."""
    if isinstance(holding, Pieces):
        return FSDPStrategy(holding, config, runtime)
    return (FixedShardStrategy if runtime.shards else DDPStrategy)(holding.own, config, runtime)


class TrainStep:
    """Learns from global batches, the same on every process.

    Args:
        state: what is changed: the model, its average, the position's `images` and `skipped`, the window's counts.
        total_steps: of all epochs, which the schedule spans.
    """

    def __init__(self, state: TrainingState, config: Config, runtime: Runtime, total_steps: int) -> None:
        self.state, self.config, self.runtime, self.total_steps = state, config, runtime, total_steps
        self.strategy = build_gradients(state.holding, config, runtime)
        self.stepper = runtime.stepper(state.optimizer)
        self.guard = NonfiniteGuard(state.model, state.optimizer, active=runtime.precision != "fp16")
        self.lr = 0.0  # of the last update

    def learn(self, batch: Batch) -> None:
        """Update the weights, unless a rollback was due to this batch or its gradient is not finite."""
        state, progress, optim = self.state, self.state.progress, self.config.optim
        self.lr = self.lr_for_update(progress.step - progress.scaler_skips)
        set_lr(state.optimizer, self.lr)
        if progress.step in progress.skip_batches:
            return
        progress.images += batch.size
        self.guard.before()
        for seen in self.strategy.compute(batch, progress.step):
            state.window.add(*seen)
        norm = self.strategy.clip(optim.clip) if optim.clip else self.runtime.unscale(self.strategy.norm())
        state.norms.add(norm)
        self.guard.decide(progress.step, norm)
        self.stepper.step()
        if self.stepper.step_was_skipped:
            progress.scaler_skips += 1
        elif state.ema is not None:
            state.ema.update_parameters(state.model)

    def lr_for_update(self, update: int) -> float:
        """The learning rate of an update, counted from 0: the schedule's, halved by each rollback."""
        return lr_at(update, self.total_steps, self.config.optim) / 2**self.state.progress.rollbacks

    def restore_lr(self) -> None:
        """Have `lr` say the rate of the last update before the present position."""
        self.lr = self.lr_for_update(max(self.state.progress.step - self.state.progress.scaler_skips - 1, 0))

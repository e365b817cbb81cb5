"""One training step: forward and backward pass over a global batch, clipping, and the update of the weights."""

from __future__ import annotations

from mnist_dist.data.loader import Batch
from mnist_dist.optim.lr_schedule import lr_at
from mnist_dist.optim.optimizer import set_lr
from mnist_dist.training.nonfinite import NonfiniteGuard
from mnist_dist.training.state import TrainingState


class TrainStep:
    """Updates a training state by one global batch at a time, alike on every rank.

    Args:
        state: whose model, average of weights, `progress.images` and `.scaler_skips`, and counts a step changes. Its
            model's forward is wrapped here, so its average must exist.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state, self.strategy = state, state.strategy
        self.strategy.wrap_model()
        self.precision = state.runtime.mixed_precision
        self.optimizer = self.precision.prepare_optimizer(state.optimizer)
        self.guard = NonfiniteGuard(state.local_model, state.optimizer, active=self.precision.name != "fp16")
        self.lr = 0.0  # of the last update
        self.restore_lr()

    def step(self, batch: Batch) -> bool | None:
        """Update the weights, unless a rollback skips this batch or its gradient is not finite.

        Returns:
            `StepOutput.stop`: whether any rank was asked to stop, if the exchange of gradients carried the answer.
        """
        state, progress, max_norm = self.state, self.state.progress, self.state.config.optim.clip
        self.lr = self.lr_for_update(progress.step - progress.scaler_skips)
        set_lr(state.optimizer, self.lr)
        if progress.step in progress.skip_batches:
            return None
        progress.images += batch.size
        self.guard.before_forward()
        outputs, stop = self.strategy.forward_backward(batch, progress.step)
        for output in outputs:
            state.window.add(*output)
        if max_norm:
            norm = self.strategy.clip_grad_norm_(max_norm)
        else:
            norm = self.precision.unscale(self.strategy.grad_norm())
        state.norms.add(norm)
        self.guard.before_update(progress.step, norm)
        self.optimizer.step()
        if self.optimizer.step_was_skipped:
            progress.scaler_skips += 1
        elif state.ema is not None:
            state.ema.update_parameters(state.local_model)
        return stop

    def lr_for_update(self, update: int) -> float:
        """The learning rate of an update, counted from 0: the schedule's, halved by each rollback."""
        return lr_at(update, self.state.total_steps, self.state.config.optim) / 2**self.state.progress.rollbacks

    def restore_lr(self) -> None:
        """Set `lr` to that of the last update before the present progress."""
        progress = self.state.progress
        self.lr = self.lr_for_update(max(progress.step - progress.scaler_skips - 1, 0))

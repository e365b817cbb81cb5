"""One training step: forward and backward pass over a global batch, gradient clipping, optimizer step, EMA update."""

from __future__ import annotations

from mnist_dist.data.loader import Batch
from mnist_dist.distributed.step_output import StepOutput
from mnist_dist.optim.lr_schedule import lr_at
from mnist_dist.optim.optimizer import set_lr
from mnist_dist.training.nonfinite import NonfiniteGuard, anomaly_error
from mnist_dist.training.state import TrainingState


class TrainStep:
    """Trains a model on one global batch per call of `step`. Every rank must call it.

    Args:
        state: a step changes its model, optimizer, EMA, `window`, `norms`, and of its progress `images` and
            `scaler_skips`. Its model is wrapped here.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state, self.strategy = state, state.strategy
        self.strategy.wrap_model()
        self.mixed_precision = state.runtime.mixed_precision
        self.optimizer = self.mixed_precision.prepare_optimizer(state.optimizer)
        self.guard = NonfiniteGuard(state.local_model, state.optimizer, state.runtime)
        self.lr = 0.0  # of the last update
        self.restore_lr()

    def step(self, batch: Batch) -> bool | None:
        """Update the weights, unless the batch is in `progress.skip_batches` or the gradient is not finite.

        The caller then counts the step: `progress.finish_step`.

        Args:
            batch: this rank's part of the global batch number `progress.step`.

        Returns:
            `StepOutput.stop`: whether any rank was asked to stop; None if the gradient exchange carried no stop flags.
        """
        state, progress, max_norm = self.state, self.state.progress, self.state.config.optim.clip
        timer = state.runtime.step_timer
        self.lr = self.lr_for_update(progress.step - progress.scaler_skips)
        set_lr(state.optimizer, self.lr)
        if progress.step in progress.skip_batches:
            return None
        progress.images += batch.size
        timer.enter("compute")
        self.guard.before_forward()
        outputs, stop = self.forward_backward(batch)
        timer.enter("optimizer")
        for output in outputs:
            state.window.add(*output)
        if max_norm:
            norm = self.strategy.clip_grad_norm_(max_norm)
        else:
            norm = self.mixed_precision.unscale(self.strategy.grad_norm())
        state.norms.add(norm)
        skipped = self.guard.before_update(progress.step, norm, [output.losses for output in outputs])
        self.optimizer.step()
        self.guard.after_update(self.optimizer.step_was_skipped)
        if self.optimizer.step_was_skipped:
            progress.scaler_skips += 1
        elif state.ema is not None:
            state.ema.update_parameters(state.local_model, skipped)
        timer.enter("other")
        return stop

    def forward_backward(self, batch: Batch) -> StepOutput:
        """See `Strategy.forward_backward`.

        Raises:
            TrainingError: train.detect_anomaly found an operation whose gradient is nan.
        """
        try:
            return self.strategy.forward_backward(batch, self.state.progress.step)
        except RuntimeError as error:
            raise anomaly_error(error, self.state.progress.step) or error from None

    def lr_for_update(self, update: int) -> float:
        """Learning rate of an update, counted from 0: that of the schedule, halved by each rollback."""
        return lr_at(update, self.state.total_steps, self.state.config.optim) / 2**self.state.progress.rollbacks

    def restore_lr(self) -> None:
        """Set `lr` to the learning rate of the last update, after the progress was restored."""
        progress = self.state.progress
        self.lr = self.lr_for_update(max(progress.step - progress.scaler_skips - 1, 0))

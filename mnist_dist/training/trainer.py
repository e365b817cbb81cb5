"""The training loop: epochs, steps, evaluations, checkpoints, rollbacks and stops. One explicit loop, no callbacks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mnist_dist.checkpoint.async_writer import CheckpointWriter
from mnist_dist.checkpoint.manager import CheckpointData
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import Splits
from mnist_dist.data.loader import DeviceLoader
from mnist_dist.training.compile import compiled
from mnist_dist.training.early_stopping import EarlyStopping
from mnist_dist.training.evaluation import Collector, evaluate
from mnist_dist.training.metric_logger import MetricLogger
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.nonfinite import apply_policy
from mnist_dist.training.profiler import StepProfiler
from mnist_dist.training.time_left import TimeLeft
from mnist_dist.training.train_step import TrainStep
from mnist_dist.training.visualizer import Visualizer
from mnist_dist.utils.errors import Stopped


class Trainer:
    """Trains to the last step; evaluates, logs and saves on the way. Every rank must call its methods.

    Args:
        train_step: updates the training state, which is new or restored from a checkpoint.
        data: training, validation and test images, on the device.
        console: shows progress, metrics and warnings.
        metric_logger: logs the metrics and measures the training time.
        run_id: the run's id in the tracker, the same after each resume.
        checkpoint_dir: directory of the checkpoints.
        profile_dir: directory of the traces of train.profile.
        visualizer: logs media of the evaluation at the end of an epoch or of the run; on all ranks or on none.
        saved_step: step of the checkpoint that the run resumed from; -1 without one.
    """

    def __init__(
        self,
        train_step: TrainStep,
        data: Splits,
        console: Console,
        metric_logger: MetricLogger,
        run_id: str,
        checkpoint_dir: Path,
        profile_dir: Path,
        visualizer: Visualizer | None = None,
        saved_step: int = -1,
    ) -> None:
        self.train_step, self.data, self.console, self.metric_logger = train_step, data, console, metric_logger
        self.run_id, self.visualizer, self.saved_step = run_id, visualizer, saved_step
        self.state = state = train_step.state
        self.config, self.runtime, self.progress = state.config, state.runtime, state.progress
        self.timer = metric_logger.timer
        on_the_way = 0 if self.config.is_test_kept_back else len(data.held_out[1])
        tested = len(data.test) if len(data.val) or self.config.is_test_kept_back else 0
        self.time_left = TimeLeft(state, on_the_way, tested, self.timer.seconds)
        self.early_stopping = EarlyStopping(self.config.train, self.progress, self.runtime)
        self.writer = CheckpointWriter(checkpoint_dir, self.config.train.keep, console.warn)
        steps_left = state.last_step - self.progress.step
        self.profiler = StepProfiler(self.config.train.profile, steps_left, profile_dir, metric_logger)
        self.rollback_data: CheckpointData | None = None  # the last checkpoint; None unless train.nonfinite=rollback
        self.held_out_metrics: Metrics | None = None  # of the last evaluation on the held-out set

    @property
    def held_out_split(self) -> str:
        """Name of the set that is evaluated during training: `val`, or `test` if there are no validation images."""
        return self.data.held_out[0]

    def train(self) -> None:
        """Train from the current step to the last one, or until early stopping ends the run.

        Raises:
            Stopped: a rank was asked to stop; a checkpoint is written.
            TrainingError: train.nonfinite ends the run, or the last checkpoint cannot be written.
        """
        train, runtime = self.config.train, self.runtime
        images = train.batch_size // runtime.world_size // train.accumulate
        try:
            with compiled(self.state.model, train.compile, images, runtime, self.console):
                self.train_epochs()
        finally:
            self.profiler.finish()
            self.writer.wait()

    def train_epochs(self) -> None:
        """Train the remaining epochs, then evaluate and save unless that is done for the last step."""
        progress = self.progress
        if self.config.train.nonfinite == "rollback":
            self.rollback_data = self.checkpoint_data().to_host()
        self.console.start_progress(self.state.last_step, progress.step, self.config.train.epochs)
        if self.is_evaluation_due():  # the run was stopped during this evaluation
            self.evaluate_within_epoch()
        while not self.is_done() or self.is_epoch_done():
            self.train_epoch()
            if self.is_epoch_done():
                self.finish_epoch()
        if progress.stop_reason and progress.step < self.state.last_step:
            self.console.print(f"ended at step {progress.step}: {self.early_stopping.describe()}")
        if progress.evaluated != progress.step:
            self.evaluate_held_out(has_media=True)
        if self.held_out_metrics is None:  # resumed after the last evaluation; its rows are logged already
            self.held_out_metrics = self.evaluate(self.held_out_split)
        if self.saved_step != progress.step:
            self.save()
        self.runtime.run_on_main(self.writer.finish)

    def train_epoch(self) -> None:
        """Train the remaining batches of the current epoch, up to the last step."""
        progress, config, sampler = self.progress, self.config, self.state.sampler
        sampler.load_state_dict({"epoch": progress.epoch, "start": progress.step_in_epoch})
        measured = partial(self.runtime.step_timer.measured, "data")
        augment = config.augments(progress.epoch)
        batches = DeviceLoader(self.data.train, sampler, config.data, augment=augment, measured=measured)
        self.state.model.train()
        self.timer.start()
        for batch in batches:
            self.profiler.before_step(batch.size)
            stop_requested = self.train_step.step(batch)
            progress.finish_step()
            self.metric_logger.add_images(batch.size)
            self.console.progress(progress.step, progress.epoch)
            self.early_stopping.check_time()
            should_log = self.is_row_due()
            should_save = self.is_checkpoint_due()
            should_stop = self.runtime.should_stop(stop_requested)
            if should_log or should_save or should_stop or self.is_evaluation_due():
                window = self.state.reduce_counts(self.state.window)
                if self.roll_back(window):
                    break  # the progress is that of the last checkpoint, perhaps in an earlier epoch
                if should_log:
                    seconds_left = min(self.time_left.estimate(self.timer.seconds), self.early_stopping.seconds_left())
                    self.metric_logger.log_window(window, self.train_step.lr, seconds_left)
            if self.is_evaluation_due():
                self.evaluate_within_epoch()
            if should_save:
                self.save()
            if should_stop:
                self.stop()
            if self.is_done():
                break
        self.timer.stop()

    def roll_back(self, window: Metrics) -> bool:
        """Apply train.nonfinite: with `rollback`, restore the last checkpoint and halve the learning rate.

        Args:
            window: metrics since the last row.

        Returns:
            Whether the checkpoint was restored.

        Raises:
            TrainingError: train.nonfinite ends the run.
        """
        rollback = apply_policy(self.train_step.guard, self.state, window, self.warn_of_update)
        if rollback is None:
            return False
        assert self.rollback_data is not None
        self.timer.stop()
        progress = self.progress
        rollbacks, skip_batches = progress.rollbacks + 1, sorted({*progress.skip_batches, rollback.skip_batch})
        self.state.restore(self.rollback_data, "the last checkpoint")
        progress.rollbacks, progress.skip_batches = rollbacks, skip_batches
        self.saved_step = progress.step
        self.train_step.restore_lr()
        self.metric_logger.rewind(progress.step)
        self.warn_of_update(
            f"{rollback.reason}; rolled back to step {progress.step}, to continue at half the learning rate without "
            "the first of these batches"
        )
        return True

    def warn_of_update(self, line: str) -> None:
        """Say on the console, and by an alert, that an update was left out."""
        self.console.warn(line)
        self.metric_logger.tracker.alert("Update left out", line)

    def finish_epoch(self) -> None:
        """Evaluate, unless that is kept back to the end; log the epoch, and save."""
        progress = self.progress
        has_media = self.config.tracking.has_media(progress.epoch + 1, self.config.train.epochs) or self.is_done()
        is_kept_back = self.config.is_test_kept_back and not self.is_done()
        held_out = None if is_kept_back else self.evaluate_held_out(has_media)
        self.metric_logger.log_epoch(self.train_step.lr, self.held_out_split, held_out)
        progress.finish_epoch()
        if held_out and len(self.data.val):
            progress.note_best(held_out.accuracy, held_out.loss)
        self.save()

    # Conditions

    def is_done(self) -> bool:
        """Whether the last step is done, or early stopping ends the run at this one."""
        return self.progress.step >= self.state.last_step or bool(self.progress.stop_reason)

    def is_epoch_done(self) -> bool:
        """Whether all batches of the current epoch are done, so that `finish_epoch` comes next."""
        return self.progress.step_in_epoch == len(self.state.sampler)

    def is_row_due(self) -> bool:
        """Whether a row of training metrics is due: each tracking.log_steps, at an epoch's end and at the last step."""
        return self.progress.step % self.config.tracking.log_steps == 0 or self.is_epoch_done() or self.is_done()

    def is_checkpoint_due(self) -> bool:
        """Whether train.checkpoint_steps asks for a checkpoint now. At an epoch's end `finish_epoch` saves one."""
        every = self.config.train.checkpoint_steps
        return bool(every) and self.progress.step % every == 0 and not self.is_epoch_done()

    def is_evaluation_due(self) -> bool:
        """Whether train.eval_steps asks for an evaluation now that is not done. An epoch's end has one anyway."""
        every, progress = self.config.train.eval_steps, self.progress
        due = every and progress.step and progress.step % every == 0 and not self.is_epoch_done()
        return bool(due and progress.evaluated != progress.step)

    # Evaluation

    def evaluate_within_epoch(self) -> None:
        """Evaluate on the held-out set within an epoch, and show the metrics on the console."""
        has_row = self.is_row_due()
        self.console.evaluation(self.held_out_split, self.evaluate_held_out().row(self.held_out_split))
        if self.is_done() and not has_row:
            self.metric_logger.log_window(self.state.reduce_counts(self.state.window), self.train_step.lr)

    def evaluate_held_out(self, has_media: bool = False) -> Metrics:
        """Evaluate on the held-out set, and log the metrics. This may end the run (`EarlyStopping`).

        Args:
            has_media: log media too, as after the last evaluation. Only with a visualizer.
        """
        self.profiler.finish()
        is_due = self.is_epoch_done() or self.is_evaluation_due()
        may_have_media = has_media or self.early_stopping.depends_on_metrics
        collector = self.visualizer.collector() if self.visualizer and may_have_media else None
        metrics = self.held_out_metrics = self.evaluate(self.held_out_split, collector)
        self.progress.evaluated = self.progress.step
        self.metric_logger.write(metrics.row(self.held_out_split) | metrics.details(self.held_out_split))
        self.early_stopping.note_evaluation(metrics, is_due)
        if self.visualizer and collector and (has_media or self.is_done()):
            with self.timer.paused():
                self.visualizer.show(collector)
        return metrics

    def evaluate(self, split: str, collector: Collector | None = None) -> Metrics:
        """Metrics on a split: `train`, `val` or `test`. Training time excludes it.

        Args:
            collector: given the predictions of this rank.

        Raises:
            Stopped: a rank was asked to stop; a checkpoint is written.
        """
        size, data = self.config.train.eval_batch_size, getattr(self.data, split)
        with self.timer.paused(), self.time_left.evaluation(len(data)):
            self.stop_if_asked()  # starts an all-reduce of stop flags, which the check after the first batches reads
            model = self.state.eval_model
            metrics = evaluate(model, data, self.config.data, self.runtime, size, self.stop_if_asked, collector)
        self.state.model.train()
        return metrics

    # Stopping and saving

    def stop_if_asked(self) -> None:
        """Save and raise Stopped if any rank was asked to stop."""
        if self.runtime.should_stop():
            self.stop()

    def stop(self) -> None:
        """Save and raise Stopped."""
        self.timer.stop()
        self.save()
        self.runtime.run_on_main(self.writer.finish)
        raise Stopped(f"at step {self.progress.step}, with a checkpoint")

    def save(self) -> None:
        """Start writing a checkpoint of the current step in the background."""
        with self.timer.paused():
            self.early_stopping.note_time()
            data = self.checkpoint_data()
            if self.runtime.is_main or self.rollback_data is not None:
                data = data.to_host()
            if self.rollback_data is not None:
                self.rollback_data = data
            if self.runtime.is_main:
                best = self.progress.best.get("step")
                self.writer.submit(self.progress.step, data, None if best is None else int(best))
        self.saved_step = self.progress.step

    def checkpoint_data(self) -> CheckpointData:
        """The state with the run's id, settings, hardware and data, as a checkpoint. Every rank must call it."""
        return self.state.checkpoint_data(
            {
                "run_id": self.run_id,
                "config": self.config.to_dict(),
                "machine": self.runtime.fingerprint(),
                "data": self.data.digests,
            }
        )

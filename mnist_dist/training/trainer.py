"""The training loop: epochs, steps, and what happens between them. One explicit loop, no callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mnist_dist.checkpoint.async_writer import CheckpointWriter
from mnist_dist.checkpoint.manager import CheckpointData
from mnist_dist.config.schema import Config
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import Splits
from mnist_dist.data.loader import DeviceLoader
from mnist_dist.data.sampler import GlobalBatchSampler
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.models.summary import count_parameters
from mnist_dist.training.compile import compiled
from mnist_dist.training.evaluation import Note, evaluate, ignore
from mnist_dist.training.metric_logger import MetricLogger, TrainTimer
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.nonfinite import apply_policy
from mnist_dist.training.profiler import StepProfiler, measure_peaks
from mnist_dist.training.state import TrainingState, can_fuse
from mnist_dist.training.train_step import TrainStep
from mnist_dist.training.visualizer import Visualizer
from mnist_dist.utils.errors import Stopped, UserError


class Trainer:
    """A model in training: builds the optimizer and its wrappers, then trains, evaluates and saves.

    Args:
        model: placed on the device.
        data: the three sets, on the device.
        run_id: what trackers know the run by, over all its stops and resumes.

    Raises:
        UserError: there is no whole batch to train on.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        model: nn.Module,
        data: Splits,
        console: Console,
        run_id: str,
    ) -> None:
        self.config, self.runtime, self.data, self.console = config, runtime, data, console
        self.run_id = run_id
        self.state = TrainingState(model, config, runtime)
        self.model, self.progress = model, self.state.progress
        self.timer = TrainTimer(self.progress, runtime.comm_timer)
        self.metric_logger = MetricLogger(self.state, console, self.timer)
        self.sampler = GlobalBatchSampler(
            len(data.train),
            config.train.batch_size,
            rank=runtime.rank,
            world_size=runtime.world_size,
            shards=runtime.shards,
            accumulate=config.train.accumulate,
            seed=config.run.seed,
            shuffle=not config.train.overfit_batches,
            drop_last=config.data.drop_last,
        )
        if not len(self.sampler):
            raise UserError(
                f"data.drop_last=true leaves nothing: {len(data.train)} training images are less than one batch of "
                f"train.batch_size={config.train.batch_size}; lower it or keep the last batch"
            )
        self.total_steps = config.train.epochs * len(self.sampler)
        self.last_step = min(config.train.max_steps or self.total_steps, self.total_steps)
        self.train_step = TrainStep(self.state, config, runtime, self.total_steps)
        self.saved_step = -1
        self.snapshot: CheckpointData | None = None  # the last one, where a rollback may need it
        self.held_out_metrics: Metrics | None = None  # the last evaluation on the held-out set

    @property
    def eval_model(self) -> nn.Module:
        """What is evaluated and exported, as `TrainingState.network`: every process must ask for it."""
        return self.state.eval_model

    @property
    def held_out(self) -> str:
        """The set that is watched while training: `val`, or `test` where nothing is held out."""
        return self.data.held_out[0]

    def describe(self) -> dict[str, str]:
        """The choices of this run, for the console."""
        config, progress = self.config, self.progress
        fused = " (fused)" if can_fuse(self.runtime) else ""
        steps = f"{self.last_step} ({config.train.epochs} epochs x {len(self.sampler)})"
        return {
            "model": f"{config.model.name}, {count_parameters(self.model):,} parameters",
            "gradients": self.train_step.strategy.describe(),
            "optimizer": f"{config.optim.name}{fused}, lr {config.optim.lr:g} {config.optim.schedule}",
            "steps": f"{steps} of {config.train.batch_size} images"
            + (f", {progress.step} done" if progress.step else ""),
        }

    # The loop

    def train(
        self,
        checkpoints: Path,
        record: Callable[[dict[str, Any]], None],
        rewind: Callable[[int], None] = lambda step: None,
        profile: Path = Path("profile"),
        visualizer: Visualizer | None = None,
    ) -> None:
        """Train from the present position to the last step.

        Args:
            checkpoints: the folder they go to.
            record: takes one row of metrics, on every process; only the main one keeps it.
            rewind: told a step, the rows of later ones are void.
            profile: the folder that train.profile's trace goes to.
            insights: shows what an evaluation at an epoch's or the run's end saw; on all processes or none.

        Raises:
            Stopped: a stop was asked for, and a checkpoint is written.
            TrainingError: an update was not finite, as train.nonfinite says, or the last checkpoint cannot be written.
        """
        self.metric_logger.record, self.rewind, self.visualizer = record, rewind, visualizer
        self.writer = CheckpointWriter(checkpoints, self.config.train.keep, self.console.warn)
        train, runtime = self.config.train, self.runtime
        self.metric_logger.peak = measure_peaks(runtime) if train.profile else 0.0
        self.profile = StepProfiler(train.profile, self.last_step - self.progress.step, profile, self.metric_logger)
        images = train.batch_size // runtime.world_size // train.accumulate
        try:
            with compiled(self.model, train.compile, images, runtime, self.console):
                self.train_epochs()
        finally:
            self.profile.finish()
            self.writer.wait()

    def train_epochs(self) -> None:
        """From the present position to the last step."""
        if self.config.train.nonfinite == "rollback":
            self.snapshot = self.take_snapshot().to_host()
        self.console.begin(self.last_step, self.progress.step, self.config.train.epochs)
        if self.is_evaluation_due():  # a stop during the evaluation left it to us
            self.evaluate_between_epochs()
        while self.progress.step < self.last_step or self.is_epoch_done():
            self.train_epoch()
            if self.is_epoch_done():
                self.finish_epoch()
        if self.progress.evaluated != self.progress.step:
            self.watch(self.visualizer)
        if self.held_out_metrics is None:  # it was recorded before a stop between the last checkpoint and the summary
            self.held_out_metrics = self.evaluate(self.held_out)
        if self.saved_step != self.progress.step:
            self.save()
        self.runtime.run_on_main(self.writer.finish)

    def train_epoch(self) -> None:
        """The rest of the epoch in progress, up to the last step."""
        progress, train = self.progress, self.config.train
        self.sampler.load_state_dict({"epoch": progress.epoch, "start": progress.step_in_epoch})
        batches = DeviceLoader(self.data.train, self.sampler, self.config.data, augment=not train.overfit_batches)
        self.model.train()
        self.timer.start()
        for batch in batches:
            self.profile.before_step(batch.size)
            self.train_step.learn(batch)
            progress.step += 1
            progress.step_in_epoch += 1
            self.metric_logger.images += batch.size
            self.console.progress(progress.step, progress.epoch)
            logs = (
                progress.step % self.config.tracking.log_steps == 0
                or self.is_epoch_done()
                or progress.step == self.last_step
            )
            saves = train.checkpoint_steps and progress.step % train.checkpoint_steps == 0 and not self.is_epoch_done()
            stops = self.runtime.should_stop()
            if (logs or saves or stops or self.is_evaluation_due()) and self.handle_nonfinite():
                break  # these batches lie ahead again, and perhaps in another epoch
            if logs:
                self.metric_logger.log_window(self.train_step.lr)
            if self.is_evaluation_due():
                self.evaluate_between_epochs()
            if saves:
                self.save()
            if stops:
                self.stop()
            if progress.step == self.last_step:
                break
        self.timer.stop()

    def handle_nonfinite(self) -> bool:
        """Act on updates that were left out; whether the run went back to its last snapshot, to go on at half the rate.

        Raises:
            TrainingError: it is not to go on, or cannot.
        """
        setback = apply_policy(self.train_step.guard, self.state, self.config, self.console.warn)
        if setback is None:
            return False
        assert self.snapshot is not None
        self.timer.stop()
        rollbacks, skip_batches = self.progress.rollbacks + 1, sorted({*self.progress.skip_batches, setback.avoid})
        self.restore(self.snapshot, "the last checkpoint")
        self.progress.rollbacks, self.progress.skip_batches = rollbacks, skip_batches
        self.rewind(self.progress.step)
        self.console.warn(
            f"{setback.what}; went back to step {self.progress.step}, to go on at half the rate, "
            "without the first such batch"
        )
        return True

    def finish_epoch(self) -> None:
        """Evaluate, show the epoch's row, and save."""
        progress = self.progress
        shows = (
            self.config.tracking.has_media(progress.epoch + 1, self.config.train.epochs)
            or progress.step == self.last_step
        )
        held_out_metrics = self.watch(self.visualizer if shows else None)
        self.metric_logger.log_epoch(self.train_step.lr, self.held_out, held_out_metrics)
        progress.epoch += 1
        progress.step_in_epoch = 0
        if len(self.data.val):
            progress.note_best(held_out_metrics.accuracy, held_out_metrics.loss)
        self.save()

    # Parts of the loop

    def is_epoch_done(self) -> bool:
        """Whether all batches of the epoch in progress are done, and it is not finished yet."""
        return self.progress.step_in_epoch == len(self.sampler)

    def is_evaluation_due(self) -> bool:
        """Whether train.eval_steps asks for an evaluation now, and it has not been done."""
        every, progress = self.config.train.eval_steps, self.progress
        due = every and progress.step and progress.step % every == 0 and not self.is_epoch_done()
        return bool(due and progress.evaluated != progress.step)

    def evaluate_between_epochs(self) -> None:
        """Evaluate on the held-out set in the middle of an epoch."""
        self.console.evaluation(self.held_out, self.watch().row(self.held_out))

    def watch(self, visualizer: Visualizer | None = None) -> Metrics:
        """Evaluate on the held-out set and record it, and show what it saw."""
        self.profile.finish()
        metrics = self.held_out_metrics = self.evaluate(self.held_out, visualizer.note if visualizer else ignore)
        self.progress.evaluated = self.progress.step
        self.metric_logger.write(metrics.row(self.held_out) | metrics.details(self.held_out))
        if visualizer:
            with self.timer.paused():
                visualizer.show()
        return metrics

    def evaluate(self, name: str, note: Note = ignore) -> Metrics:
        """Metrics of the network on a split, `train`, `val` or `test`; a stop may be asked for meanwhile."""
        size, data = self.config.train.eval_batch_size, getattr(self.data, name)
        with self.timer.paused():
            metrics = evaluate(self.eval_model, data, self.config.data, self.runtime, size, self.stop_if_asked, note)
        self.model.train()
        return metrics

    def stop_if_asked(self) -> None:
        """Save and raise Stopped if any process was asked to stop."""
        if self.runtime.should_stop():
            self.stop()

    def stop(self) -> None:
        """Save and raise Stopped."""
        self.timer.stop()
        self.save()
        self.runtime.run_on_main(self.writer.finish)
        raise Stopped(f"at step {self.progress.step}, with a checkpoint")

    # Saving and restoring

    def take_snapshot(self) -> CheckpointData:
        """The present state. Every process must call it."""
        facts = {"run_id": self.run_id, "config": self.config.to_dict(), "machine": self.runtime.fingerprint()}
        return self.state.snapshot(facts)

    def save(self) -> None:
        """Have a checkpoint of the present position written while training goes on."""
        with self.timer.paused():
            saved = self.take_snapshot()
            if self.runtime.is_main or self.snapshot is not None:
                saved = saved.to_host()
            if self.snapshot is not None:
                self.snapshot = saved
            if self.runtime.is_main:
                best = self.progress.best.get("step")
                self.writer.submit(self.progress.step, saved, None if best is None else int(best))
        self.saved_step = self.progress.step

    def restore(self, saved: CheckpointData, source: str) -> None:
        """Continue where a checkpoint was written, with any number of processes.

        Raises:
            UserError: it belongs to another model, or to an epoch of fewer batches.
        """
        done = saved.state["progress"]["step_in_epoch"]
        if done > len(self.sampler):
            raise UserError(
                f"{source}: is at batch {done} of an epoch that has {len(self.sampler)}; choose another one"
            )
        self.state.restore(saved, source)
        self.saved_step = self.progress.step
        self.metric_logger.begin_window()
        self.train_step.restore_lr()

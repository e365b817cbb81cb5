"""The training loop: epochs, steps, and what happens between them. One explicit loop, no callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mnist_dist.checkpoint import Saved, load_weights, prune_checkpoints, save_checkpoint
from mnist_dist.config import Config
from mnist_dist.console import Console
from mnist_dist.data.batches import Batch, Batches
from mnist_dist.data.order import GlobalBatchSampler
from mnist_dist.data.splits import Splits
from mnist_dist.errors import Stopped, TrainingError, UserError
from mnist_dist.evaluation import evaluate
from mnist_dist.gradients import build_gradients
from mnist_dist.metrics import Counts, Metrics
from mnist_dist.models.summary import count_parameters
from mnist_dist.optim.builder import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_lr
from mnist_dist.optim.ema import build_ema
from mnist_dist.optim.schedules import lr_at
from mnist_dist.position import Position
from mnist_dist.runtime import Runtime


class Loop:
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
        self.raw = model
        self.ema: AveragedModel | None = build_ema(model, config.optim.ema)
        self.optimizer = build_optimizer(model, config.optim, fused=can_fuse(runtime))
        self.gradients = build_gradients(model, config, runtime)
        self.stepper = runtime.stepper(self.optimizer)
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
        self.at = Position()
        self.lr = 0.0  # of the last update
        self.saved_step = -1
        self.watched: Metrics | None = None  # the last evaluation on the held-out set
        self.window = Counts(runtime.device)  # since the last row of metrics, this process only
        self.epoch_counts = Counts(runtime.device)  # since the epoch began, without the window
        self.window_images = 0
        self.window_start = 0.0  # in seconds of training
        self.clock_start = 0.0  # when the clock of training was started; 0 while it stands

    @property
    def network(self) -> nn.Module:
        """What is evaluated and exported: the moving average of the weights where there is one."""
        return self.raw if self.ema is None else self.ema.module

    @property
    def held_out(self) -> str:
        """The set that is watched while training: `val`, or `test` where nothing is held out."""
        return "val" if len(self.data.val) else "test"

    def describe(self) -> dict[str, str]:
        """The choices of this run, for the console."""
        config, at = self.config, self.at
        steps = f"{self.last_step} ({config.train.epochs} epochs x {len(self.sampler)})"
        return {
            "model": f"{config.model.name}, {count_parameters(self.raw):,} parameters",
            "gradients": self.gradients.describe(),
            "optimizer": f"{config.optim.name}, lr {config.optim.lr:g} {config.optim.schedule}",
            "steps": f"{steps} of {config.train.batch_size} images" + (f", {at.step} done" if at.step else ""),
        }

    # The loop

    def train(self, checkpoints: Path, record: Callable[[dict[str, Any]], None]) -> None:
        """Train from the present position to the last step.

        Args:
            checkpoints: the folder they go to.
            record: takes one row of metrics, on every process; only the main one keeps it.

        Raises:
            Stopped: a stop was asked for, and a checkpoint is written.
            TrainingError: the loss is not finite, or a checkpoint cannot be written.
        """
        self.checkpoints, self.record = checkpoints, record
        self.console.begin(self.last_step, self.at.step, self.config.train.epochs)
        if self.is_evaluation_due():  # a stop during the evaluation left it to us
            self.evaluate_between_epochs()
        while self.at.step < self.last_step or self.is_epoch_done():
            self.train_epoch()
            if self.is_epoch_done():
                self.finish_epoch()
        if self.at.evaluated != self.at.step:
            self.watch()
        if self.watched is None:  # it was recorded before a stop between the last checkpoint and the summary
            self.watched = self.evaluate(self.held_out)
        if self.saved_step != self.at.step:
            self.save()

    def train_epoch(self) -> None:
        """The rest of the epoch in progress, up to the last step."""
        at, train = self.at, self.config.train
        self.sampler.load_state_dict({"epoch": at.epoch, "start": at.step_in_epoch})
        batches = Batches(self.data.train, self.sampler, self.config.data, augment=not train.overfit_batches)
        self.raw.train()
        self.start_clock()
        for batch in batches:
            self.train_step(batch)
            at.step += 1
            at.step_in_epoch += 1
            at.images += batch.size
            self.window_images += batch.size
            self.console.progress(at.step, at.epoch)
            if at.step % self.config.tracking.log_steps == 0 or self.is_epoch_done() or at.step == self.last_step:
                self.log_window()
            if self.is_evaluation_due():
                self.evaluate_between_epochs()
            if train.checkpoint_steps and at.step % train.checkpoint_steps == 0 and not self.is_epoch_done():
                self.save()
            self.stop_if_asked()
            if at.step == self.last_step:
                break
        self.stop_clock()

    def train_step(self, batch: Batch) -> None:
        """Learn from one global batch, in as many parts as the configuration says."""
        at, optim, runtime = self.at, self.config.optim, self.runtime
        self.lr = lr_at(at.step - at.skipped, self.total_steps, optim)
        set_lr(self.optimizer, self.lr)
        for seen in self.gradients.compute(batch, at.step):
            self.window.add(*seen)
        if optim.clip:
            runtime.clip(self.raw, optim.clip)
        self.stepper.step()
        if self.stepper.step_was_skipped:
            at.skipped += 1
        elif self.ema is not None:
            self.ema.update_parameters(self.raw)

    def finish_epoch(self) -> None:
        """Evaluate, show the epoch's row, and save."""
        at = self.at
        epoch = Metrics.from_counts(self.runtime.sum(self.epoch_counts.tensor.clone()).tolist())
        watched = self.watch()
        row = {"epoch": at.epoch + 1, "split": self.held_out, "lr": self.lr, "seconds": at.seconds}
        row |= epoch.row("epoch.train") | watched.row(self.held_out)
        self.write_row(epoch.row("epoch.train") | epoch.details("epoch.train") | {"epoch.seconds": at.seconds})
        self.console.epoch(row)
        at.epoch += 1
        at.step_in_epoch = 0
        self.epoch_counts.clear()
        if len(self.data.val):
            at.note_best(watched)
        self.save()

    # Parts of the loop

    def is_epoch_done(self) -> bool:
        """Whether all batches of the epoch in progress are done, and it is not finished yet."""
        return self.at.step_in_epoch == len(self.sampler)

    def is_evaluation_due(self) -> bool:
        """Whether train.eval_steps asks for an evaluation now, and it has not been done."""
        every, at = self.config.train.eval_steps, self.at
        due = every and at.step and at.step % every == 0 and not self.is_epoch_done()
        return bool(due and at.evaluated != at.step)

    def evaluate_between_epochs(self) -> None:
        """Evaluate on the held-out set in the middle of an epoch."""
        self.console.evaluation(self.held_out, self.watch().row(self.held_out))

    def watch(self) -> Metrics:
        """Evaluate on the held-out set and record it."""
        metrics = self.watched = self.evaluate(self.held_out)
        self.at.evaluated = self.at.step
        self.write_row(metrics.row(self.held_out) | metrics.details(self.held_out))
        return metrics

    def evaluate(self, name: str) -> Metrics:
        """Metrics of the network on a split, `train`, `val` or `test`; a stop may be asked for meanwhile."""
        running = self.stop_clock()
        size = self.config.train.eval_batch_size
        data = getattr(self.data, name)
        metrics = evaluate(self.network, data, self.config.data, self.runtime, size, self.stop_if_asked)
        self.raw.train()
        if running:
            self.start_clock()
        return metrics

    def log_window(self) -> None:
        """Sum the metrics of the steps since the last row over all processes, record and show them."""
        metrics = Metrics.from_counts(self.runtime.sum(self.window.tensor.clone()).tolist())
        now = self.trained_seconds()
        row = {
            "train.loss": metrics.loss,
            "train.accuracy": metrics.accuracy,
            "lr": self.lr,
            "images_per_second": self.window_images / max(now - self.window_start, 1e-9),
        }
        self.write_row(row)
        self.console.metrics(row)
        if metrics.nonfinite:
            raise TrainingError(
                f"the loss of {metrics.nonfinite} images was not finite in the steps up to {self.at.step} "
                f"(epoch {self.at.epoch + 1}); lower optim.lr={self.config.optim.lr:g}, raise optim.warmup or set "
                "optim.clip, and find the operation with --train.detect_anomaly=true",
                everywhere=True,
            )
        self.epoch_counts.merge(self.window)
        self.window.clear()
        self.window_start, self.window_images = now, 0

    def write_row(self, row: dict[str, Any]) -> None:
        """Record metrics of the present step."""
        self.record({"step": self.at.step, "epoch": self.at.epoch + 1, "time": time.time(), **row})

    def stop_if_asked(self) -> None:
        """Save and raise Stopped if any process was asked to stop."""
        if self.runtime.should_stop():
            self.stop_clock()
            self.save()
            raise Stopped(f"at step {self.at.step}, with a checkpoint")

    def start_clock(self) -> None:
        """Training time runs from here."""
        self.clock_start = time.perf_counter()

    def trained_seconds(self) -> float:
        """Time spent in training steps so far."""
        return self.at.seconds + (time.perf_counter() - self.clock_start if self.clock_start else 0.0)

    def stop_clock(self) -> bool:
        """Add the time since `start_clock` to the position; whether the clock was running."""
        running = bool(self.clock_start)
        self.at.seconds, self.clock_start = self.trained_seconds(), 0.0
        return running

    # Saving and restoring

    def save(self) -> None:
        """Write a checkpoint of the present position, then delete those not to be kept."""
        running = self.stop_clock()
        counts = torch.stack([self.window.tensor, self.epoch_counts.tensor])
        window, epoch = self.runtime.sum(counts).tolist()
        self.runtime.on_main(lambda: self.write(window, epoch))
        self.saved_step = self.at.step
        if running:
            self.start_clock()

    def write(self, window: list[int], epoch: list[int]) -> None:
        """The main process's part of `save`."""
        state = {
            "run_id": self.run_id,
            "position": asdict(self.at),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
            "window": window,
            "epoch_counts": epoch,
            "scaler": self.runtime.scaler_state(),
            "config": self.config.to_dict(),
        }
        tensors = optimizer_tensors(self.optimizer, self.raw)
        ema = {} if self.ema is None else self.ema.module.state_dict()
        save_checkpoint(self.checkpoints, self.at.step, Saved(self.raw.state_dict(), tensors, ema, state))
        prune_checkpoints(self.checkpoints, self.config.train.keep, int(self.at.best.get("step", -1)))

    def restore(self, saved: Saved, source: str) -> None:
        """Continue where a checkpoint was written, with any number of processes.

        Raises:
            UserError: it belongs to another model.
        """
        load_weights(self.raw, saved.model, f"{source}/model.safetensors")
        if self.ema is not None:
            load_weights(self.ema.module, saved.ema, f"{source}/ema.safetensors")
            self.ema.n_averaged.fill_(saved.state["ema_updates"])
        load_optimizer_tensors(self.optimizer, self.raw, saved.optimizer)
        self.at = Position(**saved.state["position"])
        self.saved_step, self.window_start = self.at.step, self.at.seconds
        self.lr = lr_at(max(self.at.step - self.at.skipped - 1, 0), self.total_steps, self.config.optim)
        self.runtime.load_scaler_state(saved.state["scaler"])
        if self.runtime.is_main:  # the counts are sums over all processes: one of them goes on with them
            self.window = Counts(self.runtime.device, torch.tensor(saved.state["window"]))
            self.epoch_counts = Counts(self.runtime.device, torch.tensor(saved.state["epoch_counts"]))


def can_fuse(runtime: Runtime) -> bool:
    """Whether the optimizer may be one fused kernel: not with a gradient scaler, which it would hide skips from."""
    return runtime.precision != "fp16" and runtime.device.type in ("cpu", "cuda")

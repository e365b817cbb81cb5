"""Data parallelism: each rank trains on its slice of the batch, and DistributedDataParallel averages the gradients."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.device import seed_generator
from mnist_dist.distributed.replicated import ReplicatedStrategy
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.step_output import BatchOutput, StepOutput, flat_views, image_losses
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.rng import derive_seed


class DDPStrategy(ReplicatedStrategy):
    """See `Strategy`. On one rank nothing is averaged."""

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.local_model = self.wrapped_model = model
        self.buffers = list(model.buffers()) if runtime.world_size > 1 else []

    def wrap_model(self) -> None:
        """Wrap the model in DistributedDataParallel and autocast.

        Raises:
            UserError: TORCH_DISTRIBUTED_DEBUG=DETAIL, with which it crashes on CPUs (seen in torch 2.10 to 2.15).
        """
        runtime, model = self.runtime, self.local_model
        is_detailed = os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL"
        if is_detailed and runtime.world_size > 1 and runtime.device.type == "cpu":
            raise UserError(
                "TORCH_DISTRIBUTED_DEBUG=DETAIL (environment): torch's DistributedDataParallel crashes with it on "
                "CPUs; use INFO, or fixed shards (train.shards)"
            )
        self.wrapped_model = runtime.accelerator.prepare_model(model, device_placement=False)
        if runtime.world_size == 1:
            return
        runtime.on_exit.callback(release_reducer, self.wrapped_model)
        # After this rank's last gradient, backward only waits for the all-reduce: that is communication time.
        self.warm_up_buckets().register_post_accumulate_grad_hook(runtime.step_timer.end_compute)

    def warm_up_buckets(self) -> nn.Parameter:
        """Warm up DDP: one dummy backward, so that its buckets are rebuilt before step 1.

        DDP rebuilds its buckets after the first backward, and with three or more ranks the order of a sum depends on
        the buckets. Without the warm-up, the first gradient after a resume would be rounded differently.

        Returns:
            The parameter that gets its gradient last.
        """
        before = [buffer.clone() for buffer in self.buffers]
        order: list[Any] = []
        trained = [parameter for parameter in self.local_model.parameters() if parameter.requires_grad]
        hooks = [parameter.register_post_accumulate_grad_hook(order.append) for parameter in trained]
        self.wrapped_model.train()
        images = torch.zeros(2, 1, 28, 28, device=self.runtime.device)  # of one, BatchNorm1d could take no variance
        self.runtime.mixed_precision.scale_loss(self.wrapped_model(images).sum()).backward()
        self.wrapped_model.zero_grad()
        with torch.no_grad():
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)
        for hook in hooks:
            hook.remove()
        return order[-1]

    def describe(self) -> str:
        """See `Strategy`."""
        ranks, compress = self.runtime.world_size, self.config.train.compress
        if ranks == 1:
            return "whole batch"
        sent = "" if compress == "no" else f", sent in {compress}"
        return f"averaged over {ranks} processes by DistributedDataParallel{sent}"

    def forward_backward(self, batch: Batch, step: int) -> StepOutput:
        """See `Strategy`."""
        config, runtime = self.config, self.runtime
        self.wrapped_model.zero_grad()
        seed_generator(derive_seed(config.run.seed, "dropout", step, runtime.rank), runtime.device)
        outputs = []
        for number, (images, labels) in enumerate(batch.microbatches(0), start=1):
            is_last = number == config.train.accumulate
            with contextlib.nullcontext() if is_last else runtime.accelerator.no_sync(self.wrapped_model):
                logits = self.forward(images)
                losses = image_losses(logits, labels, config)
                # DDP averages over ranks. With this factor the average is the mean over all images of the global batch.
                loss = losses.sum() * (runtime.world_size / batch.size)
                runtime.mixed_precision.scale_loss(loss).backward()
            runtime.step_timer.enter("compute")
            logits = logits.detach()
            if config.train.compile == "reduce-overhead":  # the next replay of the CUDA graph overwrites its output
                logits = logits.clone()
            outputs.append(BatchOutput(logits, labels, losses.detach()))
        self.average_buffers(sum(len(output.labels) for output in outputs) / batch.size)
        return StepOutput(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, computed in the precision of the run."""
        return self.wrapped_model(images)

    @torch.no_grad()
    def average_buffers(self, weight: float) -> None:
        """Reduce the model's buffers over ranks: floating-point ones by weighted mean, integer ones by maximum.

        Args:
            weight: weight of this rank: its fraction of the images of the global batch.
        """
        statistics = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        if statistics:
            total = self.runtime.all_reduce_sum(torch.cat([buffer.flatten() for buffer in statistics]).mul_(weight))
            for buffer, average in zip(statistics, flat_views(total, statistics), strict=True):
                buffer.copy_(average)
        for buffer in self.buffers:
            if not buffer.is_floating_point():
                self.runtime.all_reduce_max(buffer)

    def grad_norm(self) -> Tensor:
        """See `Strategy`."""
        return nn.utils.get_total_norm([p.grad for p in self.wrapped_model.parameters() if p.grad is not None])


def release_reducer(model: nn.Module) -> None:
    """Free the reducer of a DistributedDataParallel before its process group is destroyed.

    Otherwise the reducer may hold the last reference to the group. Its destructor would then join gloo's threads with
    the GIL held, while one of them waits for the GIL to free a tensor: the process hangs (seen with torch 2.10).
    """
    for part in model.modules():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            del part.reducer, part.logger

"""The gradient of one global batch, in ways that give the same mean: DistributedDataParallel, or fixed shards.

Both, and FSDP2 in `sharding`, leave it in the `grad` of the parameters that this process keeps, and give back what the
model said of this process's images. With fixed shards it is also the same, bit for bit, at any number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.device import seed_generator
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.strategy import BatchOutput, losses_of, views
from mnist_dist.utils.rng import derive_seed


class DDPStrategy:
    """Each process computes one share of the batch, and DistributedDataParallel averages while backward runs."""

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.model = runtime.wrap(model)
        self.buffers = list(model.buffers()) if runtime.world_size > 1 else []
        if runtime.world_size > 1:
            if runtime.device.type == "cpu":  # elsewhere the host sees nothing of it
                # Backward waits for the other processes at its end: from the last gradient to its return.
                for parameter in model.parameters():
                    parameter.register_post_accumulate_grad_hook(runtime.comm_timer.begin)
            self.settle()

    def settle(self) -> None:
        """Compute a gradient that nobody uses.

        DistributedDataParallel arranges its buckets anew after the first one it computes, and with three processes or
        more the order of a sum depends on that. So a run that goes on would add up its first gradient otherwise than
        one that was never interrupted.
        """
        before = [buffer.clone() for buffer in self.buffers]
        self.model.train()
        image = torch.zeros(1, 1, 28, 28, device=self.runtime.device)
        self.runtime.scale(self.model(image).sum()).backward()
        self.model.zero_grad()
        with torch.no_grad():
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)

    def describe(self) -> str:
        """The way in words."""
        processes = self.runtime.world_size
        if processes == 1:
            return "whole batch"
        compress = self.config.train.compress
        sent = "" if compress == "no" else f", sent in {compress}"
        return f"averaged over {processes} processes by DistributedDataParallel{sent}"

    def compute(self, batch: Batch, step: int) -> list[BatchOutput]:
        """See `Strategy`."""
        config, runtime = self.config, self.runtime
        self.model.zero_grad()
        seed_generator(derive_seed(config.run.seed, "dropout", step, runtime.rank), runtime.device)
        seen = []
        for part, (images, labels) in enumerate(batch.microbatches(0), start=1):
            with runtime.no_sync(self.model, last=part == config.train.accumulate):
                logits = self.predict(images)
                losses = losses_of(logits, labels, config)
                # Gradients are averaged over processes, so this makes their average the mean over the global batch.
                runtime.scale(losses.sum() * (runtime.world_size / batch.size)).backward()
            if part == config.train.accumulate:
                runtime.comm_timer.end()
            seen.append(BatchOutput(logits.detach(), labels, losses.detach()))
        self.combine_buffers(sum(len(part.labels) for part in seen) / batch.size)
        return seen

    def predict(self, images: Tensor) -> Tensor:
        """Logits, in the run's precision."""
        return self.model(images)

    def norm(self) -> Tensor:
        """L2 norm of the gradient."""
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def clip(self, limit: float) -> Tensor:
        """See `Strategy`."""
        return self.runtime.clip(self.model, limit)

    @torch.no_grad()
    def combine_buffers(self, weight: float) -> None:
        """Give all processes the same buffers (running statistics), each one's weighted by its images."""
        statistics = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        if statistics:
            total = self.runtime.all_reduce_sum(torch.cat([buffer.flatten() for buffer in statistics]).mul_(weight))
            for buffer, average in zip(statistics, views(total, statistics), strict=True):
                buffer.copy_(average)
        for buffer in self.buffers:
            if not buffer.is_floating_point():
                self.runtime.all_reduce_max(buffer)

"""The gradient of one global batch, in ways that give the same mean: DistributedDataParallel, or fixed shards.

Both, and FSDP2 in `sharding`, leave it in the `grad` of the parameters that this process keeps, and give back what the
model said of this process's images. With fixed shards it is also the same, bit for bit, at any number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.device import seed_generator
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.utils.rng import derive_seed


class Seen(NamedTuple):
    """Of some images: logits (b, 10), labels int64 (b,) and losses (b,), all without gradients."""

    logits: Tensor
    labels: Tensor
    losses: Tensor


class Gradients(Protocol):
    """A way to compute gradients."""

    def compute(self, batch: Batch, step: int) -> Sequence[Seen]:
        """Put the gradient of the mean loss over the global batch into `grad`.

        Args:
            step: number of the batch, from which dropout is seeded.

        Returns:
            what this process saw of the batch; its images only, once each.
        """

    def norm(self) -> Tensor:
        """L2 norm of that whole gradient, a tensor () on the device."""

    def clip(self, limit: float) -> Tensor:
        """The same; if it is larger than `limit`, the gradient is scaled down to that."""

    def describe(self) -> str:
        """The way in words, for the console."""


def losses_of(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Each image's loss (b,), in float32 or better."""
    full = logits.float() if logits.itemsize < 4 else logits
    return F.cross_entropy(full, labels, reduction="none", label_smoothing=config.optim.label_smoothing)


class DataParallel:
    """Each process computes one share of the batch, and DistributedDataParallel averages while backward runs."""

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.model = runtime.wrap(model)
        self.buffers = list(model.buffers()) if runtime.world_size > 1 else []
        if runtime.world_size > 1:
            if runtime.device.type == "cpu":  # elsewhere the host sees nothing of it
                # Backward waits for the other processes at its end: from the last gradient to its return.
                for parameter in model.parameters():
                    parameter.register_post_accumulate_grad_hook(runtime.waits.begin)
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

    def compute(self, batch: Batch, step: int) -> list[Seen]:
        """See `Gradients`."""
        config, runtime = self.config, self.runtime
        self.model.zero_grad()
        seed_generator(derive_seed(config.run.seed, "dropout", step, runtime.rank), runtime.device)
        seen = []
        for part, (images, labels) in enumerate(batch.parts(0), start=1):
            with runtime.part(self.model, last=part == config.train.accumulate):
                logits = self.predict(images)
                losses = losses_of(logits, labels, config)
                # Gradients are averaged over processes, so this makes their average the mean over the global batch.
                runtime.scale(losses.sum() * (runtime.world_size / batch.size)).backward()
            if part == config.train.accumulate:
                runtime.waits.end()
            seen.append(Seen(logits.detach(), labels, losses.detach()))
        self.combine_buffers(sum(len(part.labels) for part in seen) / batch.size)
        return seen

    def predict(self, images: Tensor) -> Tensor:
        """Logits, in the run's precision."""
        return self.model(images)

    def norm(self) -> Tensor:
        """L2 norm of the gradient."""
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def clip(self, limit: float) -> Tensor:
        """See `Gradients`."""
        return self.runtime.clip(self.model, limit)

    @torch.no_grad()
    def combine_buffers(self, weight: float) -> None:
        """Give all processes the same buffers (running statistics), each one's weighted by its images."""
        statistics = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        if statistics:
            total = self.runtime.sum(torch.cat([buffer.flatten() for buffer in statistics]).mul_(weight))
            for buffer, average in zip(statistics, views(total, statistics), strict=True):
                buffer.copy_(average)
        for buffer in self.buffers:
            if not buffer.is_floating_point():
                self.runtime.max(buffer)


class FixedShards:
    """Each process computes its shards one by one; all processes add all shards' gradients in one fixed order.

    Floating-point sums depend on their order, and kernels round differently for another batch size or thread count. So
    neither may depend on the number of processes: a shard is always computed apart, by one thread, and the sum is a
    fixed tree over all shards. The threads that a process has compute several shards at once.

    Each shard has a replica of the model: the same parameters, but buffers of its own (the running statistics of batch
    norms), which all start a step with the model's and are averaged, weighted by images, after it.
    """

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime, self.model = config, runtime, model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = list(model.buffers())
        self.statistics = [b for b in self.buffers if b.is_floating_point()]
        shared = {id(p): p for p in model.parameters()}
        self.replicas = [copy.deepcopy(model, shared.copy()) for _ in range(runtime.local_shards)]
        content = self.parameters + self.statistics
        size = sum(tensor.numel() for tensor in content)
        self.rows = torch.zeros(runtime.local_shards, size, dtype=content[0].dtype, device=content[0].device)
        self.row_views = [views(row, content) for row in self.rows]
        self.total = torch.zeros_like(self.rows[0])
        runtime.share_memory(self.rows.nbytes)
        self.gradient_size = sum(parameter.numel() for parameter in self.parameters)
        self.total_views = views(self.total, content)
        self.draws: bool | None = None  # whether the model draws random numbers; unknown before it was seen at work

    def describe(self) -> str:
        """The way in words."""
        shards = self.runtime.shards
        counts = [str(n) for n in range(1, shards + 1) if shards % n == 0]
        return f"of {shards} fixed shards: the same bits on {' or '.join(counts)} process{'es' * (shards > 1)}"

    def compute(self, batch: Batch, step: int) -> list[Seen]:
        """See `Gradients`."""
        shards = range(len(self.replicas))
        if self.draws is False:
            results = self.runtime.each(lambda shard: self.compute_shard(batch, shard), shards)
        else:
            results = [self.compute_drawing(batch, step, shard) for shard in shards]
        self.combine()
        return [part for result in results for part in result]

    def compute_drawing(self, batch: Batch, step: int, shard: int) -> list[Seen]:
        """Compute a shard that may draw random numbers: from torch's own generator, which threads cannot share."""
        number = self.runtime.rank * len(self.replicas) + shard
        seed_generator(derive_seed(self.config.run.seed, "dropout", step, number), self.runtime.device)
        before = torch.get_rng_state()
        seen = self.compute_shard(batch, shard)
        if seen and self.runtime.device.type == "cpu":  # another device has a generator of its own
            self.draws = bool(self.draws) or not torch.equal(before, torch.get_rng_state())
        return seen

    def compute_shard(self, batch: Batch, shard: int) -> list[Seen]:
        """Leave a shard's gradient and its part of the buffers in its row. Threads do so for several shards at once."""
        model, row = self.replicas[shard], self.row_views[shard]
        with torch.no_grad():
            self.rows[shard].zero_()
            for own, common in zip(model.buffers(), self.buffers, strict=True):
                own.copy_(common)
        seen: list[Seen] = []
        for images, labels in batch.parts(shard):
            if not len(labels):
                continue
            with self.runtime.autocast():
                logits = model(images)
            losses = losses_of(logits, labels, self.config)
            loss = self.runtime.scale(losses.sum() / batch.size)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
            torch._foreach_add_(row[: len(found)], found)
            seen.append(Seen(logits.detach(), labels, losses.detach()))
        weight = sum(len(part.labels) for part in seen) / batch.size
        own_statistics = (b for b in model.buffers() if b.is_floating_point())
        for view, own in zip(row[len(self.parameters) :], own_statistics, strict=True):
            torch.mul(own, weight, out=view)
        return seen

    def norm(self) -> Tensor:
        """L2 norm of the gradient."""
        return torch.linalg.vector_norm(self.total[: self.gradient_size])

    def clip(self, limit: float) -> Tensor:
        """See `Gradients`."""
        return self.runtime.clip(self.model, limit)

    @torch.no_grad()
    def combine(self) -> None:
        """Add all shards' rows, in an order that only their number decides, and put the sums where they belong."""
        rows = add_neighbours(self.runtime.gather_rows(add_neighbours(self.rows)))
        self.total.copy_(rows[0])
        for row in rows[1:]:
            self.total += row
        for parameter, gradient in zip(self.parameters, self.total_views):  # noqa: B905
            parameter.grad = gradient
        for buffer, average in zip(self.statistics, self.total_views[len(self.parameters) :], strict=True):
            buffer.copy_(average)
        self.combine_counters()

    def combine_counters(self) -> None:
        """Give whole-number buffers, as the batches that a batch norm has seen, the largest value of any shard's."""
        for index, buffer in enumerate(self.buffers):
            if not buffer.is_floating_point():
                own = torch.stack([list(replica.buffers())[index] for replica in self.replicas])
                buffer.copy_(self.runtime.max(own.amax(0)))


def add_neighbours(rows: Tensor) -> Tensor:
    """Add rows in pairs (n, P) -> (n/2, P) as long as their number is even.

    Pairs never cross a process's border as long as each process has an even number of rows. So processes may do this to
    their own rows first, and then to the gathered sums: the tree is the one of all rows in one process.
    """
    while len(rows) % 2 == 0:
        rows = rows[0::2] + rows[1::2]
    return rows


def views(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of a flat row, one after the other, each with the shape and the memory format of a dense tensor.

    Of the same memory format, because fused optimizers walk through the memory of gradient and parameter alike.
    """
    pieces, start = [], int(row.storage_offset())
    for tensor in tensors:
        pieces.append(row.as_strided(tensor.shape, tensor.stride(), start))
        start += tensor.numel()
    return pieces

"""Fixed shards: the same gradient, bit for bit, at any number of processes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.device import seed_generator
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.strategy import BatchOutput, losses_of, views
from mnist_dist.utils.rng import derive_seed


class FixedShardStrategy:
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
        runtime.enable_shared_memory(self.rows.nbytes)
        self.gradient_size = sum(parameter.numel() for parameter in self.parameters)
        self.total_views = views(self.total, content)
        self.draws: bool | None = None  # whether the model draws random numbers; unknown before it was seen at work

    def describe(self) -> str:
        """The way in words."""
        shards = self.runtime.shards
        counts = [str(n) for n in range(1, shards + 1) if shards % n == 0]
        return f"of {shards} fixed shards: the same bits on {' or '.join(counts)} process{'es' * (shards > 1)}"

    def compute(self, batch: Batch, step: int) -> list[BatchOutput]:
        """See `Strategy`."""
        shards = range(len(self.replicas))
        if self.draws is False:
            results = self.runtime.map(lambda shard: self.compute_shard(batch, shard), shards)
        else:
            results = [self.compute_drawing(batch, step, shard) for shard in shards]
        self.combine()
        return [part for result in results for part in result]

    def compute_drawing(self, batch: Batch, step: int, shard: int) -> list[BatchOutput]:
        """Compute a shard that may draw random numbers: from torch's own generator, which threads cannot share."""
        number = self.runtime.rank * len(self.replicas) + shard
        seed_generator(derive_seed(self.config.run.seed, "dropout", step, number), self.runtime.device)
        before = torch.get_rng_state()
        seen = self.compute_shard(batch, shard)
        if seen and self.runtime.device.type == "cpu":  # another device has a generator of its own
            self.draws = bool(self.draws) or not torch.equal(before, torch.get_rng_state())
        return seen

    def compute_shard(self, batch: Batch, shard: int) -> list[BatchOutput]:
        """Leave a shard's gradient and its part of the buffers in its row. Threads do so for several shards at once."""
        model, row = self.replicas[shard], self.row_views[shard]
        with torch.no_grad():
            self.rows[shard].zero_()
            for own, common in zip(model.buffers(), self.buffers, strict=True):
                own.copy_(common)
        seen: list[BatchOutput] = []
        for images, labels in batch.microbatches(shard):
            if not len(labels):
                continue
            with self.runtime.autocast():
                logits = model(images)
            losses = losses_of(logits, labels, self.config)
            loss = self.runtime.scale(losses.sum() / batch.size)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
            torch._foreach_add_(row[: len(found)], found)
            seen.append(BatchOutput(logits.detach(), labels, losses.detach()))
        weight = sum(len(part.labels) for part in seen) / batch.size
        own_statistics = (b for b in model.buffers() if b.is_floating_point())
        for view, own in zip(row[len(self.parameters) :], own_statistics, strict=True):
            torch.mul(own, weight, out=view)
        return seen

    def norm(self) -> Tensor:
        """L2 norm of the gradient."""
        return torch.linalg.vector_norm(self.total[: self.gradient_size])

    def clip(self, limit: float) -> Tensor:
        """See `Strategy`."""
        return self.runtime.clip(self.model, limit)

    @torch.no_grad()
    def combine(self) -> None:
        """Add all shards' rows, in an order that only their number decides, and put the sums where they belong."""
        rows = add_neighbours(self.runtime.all_gather(add_neighbours(self.rows)))
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
                buffer.copy_(self.runtime.all_reduce_max(own.amax(0)))


def add_neighbours(rows: Tensor) -> Tensor:
    """Add rows in pairs (n, P) -> (n/2, P) as long as their number is even.

    Pairs never cross a process's border as long as each process has an even number of rows. So processes may do this to
    their own rows first, and then to the gathered sums: the tree is the one of all rows in one process.
    """
    while len(rows) % 2 == 0:
        rows = rows[0::2] + rows[1::2]
    return rows

"""Fixed shards: the gradient of a global batch has the same bits on any number of ranks that divides that of shards.

Floating-point sums depend on their order, and kernels round differently at another batch size or number of threads. So
each shard of the batch is computed separately, by one thread, and the gradients of all shards are added along one fixed
tree. Neither depends on which rank computes a shard. Decision: docs/decisions/0005-fixed-shards-on-cpus.md.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.device import seed_generator
from mnist_dist.distributed.replicated import ReplicatedStrategy
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.step_output import BatchOutput, StepOutput, flat_views, image_losses
from mnist_dist.utils.rng import derive_seed


class FixedShardStrategy(ReplicatedStrategy):
    """See `Strategy`. A rank computes its shards on the threads of its pool, one shard per thread at a time.

    Each shard has a replica of the model, with shared parameters and its own buffers (running statistics of batch
    norms). In each step the buffers of all replicas start with the model's values; then the model gets their mean,
    weighted by images.
    """

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime, self.local_model = config, runtime, model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = list(model.buffers())
        self.statistics = [b for b in self.buffers if b.is_floating_point()]
        shared = {id(p): p for p in model.parameters()}
        self.replicas = [copy.deepcopy(model, shared.copy()) for _ in range(runtime.num_local_shards)]
        # A row per shard of this rank: all gradients, then all weighted statistics. `total` is the sum over all shards.
        reduced = self.parameters + self.statistics
        size = sum(tensor.numel() for tensor in reduced)
        self.rows = torch.zeros(runtime.num_local_shards, size, dtype=reduced[0].dtype, device=reduced[0].device)
        self.row_views = [flat_views(row, reduced) for row in self.rows]
        self.total = torch.zeros_like(self.rows[0])
        self.total_views = flat_views(self.total, reduced)
        self.gradient_size = sum(parameter.numel() for parameter in self.parameters)
        runtime.enable_shared_memory(self.rows.nbytes)
        self.uses_rng: bool | None = None  # whether the model draws random numbers; None before its first forward pass

    def wrap_model(self) -> None:
        """See `Strategy`: does nothing, since the replicas are not wrapped."""

    def describe(self) -> str:
        """See `Strategy`."""
        shards = self.runtime.shards
        *counts, most = [str(n) for n in range(1, shards + 1) if shards % n == 0]
        ranks = f"{', '.join(counts)} or {most} processes" if counts else "1 process"
        return f"of {shards} fixed shard{'s' * (shards > 1)}: the same bits on {ranks}"

    def forward_backward(self, batch: Batch, step: int) -> StepOutput:
        """See `Strategy`."""
        shards = range(len(self.replicas))
        if self.uses_rng is False:
            outputs = self.runtime.map(lambda shard: self.compute_shard(batch, shard), shards)
        else:
            outputs = [self.compute_seeded_shard(batch, step, shard) for shard in shards]
        stop = self.reduce_shards()
        return StepOutput([output for shard in outputs for output in shard], stop)

    def compute_seeded_shard(self, batch: Batch, step: int, shard: int) -> list[BatchOutput]:
        """Compute a shard with seeded dropout. Not on threads: they would share torch's default generator."""
        number = self.runtime.rank * len(self.replicas) + shard
        seed_generator(derive_seed(self.config.run.seed, "dropout", step, number), self.runtime.device)
        before = torch.get_rng_state()
        outputs = self.compute_shard(batch, shard)
        if outputs and self.runtime.device.type == "cpu":  # a GPU has its own generator, which is not checked
            self.uses_rng = bool(self.uses_rng) or not torch.equal(before, torch.get_rng_state())
        return outputs

    def compute_shard(self, batch: Batch, shard: int) -> list[BatchOutput]:
        """Compute the gradient and the weighted statistics of a shard into its row. Threads may call it at once."""
        model, row = self.replicas[shard], self.row_views[shard]
        with torch.no_grad():
            self.rows[shard].zero_()
            for replica_buffer, buffer in zip(model.buffers(), self.buffers, strict=True):
                replica_buffer.copy_(buffer)
        outputs: list[BatchOutput] = []
        for images, labels in batch.microbatches(shard):
            if not len(labels):
                continue
            with self.runtime.mixed_precision.autocast():
                logits = model(images)
            losses = image_losses(logits, labels, self.config)
            loss = self.runtime.mixed_precision.scale_loss(losses.sum() / batch.size)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
            torch._foreach_add_(row[: len(gradients)], gradients)
            outputs.append(BatchOutput(logits.detach(), labels, losses.detach()))
        weight = sum(len(output.labels) for output in outputs) / batch.size
        statistics = (b for b in model.buffers() if b.is_floating_point())
        for view, statistic in zip(row[len(self.parameters) :], statistics, strict=True):
            torch.mul(statistic, weight, out=view)
        return outputs

    @torch.no_grad()
    def reduce_shards(self) -> bool | None:
        """Sum the rows of all shards, in an order that depends only on their number; set gradients and buffers to it.

        Returns:
            `StepOutput.stop`.
        """
        gathered, stop = self.runtime.all_gather_with_stop(add_pairwise(self.rows))
        rows = add_pairwise(gathered)
        self.total.copy_(rows[0])
        for row in rows[1:]:
            self.total += row
        for parameter, gradient in zip(self.parameters, self.total_views[: len(self.parameters)], strict=True):
            parameter.grad = gradient
        for buffer, average in zip(self.statistics, self.total_views[len(self.parameters) :], strict=True):
            buffer.copy_(average)
        for index, buffer in enumerate(self.buffers):
            if not buffer.is_floating_point():  # a batch norm's count of batches: the largest over all shards
                counts = torch.stack([list(replica.buffers())[index] for replica in self.replicas])
                buffer.copy_(self.runtime.all_reduce_max(counts.amax(0)))
        return stop

    def grad_norm(self) -> Tensor:
        """See `Strategy`."""
        return torch.linalg.vector_norm(self.total[: self.gradient_size])


def add_pairwise(rows: Tensor) -> Tensor:
    """Add neighbouring rows in pairs, (n, P) to (n/2, P), until their number is odd.

    While each rank has an even number of rows, no pair is split over two ranks. So the ranks can add their own rows
    before the all-gather and the gathered rows after it: these are the sums that a single rank would form.
    """
    while len(rows) % 2 == 0:
        rows = rows[0::2] + rows[1::2]
    return rows

"""Steps of rank 0 in a fake process group: what a process of a run keeps in memory, and what it sends in a step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import ImageSet
from mnist_dist.data.loader import Batch, DeviceLoader
from mnist_dist.data.sampler import BatchSlice
from mnist_dist.distributed.fake_group import TrafficCounter
from mnist_dist.distributed.fixed_shards import FixedShardStrategy
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.step_output import image_losses
from mnist_dist.optim.optimizer import optimizer_tensors
from mnist_dist.training.rank_shares import RankShares
from mnist_dist.training.state import TrainingState, sampler_of_rank
from mnist_dist.training.train_step import TrainStep

MAX_IMAGES = 64
"""Images of a microbatch that are computed here: a process of the run may have more memory than this machine."""
MEASURED_IMAGES = 4, 8
"""Batch sizes at which activations are measured; they grow linearly with the batch."""


@dataclass(frozen=True)
class StepCost:
    """What a step takes, on rank 0, which never has less than the others."""

    strategy: str
    """How gradients are computed, in words."""
    parameters: int
    memory: dict[str, int]
    """Bytes of the model and the optimizer, by what they are."""
    microbatch: int
    """Images of a forward and backward pass."""
    sent: float
    """Bytes that a process sends, and receives, in a step."""


def measure_step(model: nn.Module, config: Config, runtime: Runtime, data: ImageSet, shares: RankShares) -> StepCost:
    """Do a step of each size that some rank meets, and measure the first one. Every rank must call it.

    Args:
        model: on its device. It is trained, and sharded with FSDP2.
        data: the training images, on the device.

    Raises:
        UserError: the model, the strategy or the optimizer refuses.
    """
    outline = copy.deepcopy(model)
    state = TrainingState(model, config, runtime, images=len(data))
    train_step = TrainStep(state)
    model.train()
    counter = TrafficCounter(runtime.world_size)
    first, *others = trial_batches(config, runtime, data, shares)
    with counter:
        train_step.step(cut(first))
    for batch in others:
        train_step.step(cut(batch))
    microbatch = max(len(part) for shard in first.shards for part in shard)
    activations = measure_activations(outline, config, runtime, microbatch) * runtime.thread_pool.num_threads
    gradients = [parameter.grad for parameter in state.local_model.parameters()]
    if isinstance(state.strategy, FixedShardStrategy):
        gradients = [state.strategy.rows, state.strategy.total]
    memory = {
        "weights": count_bytes(state.local_model.parameters()),
        "buffers": count_bytes(state.local_model.buffers()),
        "gradients": count_bytes(gradients),
        "gathered": counter.gathered,
        config.optim.name: count_bytes(optimizer_tensors(state.optimizer, state.local_model).values()),
        "average": count_bytes(state.ema.module.state_dict().values()) if state.ema else 0,
        "activations": activations,
    }
    strategy = state.strategy.describe()
    return StepCost(strategy, sum(p.numel() for p in outline.parameters()), memory, microbatch, counter.sent)


def trial_batches(config: Config, runtime: Runtime, data: ImageSet, shares: RankShares) -> Iterator[Batch]:
    """Global batches, as some rank sees them: the first of an epoch, and the last with the fewest and the most images.

    Of equal shares only one is yielded.
    """
    last = shares.last_batch
    chosen = {shares.batch[0]: (0, 0)}
    for share in (min(last), max(last)):
        chosen.setdefault(share, (last.index(share), shares.steps_per_epoch - 1))
    for rank, start in chosen.values():
        sampler = sampler_of_rank(config, len(data), rank, runtime.world_size, runtime.shards)
        sampler.load_state_dict({"epoch": 0, "start": start})
        loader = DeviceLoader(data, sampler, config.data, augment=config.augments(0))
        yield next(iter(loader))


def cut(batch: Batch) -> Batch:
    """A batch with the first MAX_IMAGES of each microbatch."""
    shards = (
        tuple(BatchSlice(part.start, min(part.stop, part.start + MAX_IMAGES)) for part in shard)
        for shard in batch.shards
    )
    return Batch(batch.size, tuple(shards), batch.gather)


def measure_activations(model: nn.Module, config: Config, runtime: Runtime, images: int) -> int:
    """Bytes that a forward pass over so many images keeps for the backward pass, besides parameters and buffers."""
    few, more = MEASURED_IMAGES
    least, most = (saved_bytes(model.train(), config, runtime, count) for count in MEASURED_IMAGES)
    return round(least + (most - least) / (more - few) * (images - few))


def saved_bytes(model: nn.Module, config: Config, runtime: Runtime, images: int) -> int:
    """Bytes that autograd keeps for the backward pass over so many images, besides the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.zeros(images, 1, 28, 28, device=runtime.device)
    labels = torch.zeros(images, dtype=torch.int64, device=runtime.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with runtime.mixed_precision.autocast():
            logits = model(inputs)
        losses = image_losses(logits, labels, config)
    assert losses.requires_grad  # keeps what was saved until here, so that no address is used twice
    return sum(saved.values())


def count_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)

"""The model of a run: the same on all ranks, and tried before training unless it is one of the package as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mnist_dist.checkpoint.format import MAX_TENSOR_BYTES
from mnist_dist.checkpoint.tensors import dump_tensors, parse_tensors
from mnist_dist.config.schema import Config
from mnist_dist.data.identity import short
from mnist_dist.distributed.consistency import check_ranks_agree, run_on_all_ranks
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.models import ModelBuilder, find_builder
from mnist_dist.models.check import check_model
from mnist_dist.training.state import build_sampler
from mnist_dist.utils.errors import UserError


def find_model(config: Config, runtime: Runtime) -> ModelBuilder:
    """The builder of model.name. Code of the user's own is imported, and compared over the ranks.

    Raises:
        UserError: on all ranks, if one cannot import it or has another one.
    """
    builder = run_on_all_ranks(runtime, lambda: find_builder(config.model.name))
    if builder.code is not None:
        check_ranks_agree(runtime, {"the model's code": {name: short(sha) for name, sha in builder.digests.items()}})
    return builder


def build_model(
    builder: ModelBuilder, config: Config, runtime: Runtime, num_classes: int, images: int, warn: Callable[[str], None]
) -> nn.Module:
    """The model on its device, in training mode: the same on all ranks, because each draws its weights from the seed.

    Args:
        num_classes: number of logits.
        images: number of training images.
        warn: takes one line if a parameter gets no gradient.

    Raises:
        UserError: on all ranks, if it cannot be built, trained or saved on one; see `check_model`.
    """
    torch.manual_seed(config.run.seed)
    args = config.model.args
    model = runtime.to_device(run_on_all_ranks(runtime, lambda: builder.build(num_classes, args)))
    if builder.code is not None or args:
        unused = run_on_all_ranks(runtime, lambda: try_model(builder, model, config, runtime, num_classes, images))
        if unused:
            more = f" (nor do {len(unused) - 1} more)" if len(unused) > 1 else ""
            line = f"model.name={builder.name}: parameter {unused[0]} gets no gradient{more}"
            if runtime.world_size > 1 and not runtime.shards and not runtime.topology.fsdp:
                raise UserError(f"{line}: DistributedDataParallel would wait for it; use it, or freeze it")
            warn(f"{line}: it stays as it was drawn")
    return model


def try_model(
    builder: ModelBuilder, model: nn.Module, config: Config, runtime: Runtime, num_classes: int, images: int
) -> list[str]:
    """Names of the parameters without a gradient. Uses no collective. Raises UserError as `build_model` does."""
    where = f"model.name={builder.name}"
    size = sum(p.nbytes for p in model.parameters() if p.requires_grad) * 2  # Adam's moments
    if size > MAX_TENSOR_BYTES:
        raise UserError(
            f"{where}: its checkpoints would have {size:,} bytes; at most {MAX_TENSOR_BYTES:,} could be read"
        )
    try:
        parse_tensors(dump_tensors(model.state_dict()))
    except (ValueError, AttributeError) as error:  # what state_dict holds may be no tensor
        raise UserError(f"{where}: its checkpoints could not be read: {error}") from None
    if runtime.topology.fsdp:
        scalars = [name for name, parameter in model.named_parameters() if not parameter.ndim]
        if scalars:
            raise UserError(f"{where}: parameter {scalars[0]} is a scalar, which FSDP2 cannot shard; make it (1,)")
    sizes = last_batch_sizes(config, runtime, images)
    return check_model(builder, model, num_classes, sizes, runtime.mixed_precision.autocast)


def last_batch_sizes(config: Config, runtime: Runtime, images: int) -> set[int]:
    """Sizes of this rank's forward passes in the first and the last batch of an epoch, if below 2; a fixed shard of 0
    images is left out."""
    sampler = build_sampler(config, runtime, images)
    sizes = set()
    for start in {0, len(sampler) - 1}:
        sampler.load_state_dict({"epoch": 0, "start": start})
        batch = next(sampler.batches())
        sizes |= {len(microbatch) for shard in batch.shards for microbatch in shard}
    return {size for size in sizes if size == 1 or (size == 0 and not runtime.shards)}

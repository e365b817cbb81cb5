"""FSDP2: each rank keeps a shard of every parameter, gradient and optimizer state.

A shard is some rows: dimension 0 is split into equal parts, one per rank, of which the last ones may be smaller or
empty. torch's `fully_shard` gathers whole layers for the forward and backward pass and reduces each rank's shard of the
mean gradient. The optimizer, the average of weights and the checkpoints see plain tensors: `local_model`, a module of
this rank's shards under the names of the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from mnist_dist.config.fsdp import Fsdp
from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.step_output import StepOutput
from mnist_dist.utils.errors import UserError


class FSDPStrategy(DDPStrategy):
    """See `Strategy`. A forward and backward pass as with DDP, but over sharded parameters.

    Parameters are resharded after each accumulated part of a step, so that no whole gradient stays in memory.

    Args:
        model: on its device, with the same values on every rank. It is sharded in place, and computes from then on.
    """

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime, fsdp: Fsdp) -> None:
        from torch.distributed.fsdp import fully_shard  # takes 0.5 s to import

        self.config, self.runtime = config, runtime
        self.meta_model = copy.deepcopy(model).to("meta")  # the whole model's shapes
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        model.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
        mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": fsdp.reshard_after_forward}
        sizes = {module: sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()}
        wrapped = [module for module, size in sizes.items() if size > fsdp.min_num_params]
        for module in (*wrapped, model):  # the model last: it takes the parameters that are left
            fully_shard(module, **options)
        self.groups = len(wrapped) + any(0 < size <= fsdp.min_num_params for size in sizes.values())
        self.wrapped_model, self.buffers = model, list(model.buffers())
        self.local_model = self.build_local_model()

    @torch.no_grad()
    def build_local_model(self) -> nn.Module:
        """A module whose parameters are this rank's shards, and whose buffers are the wrapped model's own."""
        local_model = copy.deepcopy(self.meta_model)
        for module, wrapped in zip(local_model.modules(), self.wrapped_model.modules(), strict=True):
            for name, parameter in wrapped.named_parameters(recurse=False):
                shard = parameter.to_local()  # type: ignore[attr-defined]
                setattr(module, name, nn.Parameter(shard, parameter.requires_grad))
            for name, buffer in wrapped.named_buffers(recurse=False):
                setattr(module, name, buffer)
        return local_model

    def wrap_model(self) -> None:
        """Nothing: the model is sharded already."""

    def describe(self) -> str:
        """How gradients come about."""
        gathered = "the model gathered at once" if self.groups == 1 else f"gathered in {self.groups} groups"
        return f"sharded over {self.runtime.world_size} processes with weights and moments (FSDP2, {gathered})"

    def forward_backward(self, batch: Batch, step: int) -> StepOutput:
        """See `Strategy`."""
        self.local_model.zero_grad()
        output = super().forward_backward(batch, step)
        with torch.no_grad():
            for local, sharded in zip(self.local_model.parameters(), self.wrapped_model.parameters(), strict=True):
                local.grad = None if sharded.grad is None else sharded.grad.to_local()  # type: ignore[attr-defined]
        return output

    def forward(self, images: Tensor) -> Tensor:
        """Logits, in the run's precision."""
        with self.runtime.mixed_precision.autocast():
            return self.wrapped_model(images)

    def grad_norm(self) -> Tensor:
        """See `Strategy`: over the shards of all ranks."""
        shard = nn.utils.get_total_norm([p.grad for p in self.local_model.parameters() if p.grad is not None])
        return self.runtime.all_reduce_sum(shard.double().square()).sqrt().to(shard.dtype)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """See `Strategy`."""
        norm = self.grad_norm()
        nn.utils.clip_grads_with_norm_(self.local_model.parameters(), max_norm, norm)
        return norm

    def full_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Strategy`. In host memory: one whole tensor at a time is on the device."""
        return {name: self.gather_shards(shard, self.full_shape(name, shard)).cpu() for name, shard in tensors.items()}

    def gather_shards(self, shard: Tensor, shape: torch.Size | None) -> Tensor:
        """The whole tensor of this shape, from every rank's shard; None: the tensor is not sharded."""
        if shape is None:
            return shard
        padded = shard.new_zeros(self.shard_rows(shape), *shape[1:])
        padded[: len(shard)] = shard
        return self.runtime.all_gather(padded.view(len(padded), -1)).view(-1, *shape[1:])[: shape[0]]

    def local_state_dict(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """See `Strategy`."""
        return {name: self.take_shard(name, tensor, source) for name, tensor in tensors.items()}

    def take_shard(self, name: str, tensor: Tensor, source: str) -> Tensor:
        """This rank's shard of a whole tensor; the tensor itself if it is not sharded."""
        shape = self.full_shape(name, tensor)
        if shape is None:
            return tensor
        if tensor.shape != shape:
            raise UserError(f"{source}: {name} is {tuple(tensor.shape)}, the model's is {tuple(shape)}")
        rows = self.shard_rows(shape)
        return tensor[self.runtime.rank * rows :][:rows]

    def full_model(self, local_model: nn.Module) -> nn.Module:
        """See `Strategy`: a new model on the device, its tensors gathered."""
        model = copy.deepcopy(self.meta_model).to_empty(device=self.runtime.device)
        model.load_state_dict(self.full_state_dict(local_model.state_dict()))
        return self.runtime.to_device(model)

    def full_shape(self, name: str, tensor: Tensor) -> torch.Size | None:
        """The whole shape of a sharded parameter, or of optimizer state of its shape; None: it is not sharded."""
        shape = self.shapes.get(name) or self.shapes.get(name.rpartition("/")[0])
        return shape if shape and tensor.ndim == len(shape) else None

    def shard_rows(self, shape: torch.Size) -> int:
        """Rows of a shard; the last ones have this many at most."""
        return -(-shape[0] // self.runtime.world_size)

"""FSDP2: each rank has a shard of every parameter, gradient and optimizer state.

A tensor is split along dimension 0 into equal shards, one per rank; the last ones may be smaller or empty. torch's
`fully_shard` gathers the full parameters for the forward and backward pass and reduce-scatters the gradients. The
optimizer, the EMA and checkpoints use plain tensors instead of DTensors: `local_model` is a module of this rank's
shards under the names of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from mnist_dist.config.fsdp import FSDPConfig
from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.step_output import StepOutput
from mnist_dist.utils.errors import UserError


class FSDPStrategy(DDPStrategy):
    """See `Strategy`. Forward and backward passes are those of `DDPStrategy`, over a sharded model.

    Gradients are reduce-scattered after each microbatch, so that no full gradient stays in memory.

    Args:
        model: on its device, with the same values on every rank. It is sharded in place.
        fsdp: FSDP settings of the launcher.
    """

    def __init__(self, model: nn.Module, config: Config, runtime: Runtime, fsdp: FSDPConfig) -> None:
        from torch.distributed.fsdp import fully_shard  # takes 0.5 s to import

        self.config, self.runtime = config, runtime
        self.meta_model = copy.deepcopy(model).to("meta")  # the model's structure, without memory
        self.shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
        model.to(memory_format=torch.contiguous_format)  # fully_shard accepts no other memory format
        mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": fsdp.reshard_after_forward}
        sizes = {module: sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()}
        wrapped = [module for module, size in sizes.items() if size > fsdp.min_num_params]
        for module in (*wrapped, model):  # the model last: it shards the remaining parameters
            fully_shard(module, **options)
        self.groups = len(wrapped) + any(0 < size <= fsdp.min_num_params for size in sizes.values())
        self.wrapped_model, self.buffers = model, list(model.buffers())
        self.local_model = self.build_local_model()

    @torch.no_grad()
    def build_local_model(self) -> nn.Module:
        """A module whose parameters are this rank's shards, in the same memory, with the wrapped model's buffers."""
        local_model = copy.deepcopy(self.meta_model)
        shards: dict[nn.Parameter, nn.Parameter] = {}  # modules that share a parameter share its shard
        for module, wrapped in zip(local_model.modules(), self.wrapped_model.modules(), strict=True):
            for name, parameter in wrapped.named_parameters(recurse=False):
                if parameter not in shards:
                    shards[parameter] = nn.Parameter(parameter.to_local(), parameter.requires_grad)  # type: ignore[attr-defined]
                setattr(module, name, shards[parameter])
            for name, buffer in wrapped.named_buffers(recurse=False):
                setattr(module, name, buffer)
        return local_model

    def wrap_model(self) -> None:
        """See `Strategy`: does nothing, since the model is sharded already."""

    def describe(self) -> str:
        """See `Strategy`."""
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
        """Logits, computed in the precision of the run."""
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
        """See `Strategy`. The full tensors are in host memory; only one at a time is on the device."""
        return {name: self.gather_shards(shard, self.full_shape(name, shard)).cpu() for name, shard in tensors.items()}

    def gather_shards(self, shard: Tensor, shape: torch.Size | None) -> Tensor:
        """The full tensor, gathered from the shards of all ranks.

        Args:
            shard: this rank's shard.
            shape: shape of the full tensor; None if the tensor is not sharded: it is returned as it is.
        """
        if shape is None:
            return shard
        padded = shard.new_zeros(self.shard_rows(shape), *shape[1:])
        padded[: len(shard)] = shard
        return self.runtime.all_gather(padded.view(len(padded), -1)).view(-1, *shape[1:])[: shape[0]]

    def local_state_dict(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """See `Strategy`."""
        return {name: self.take_shard(name, tensor, source) for name, tensor in tensors.items()}

    def take_shard(self, name: str, tensor: Tensor, source: str) -> Tensor:
        """This rank's shard of a full tensor; the tensor itself if it is not sharded."""
        shape = self.full_shape(name, tensor)
        if shape is None:
            return tensor
        if tensor.shape != shape:
            raise UserError(f"{source}: {name} is {tuple(tensor.shape)}, the model's is {tuple(shape)}")
        rows = self.shard_rows(shape)
        return tensor[self.runtime.rank * rows :][:rows]

    def full_model(self, local_model: nn.Module) -> nn.Module:
        """See `Strategy`: a new model on the device, with the gathered tensors."""
        model = copy.deepcopy(self.meta_model).to_empty(device=self.runtime.device)
        model.load_state_dict(self.full_state_dict(local_model.state_dict()))
        return self.runtime.to_device(model)

    def full_shape(self, name: str, tensor: Tensor) -> torch.Size | None:
        """Full shape of a parameter, or of optimizer state with the shape of its parameter; None if not sharded."""
        shape = self.shapes.get(name) or self.shapes.get(name.rpartition("/")[0])
        return shape if shape and tensor.ndim == len(shape) else None

    def shard_rows(self, shape: torch.Size) -> int:
        """Number of rows of a shard. The last shards may have fewer."""
        return -(-shape[0] // self.runtime.world_size)

"""Who keeps what of a model: each process all of it, or (FSDP2) a piece of every parameter, gradient and moment.

A piece is some rows: dimension 0 is cut into as many parts of equal size as there are processes, of which the last
ones may be smaller or empty. torch's `fully_shard` gathers whole layers where the forward and backward pass need them
and gives each process its piece of the mean gradient. Everything else that trains sees plain tensors: a model of the
pieces, which has the names of the whole one, for the optimizer and the moving average.
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
from mnist_dist.distributed.strategy import BatchOutput, Whole
from mnist_dist.utils.errors import UserError


class Pieces:
    """As `Whole`, but every process keeps a piece of each parameter, and all of the buffers.

    Args:
        model: placed on the device, the same on every process. It is cut up in place, and becomes `engine`.
    """

    def __init__(self, model: nn.Module, runtime: Runtime, fsdp: Fsdp) -> None:
        from torch.distributed.fsdp import fully_shard  # takes its time

        self.runtime, self.engine = runtime, model
        self.outline = copy.deepcopy(model).to("meta")
        self.sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
        model.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
        mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": fsdp.reshard_after_forward}
        layers = {module: sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()}
        apart = [layer for layer, size in layers.items() if size > fsdp.min_num_params]
        for module in (*apart, model):  # the model last, with what is left
            fully_shard(module, **options)
        self.groups = len(apart) + any(0 < size <= fsdp.min_num_params for size in layers.values())
        self.own = self.model_of_pieces()

    @torch.no_grad()
    def model_of_pieces(self) -> nn.Module:
        """A module whose parameters are this process's pieces of the engine's, and whose buffers are the engine's."""
        own = copy.deepcopy(self.outline)
        for module, whole in zip(own.modules(), self.engine.modules(), strict=True):
            for name, parameter in whole.named_parameters(recurse=False):
                piece = parameter.to_local()  # type: ignore[attr-defined]
                setattr(module, name, nn.Parameter(piece, parameter.requires_grad))
            for name, buffer in whole.named_buffers(recurse=False):
                setattr(module, name, buffer)
        return own

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        """Give `own` the pieces of the gradient that the engine's backward pass has left."""
        for parameter, whole in zip(self.own.parameters(), self.engine.parameters(), strict=True):
            parameter.grad = None if whole.grad is None else whole.grad.to_local()  # type: ignore[attr-defined]

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Whole`: in host memory; one at a time is whole on the device."""
        return {name: self.gather_one(tensor, self.size_of(name, tensor)).cpu() for name, tensor in tensors.items()}

    def gather_one(self, piece: Tensor, size: torch.Size | None) -> Tensor:
        """The whole tensor of a piece; the tensor itself where `size` is None, as it is whole already."""
        if size is None:
            return piece
        padded = piece.new_zeros(self.rows(size), *size[1:])
        padded[: len(piece)] = piece
        return self.runtime.all_gather(padded.view(len(padded), -1)).view(-1, *size[1:])[: size[0]]

    def cut(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """See `Whole`."""
        return {name: self.cut_one(name, tensor, source) for name, tensor in tensors.items()}

    def cut_one(self, name: str, tensor: Tensor, source: str) -> Tensor:
        """This process's piece of a whole tensor; the tensor itself where it is not cut up."""
        size = self.size_of(name, tensor)
        if size is None:
            return tensor
        if tensor.shape != size:
            raise UserError(f"{source}: {name} is {tuple(tensor.shape)}, the model's is {tuple(size)}")
        rows = self.rows(size)
        return tensor[self.runtime.rank * rows :][:rows]

    def assemble(self, own: nn.Module) -> nn.Module:
        """See `Whole`."""
        network = copy.deepcopy(self.outline).to_empty(device=self.runtime.device)
        network.load_state_dict(self.gather(own.state_dict()))
        return self.runtime.place(network)

    def size_of(self, name: str, tensor: Tensor) -> torch.Size | None:
        """The whole size of what is cut up: parameters and what an optimizer keeps of the same shape; else None."""
        size = self.sizes.get(name) or self.sizes.get(name.rpartition("/")[0])
        return size if size and tensor.ndim == len(size) else None

    def rows(self, size: torch.Size) -> int:
        """Rows of a piece, of the last ones at most."""
        return -(-size[0] // self.runtime.world_size)


class FSDPStrategy(DDPStrategy):
    """As DDPStrategy, but the model is cut up: layers are gathered to compute, and each process gets its piece of the
    average. It is cut up again after each part of a step, so that a whole gradient never lies anywhere for long.
    """

    def __init__(self, holding: Pieces, config: Config, runtime: Runtime) -> None:
        self.config, self.runtime, self.holding = config, runtime, holding
        self.model, self.buffers = holding.engine, list(holding.engine.buffers())

    def describe(self) -> str:
        """The way in words."""
        groups, processes = self.holding.groups, self.runtime.world_size
        gathered = "the model gathered at once" if groups == 1 else f"gathered in {groups} groups"
        return f"cut up over {processes} processes with weights and moments (FSDP2, {gathered})"

    def compute(self, batch: Batch, step: int) -> list[BatchOutput]:
        """See `Strategy`."""
        self.holding.own.zero_grad()
        seen = super().compute(batch, step)
        self.holding.hand_over_gradients()
        return seen

    def predict(self, images: Tensor) -> Tensor:
        """Logits, in the run's precision."""
        with self.runtime.autocast():
            return self.model(images)

    def norm(self) -> Tensor:
        """L2 norm of all processes' pieces."""
        piece = nn.utils.get_total_norm([p.grad for p in self.holding.own.parameters() if p.grad is not None])
        return self.runtime.all_reduce_sum(piece.double().square()).sqrt().to(piece.dtype)

    def clip(self, limit: float) -> Tensor:
        """See `Strategy`."""
        norm = self.norm()
        nn.utils.clip_grads_with_norm_(self.holding.own.parameters(), limit, norm)
        return norm


def hold(model: nn.Module, runtime: Runtime) -> Whole | Pieces:
    """What the launcher asked for. The model is on its device."""
    fsdp = runtime.topology.fsdp
    return Pieces(model, runtime, fsdp) if fsdp else Whole(model)

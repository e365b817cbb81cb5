"""How a model is trained on several ranks: replicated with DistributedDataParallel, in fixed shards, or with FSDP2.

Every strategy computes the gradient of the mean loss over the global batch. Fixed shards give it the same bits at any
number of ranks; FSDP2 keeps only a shard of every parameter, gradient and optimizer state on each rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import Batch
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.fixed_shards import FixedShardStrategy
from mnist_dist.distributed.fsdp import FSDPStrategy
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.distributed.step_output import StepOutput


class Strategy(Protocol):
    """One way to train a model on several ranks. Every rank must call its methods alike."""

    local_model: nn.Module
    """What this rank updates, under the user's names: plain parameters and buffers for the optimizer and the average of
    weights. The model itself, unless it is sharded: then this rank's rows of each parameter, which compute nothing."""

    def wrap_model(self) -> None:
        """Prepare the forward pass. Call it after copies of `local_model` were made: it changes the model's forward."""

    def forward_backward(self, batch: Batch, step: int) -> StepOutput:
        """Leave the gradient of the mean loss over the global batch in the `grad` of `local_model`.

        Args:
            step: number of the batch, from which dropout is seeded.
        """

    def grad_norm(self) -> Tensor:
        """L2 norm of the whole gradient, a tensor () on the device; scaled, as the gradient is in fp16."""

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the gradient down to L2 norm `max_norm` if it exceeds it; returns the unscaled norm before, ()."""

    def full_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors for this rank's, by name: of the model, or `{parameter}/{key}` of the optimizer's state."""

    def local_state_dict(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """This rank's part of whole tensors, by the same names: the inverse of `full_state_dict`.

        Args:
            source: where they come from, for the message.

        Raises:
            UserError: a tensor to be sharded has another shape than the model's.
        """

    def full_model(self, local_model: nn.Module) -> nn.Module:
        """A module that computes, from `local_model` or one with the same tensors, as the average of weights."""

    def describe(self) -> str:
        """How gradients come about, for the console."""


def build_strategy(model: nn.Module, config: Config, runtime: Runtime) -> Strategy:
    """The strategy that the launcher and the configuration ask for.

    Args:
        model: on its device, with the same values on every rank. FSDP2 shards it in place.
    """
    if runtime.topology.fsdp:
        return FSDPStrategy(model, config, runtime, runtime.topology.fsdp)
    return (FixedShardStrategy if runtime.shards else DDPStrategy)(model, config, runtime)

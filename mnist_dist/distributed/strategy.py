"""How to train a model on several ranks: with DistributedDataParallel (DDP), with fixed shards, or with FSDP2.

Every strategy computes the gradient of the mean loss over the global batch. With DDP and fixed shards, every rank has
the full model; fixed shards give the same bits at any number of ranks. With FSDP2, each rank has a shard of every
parameter, gradient and optimizer state.
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
    """Trains a model on several ranks. Every rank must call its methods."""

    local_model: nn.Module
    """The module whose parameters the optimizer and the EMA update, under the names of the model. It is the model
    itself, but with FSDP2 a module of this rank's shards, which cannot run a forward pass."""

    def wrap_model(self) -> None:
        """Wrap the model for training. Create the EMA before: this may replace the model's `forward`."""

    def forward_backward(self, batch: Batch, step: int) -> StepOutput:
        """Compute the gradient of the mean loss over the global batch, into the `grad` of `local_model`'s parameters.

        Args:
            batch: this rank's part of the global batch.
            step: number of the batch, which seeds dropout.
        """

    def grad_norm(self) -> Tensor:
        """L2 norm of the full gradient, a tensor () on the device; in fp16 that of the scaled gradient."""

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Unscale the gradient, then clip its L2 norm to `max_norm`; returns the norm before clipping, a tensor ()."""

    def full_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The full tensors, gathered from this rank's and those of the other ranks.

        Args:
            tensors: of `local_model` or its EMA, by name, or of the optimizer's state, as `{parameter}/{key}`.
        """

    def local_state_dict(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """This rank's part of full tensors: the inverse of `full_state_dict`.

        Args:
            tensors: named as in `full_state_dict`.
            source: the file that they are from, for error messages.

        Raises:
            UserError: the shape of a tensor differs from the model's.
        """

    def full_model(self, local_model: nn.Module) -> nn.Module:
        """A module that can run a forward pass, with the full tensors of `local_model` or of its EMA."""

    def describe(self) -> str:
        """How gradients are computed, for the console."""


def build_strategy(model: nn.Module, config: Config, runtime: Runtime) -> Strategy:
    """FSDP2 if the launcher asks for it, fixed shards if train.shards does, else DDP.

    Args:
        model: on its device, with the same values on every rank. FSDP2 shards it in place.
    """
    if runtime.topology.fsdp:
        return FSDPStrategy(model, config, runtime, runtime.topology.fsdp)
    if runtime.shards:
        return FixedShardStrategy(model, config, runtime)
    return DDPStrategy(model, config, runtime)

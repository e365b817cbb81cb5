"""What strategies share if every rank has the full model: its tensors are full already."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mnist_dist.distributed.runtime import Runtime


class ReplicatedStrategy:
    """Base of `DDPStrategy` and `FixedShardStrategy`. See `Strategy`."""

    runtime: Runtime
    local_model: nn.Module

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """See `Strategy`."""
        return self.runtime.mixed_precision.clip_grad_norm_(self.local_model.parameters(), max_norm)

    def full_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Strategy`: the same tensors."""
        return dict(tensors)

    def local_state_dict(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """See `Strategy`: the same tensors."""
        return dict(tensors)

    def full_model(self, local_model: nn.Module) -> nn.Module:
        """See `Strategy`: the same module."""
        return local_model

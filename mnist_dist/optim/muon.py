"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) for networks with convolutions.

`torch.optim.Muon` takes matrices only. `MuonAdamW` gives it convolution filters as matrices, and updates all other
parameters by AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from mnist_dist.optim.eager import eager, without_dynamo


class MuonAdamW(Optimizer):
    """One optimizer: Muon for the groups with `use_muon`, AdamW for all other groups.

    Its groups hold the model's own parameters, so that gradient scaling and clipping see them; Muon updates matrix
    views of the same memory.

    Args:
        groups: parameter groups with the keys params, use_muon and weight_decay; at least one with use_muon.
        lr: initial learning rate of all groups.
        momentum, nesterov: for Muon.
        betas, fused: for AdamW.
    """

    add_param_group = without_dynamo(Optimizer.add_param_group)

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        *,
        momentum: float,
        nesterov: bool,
        betas: tuple[float, float],
        fused: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "use_muon": False, "fused": fused})
        filters = [p for group in self.param_groups if group["use_muon"] for p in group["params"]]
        self.matrices = [(p, as_matrix(p.detach(), like=p)) for p in filters]
        # match_rms_adamw lets both share one learning rate (Liu et al. 2025, arXiv:2502.16982).
        options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
        self.muon = eager(Muon)([matrix for _, matrix in self.matrices], **options)
        others = [group for group in self.param_groups if not group["use_muon"]]
        self.adamw = eager(AdamW)([dict(group) for group in others], betas=betas, fused=fused)
        # One state for both, keyed by the model's parameters as in any optimizer: to save it is no special case.
        self.adamw.state = self.state
        for parameter, matrix in self.matrices:
            self.muon.state[matrix] = self.state[parameter]
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(matrix)  # as Muon's own first step does

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter once, with the current learning rate of its group. Closures are not supported.

        If the optimizer has an attribute `found_inf`, a tensor (), the update is skipped where it is 1. See `eager`.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for parameter, matrix in self.matrices:
            matrix.grad = None if parameter.grad is None else as_matrix(parameter.grad, like=parameter)
        adamw_groups = iter(self.adamw.param_groups)
        for group in self.param_groups:
            target = self.muon.param_groups[0] if group["use_muon"] else next(adamw_groups)
            target["lr"], target["weight_decay"] = group["lr"], group["weight_decay"]
        if found_inf is not None:
            self.adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        # torch's Muon knows no found_inf: undo its update on the device.
        updated = [t for _, matrix in self.matrices for t in (matrix, self.muon.state[matrix]["momentum_buffer"])]
        before = [tensor.clone() for tensor in updated]
        self.muon.step()
        if found_inf is not None:
            for tensor, old in zip(updated, before, strict=True):
                tensor.copy_(torch.where(found_inf.bool(), old, tensor))


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """Filters (out, in, h, w) as a matrix (out, in*h*w), with columns in the memory order of `like`; a matrix as it is.

    With `like` the tensor itself, the result is a view. Muon's update does not depend on the order of the columns.
    """
    if tensor.ndim == 2:
        return tensor
    return (tensor if like.is_contiguous() else tensor.permute(0, 2, 3, 1)).reshape(tensor.shape[0], -1)

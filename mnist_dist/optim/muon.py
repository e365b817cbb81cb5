"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) for nets with filters: torch's Muon takes matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from mnist_dist.optim.eager import eager, without_compiler


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """A filter bank (out, in, h, w) as a matrix (out, in*h*w), its columns in the order of the memory of `like`.

    Given itself, a tensor shares its memory with its matrix: Muon's result does not depend on the order of the columns.
    """
    if tensor.ndim == 2:
        return tensor
    return (tensor if like.is_contiguous() else tensor.permute(0, 2, 3, 1)).reshape(tensor.shape[0], -1)


class MuonAdamW(Optimizer):
    """One optimizer: Muon on matrices and filters, AdamW on everything else.

    Its groups hold the model's own parameters, so that gradient scaling and clipping see them; Muon works on matrix
    views of the same memory. Groups with `use_muon` go to Muon.

    Args:
        groups: parameter groups with keys params, use_muon, weight_decay; one of them with use_muon.
        lr: learning rate of all groups, until somebody changes a group's.
        momentum, nesterov: Muon's.
        betas, fused: AdamW's.
    """

    add_param_group = without_compiler(Optimizer.add_param_group)

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
        self.views = [(p, as_matrix(p.detach(), like=p)) for p in filters]
        # match_rms_adamw lets both halves share one learning rate (Liu et al. 2025, arXiv:2502.16982).
        options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
        self.muon = eager(Muon)([matrix for _, matrix in self.views], **options)
        others = [group for group in self.param_groups if not group["use_muon"]]
        self.adamw = eager(AdamW)([dict(group) for group in others], betas=betas, fused=fused)
        # One state, keyed by the model's parameters, as every optimizer has: what is saved is found in one place.
        self.adamw.state = self.state
        for parameter, matrix in self.views:
            self.muon.state[matrix] = self.state[parameter]
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(matrix)  # as Muon's own first step does

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter once, with each group's present learning rate. Closures are not supported.

        An attribute `found_inf`, a tensor (), leaves the update out where it is 1, without waiting for the device.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for parameter, matrix in self.views:
            matrix.grad = None if parameter.grad is None else as_matrix(parameter.grad, like=parameter)
        adamw_groups = iter(self.adamw.param_groups)
        for group in self.param_groups:
            target = self.muon.param_groups[0] if group["use_muon"] else next(adamw_groups)
            target["lr"], target["weight_decay"] = group["lr"], group["weight_decay"]
        self.adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        changed = [t for _, matrix in self.views for t in (matrix, self.muon.state[matrix]["momentum_buffer"])]
        before = [tensor.clone() for tensor in changed]
        self.muon.step()
        if found_inf is not None:
            for tensor, old in zip(changed, before, strict=True):
                tensor.copy_(torch.where(found_inf.bool(), old, tensor))

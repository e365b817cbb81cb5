"""The optimizer a configuration asks for, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_dist.config.schema import OptimConfig
from mnist_dist.optim.eager import eager
from mnist_dist.optim.muon import MuonAdamW, as_matrix
from mnist_dist.utils.errors import UserError


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool) -> Optimizer:
    """An optimizer over a model that lies on its final device, in its final memory format.

    Weights are decayed; biases and norms (fewer than two dimensions) are not.

    Args:
        fused: one kernel for all parameters. Not with fp16: a fused step hides from accelerate that it was skipped.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    decayed: dict[str, Any] = {"params": matrices, "weight_decay": config.weight_decay}
    plain: dict[str, Any] = {"params": vectors, "weight_decay": 0.0}
    if config.name == "sgd":
        options: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
        sgd = eager(SGD)([decayed, plain], lr=config.lr, fused=fused, **options)
        if config.momentum:
            # As from nothing; but the fused update, if its first one is left out, would go on from unset memory.
            for parameter in (*matrices, *vectors):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if config.name == "muon":
        # The last layer's rows are classes, not directions in a space: AdamW suits it better (Jordan 2024).
        groups = [
            decayed | {"params": matrices[:-1], "use_muon": True},
            decayed | {"params": matrices[-1:]},
            plain,
        ]
        options = {"momentum": config.momentum, "nesterov": config.nesterov}
        return MuonAdamW(groups, config.lr, betas=config.betas, fused=fused, **options)
    kind = Adam if config.name == "adam" else AdamW
    return eager(kind)([decayed, plain], lr=config.lr, betas=config.betas, fused=fused)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group this learning rate for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `{parameter name}/{what}`: all there is to save, since groups come from the config."""
    return {
        f"{name}/{what}": value
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer the state that `optimizer_tensors` saved.

    Raises:
        UserError: a tensor is not part of this optimizer's state for this model, is absent, or does not fit.
    """
    check_optimizer_tensors(optimizer, model, tensors)
    parameters = dict(model.named_parameters())
    for state in optimizer.state.values():
        state.clear()  # what was saved before the first update has no moments
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            # Laid out as the parameter is: a fused update walks through the memory of both alike.
            loaded = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            # torch keeps Adam's step count on the CPU unless the update is fused
            loaded = value.to(parameter.device if value.ndim or fused else "cpu", copy=True)
        optimizer.state[parameter][what] = loaded


def check_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless each parameter has all of the state that the optimizer keeps of it, or none yet."""
    where = "the checkpoint's optimizer state"
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    kept = {name: state_like(p.detach(), groups[id(p)]) for name, p in model.named_parameters()}
    given: dict[str, set[str]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        if what not in kept.get(name, {}):
            who = "this optimizer does not keep" if name in kept else "this model does not have"
            raise UserError(f"{where} holds {key}, which {who}")
        like = kept[name][what]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise UserError(
                f"{where} {key} is {value.dtype} {tuple(value.shape)}, this optimizer's {like.dtype} "
                f"{tuple(like.shape)}"
            )
        given.setdefault(name, set()).add(what)
    absent = sorted(f"{name}/{what}" for name, whats in given.items() for what in kept[name].keys() - whats)
    if absent:
        raise UserError(f"{where} lacks {absent[0]}")


def state_like(parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What an optimizer of `build_optimizer` keeps of a parameter in this group: tensors of those shapes and types."""
    if group.get("use_muon"):
        return {"momentum_buffer": as_matrix(parameter, like=parameter)}
    if "momentum" in group:  # sgd
        return {"momentum_buffer": parameter} if group["momentum"] else {}
    return {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.zeros(())}

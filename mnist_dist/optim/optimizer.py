"""Build the optimizer that a configuration names, and save and load its state as named tensors.

Why not `Optimizer.state_dict`: it numbers the parameters and is made to be pickled; here each tensor has the name of
its parameter, so that it can be stored in safetensors and checked against the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_dist.config.sections import OptimConfig
from mnist_dist.optim.eager import eager
from mnist_dist.optim.muon import MuonAdamW, as_matrix
from mnist_dist.utils.errors import UserError


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool) -> Optimizer:
    """The optimizer for a model, which must be on its final device and in its final memory format.

    Weight decay applies to weights, not to biases and norms (parameters of fewer than two dimensions).

    Args:
        fused: update all parameters in one kernel. Not with fp16: accelerate cannot see that a fused step was skipped.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    decayed: dict[str, Any] = {"params": matrices, "weight_decay": config.weight_decay}
    plain: dict[str, Any] = {"params": vectors, "weight_decay": 0.0}
    if config.name == "sgd":
        options: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
        sgd = eager(SGD)([decayed, plain], lr=config.lr, fused=fused, **options)
        if config.momentum:
            # The same as none. But if found_inf skips the first fused update, torch leaves the buffer uninitialised.
            for parameter in (*matrices, *vectors):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if config.name == "muon":
        # AdamW suits the last layer better (Jordan 2024).
        groups = [
            decayed | {"params": matrices[:-1], "use_muon": True},
            decayed | {"params": matrices[-1:]},
            plain,
        ]
        options = {"momentum": config.momentum, "nesterov": config.nesterov}
        return MuonAdamW(groups, config.lr, betas=config.betas, fused=fused, **options)
    optimizer_class = Adam if config.name == "adam" else AdamW
    return eager(optimizer_class)([decayed, plain], lr=config.lr, betas=config.betas, fused=fused)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by `{parameter name}/{state key}`, such as `head.weight/exp_avg`; not copied.

    That is all there is to save: parameter groups come from the configuration.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the optimizer's state by copies of what `optimizer_tensors` gave.

    Raises:
        UserError: a tensor is missing, does not fit, or is not part of this optimizer's state for this model; the state
            is unchanged.
    """
    check_optimizer_tensors(optimizer, model, tensors)
    parameters = dict(model.named_parameters())
    for state in optimizer.state.values():
        state.clear()  # a checkpoint from before the first update has no moments
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        if value.shape == parameter.shape:
            # In the parameter's memory format: a fused update reads the memory of both in the same order.
            loaded = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            # torch keeps Adam's step count on the CPU unless the update is fused.
            loaded = value.to(parameter.device if value.ndim or fused else "cpu", copy=True)
        optimizer.state[parameter][key] = loaded


def check_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the tensors are, for each parameter, its whole state in this optimizer or none of it."""
    source = "the checkpoint's optimizer state"
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    expected = {name: expected_state(p.detach(), groups[id(p)]) for name, p in model.named_parameters()}
    given: dict[str, set[str]] = {}
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        if key not in expected.get(parameter_name, {}):
            who = "this optimizer does not keep" if parameter_name in expected else "this model does not have"
            raise UserError(f"{source} holds {name}, which {who}")
        like = expected[parameter_name][key]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise UserError(
                f"{source} {name} is {value.dtype} {tuple(value.shape)}, this optimizer's {like.dtype} "
                f"{tuple(like.shape)}"
            )
        given.setdefault(parameter_name, set()).add(key)
    missing = sorted(f"{name}/{key}" for name, keys in given.items() for key in expected[name].keys() - keys)
    if missing:
        raise UserError(f"{source} lacks {missing[0]}")


def expected_state(parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """State key to a tensor of its shape and dtype, for a parameter in this group of an optimizer we build."""
    if group.get("use_muon"):
        return {"momentum_buffer": as_matrix(parameter, like=parameter)}
    if "momentum" in group:  # SGD
        return {"momentum_buffer": parameter} if group["momentum"] else {}
    return {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.zeros(())}

"""A model's parameters, floating-point operations (FLOPs) and layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.models.classifier import without_shifts


@dataclass(frozen=True)
class Layer:
    """One layer: module name, kind in a few words, output shape for one image, and number of parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class ModelSummary:
    """Number of parameters, forward FLOPs per image (a multiply-add is two), and the layers in order of computation."""

    parameters: int
    flops: int
    layers: tuple[Layer, ...]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters, as scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def count_flops(model: nn.Module) -> int:
    """Forward FLOPs per image in eval mode, in convolutions and linear layers. The model is not changed.

    A multiply-add is two. Each test-time shift is a pass of its own; `without_shifts` has one.

    With hooks, because `torch.utils.flop_counter` imports `torch._dynamo`, which takes a second.
    """
    flops = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal flops
        terms: int = module.weight[0].numel()  # type: ignore[index]
        if isinstance(module, nn.Conv2d):  # `FactoredConv2d` may be given one channel in place of all
            terms = terms * inputs[0].shape[1] // module.in_channels
        flops += 2 * output.numel() * terms

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    was_training, device = model.training, next(model.parameters()).device
    model.eval()  # changes no running statistics and draws no random numbers
    model(torch.zeros(1, 1, 28, 28, device=device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return flops


@torch.no_grad()
def summarize(model: nn.Module) -> ModelSummary:
    """Run one blank image through the model, on the CPU and in eval mode, and record the output shape of every layer.

    A layer that returns several tensors is listed with the shape of the first. A layer is listed each time that it is
    used, its parameters the first time only; with test-time shifts it is listed as without. The model is left in eval
    mode.
    """
    layers: list[Layer] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            shape = next((tuple(tensor.shape[1:]) for tensor in tensors if isinstance(tensor, Tensor)), ())
            parameters = 0 if name in {layer.name for layer in layers} else count_parameters(module)
            layers.append(Layer(name, describe_layer(module), shape, parameters))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(record(name)) for name, module in leaves]
    without_shifts(model.eval())(torch.zeros(1, 1, 28, 28))
    for handle in handles:
        handle.remove()
    return ModelSummary(count_parameters(model), count_flops(model), tuple(layers))


def describe_layer(module: nn.Module) -> str:
    """A layer's kind and size in a few words, such as `conv 16@5x5 pad 2`."""
    if isinstance(module, nn.Conv2d):
        return f"conv {module.out_channels}@{module.kernel_size[0]}x{module.kernel_size[1]} pad {module.padding[0]}"
    if isinstance(module, nn.MaxPool2d):
        return f"max-pool {module.kernel_size}"
    if isinstance(module, nn.Linear):
        return f"linear {module.out_features}"
    return type(module).__name__.lower()

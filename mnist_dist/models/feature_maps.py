"""Feature maps of one image and convolution filters, as tensors and as one picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.models.classifier import without_shifts


@torch.no_grad()
def feature_maps(model: nn.Module, image: Tensor) -> list[tuple[str, Tensor]]:
    """The output of each convolution for one image, in the order of computation; without test-time shifts.

    Args:
        model: in eval mode.
        image: normalised, float32 (1, 28, 28).

    Returns:
        Module name and feature maps float32 (C, H, W) of each convolution.
    """
    found: list[tuple[str, Tensor]] = []
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        if output.ndim == 4:  # a module of the user's own may call it with one image (C, H, W)
            found.append((names[module], output[0].float()))  # type: ignore[index]

    handles = [module.register_forward_hook(record) for module in names]
    try:
        without_shifts(model)(image.unsqueeze(0))
    finally:
        for handle in handles:
            handle.remove()
    return found


def filters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Module name and filters (out, in, h, w) of each convolution, in the order of definition."""
    return [(name, m.weight.detach()) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def montage(maps: Tensor, width: int, rows: int = 2) -> Tensor:
    """As many feature maps as fit into one grey picture, each scaled from its minimum (black) to its maximum (white).

    Args:
        maps: float (C, H, W).
        width: largest width in pixels.
        rows: largest number of rows of maps.

    Returns:
        uint8 (H', W'), H' even, because a terminal's half blocks show two rows of pixels in one line.
    """
    count, height, side = maps.shape
    across = max(min(width // (side + 1), count), 1)
    shown = maps[: across * rows]
    low, high = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
    levels = (shown - low).div_((high - low).clamp(min=1e-12)).mul_(255).nan_to_num_(0).to(torch.uint8)
    down = -(-len(shown) // across)
    canvas = levels.new_zeros(down * across, height + 2 - height % 2, side + 1)
    canvas[: len(shown), :height, :side] = levels
    return canvas.unflatten(0, (down, across)).transpose(1, 2).flatten(2).flatten(0, 1)

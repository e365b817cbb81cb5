"""What the convolutions of a net make of one image: feature maps as pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.models.summary import describe


@torch.no_grad()
def feature_maps(model: nn.Module, image: Tensor) -> list[tuple[str, Tensor]]:
    """The output of each convolution for one image, in the order of the net.

    Args:
        model: in eval mode.
        image: normalised, float32 (1, 28, 28).

    Returns:
        (what the layer is, its maps float32 (C, H, W)) for each convolution.
    """
    found: list[tuple[str, Tensor]] = []

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        found.append((describe(module), output[0].float()))

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        model(image.unsqueeze(0))
    finally:
        for handle in handles:
            handle.remove()
    return found


def montage(maps: Tensor, width: int, rows: int = 2) -> Tensor:
    """As many maps as fit, side by side with a blank column between, each from black (its least) to white.

    Args:
        maps: float (C, H, W).
        width: columns that may be used.
        rows: rows of maps at most.

    Returns:
        uint8 (H', W') with H' even, as half blocks are drawn.
    """
    count, height, side = maps.shape
    across = max(min(width // (side + 1), count), 1)
    shown = maps[: across * rows]
    low, high = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
    levels = (shown - low).div_((high - low).clamp(min=1e-12)).mul_(255).to(torch.uint8)
    down = -(-len(shown) // across)
    canvas = levels.new_zeros(down, height + 2 - height % 2, across, side + 1)
    for index, level in enumerate(levels):
        canvas[index // across, :height, index % across, :side] = level
    return canvas.flatten(2).flatten(0, 1)

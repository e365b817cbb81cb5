"""Which pixels decided: occlusion (Zeiler and Fergus, arXiv:1311.2901), integrated gradients (arXiv:1703.01365)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 5
"""Side of the square that occlusion hides, in pixels."""
STEPS = 128
"""Points on the way from black to the image at which integrated gradients are taken."""


@torch.no_grad()
def occlusion(model: nn.Module, image: Tensor, background: float, label: int, batch: int = 196) -> Tensor:
    """How much the logit of a class falls where a square of 5x5 pixels is hidden, by the centre of the square.

    Args:
        model: in eval mode; from (B, 1, H, W) to logits (B, K).
        image: normalised, float32 (1, H, W).
        background: the value of a normalised black pixel.
        label: the class.
        batch: hidden squares for one forward pass.

    Returns:
        float32 (H, W); above 0 where the pixels speak for the class.
    """
    _, height, width = image.shape
    margin = PATCH // 2
    padded = F.pad(torch.zeros(height * width, height, width), (margin,) * 4)
    positions = torch.arange(height * width)
    for row in range(PATCH):  # square number n has its centre at row n // width, column n % width
        for column in range(PATCH):
            padded[positions, positions // width + row, positions % width + column] = 1
    hidden = padded[:, margin:-margin, margin:-margin].bool()
    images = torch.where(hidden[:, None], background, image)
    whole = model(image[None])[0, label]
    logits = torch.cat([model(part)[:, label] for part in images.split(batch)])
    return (whole - logits).float().view(height, width)


def integrated_gradients(model: nn.Module, image: Tensor, background: float, label: int, steps: int = STEPS) -> Tensor:
    """Each pixel's share of the logit of a class, compared with a black image.

    The shares add up to the difference of the two logits, but for the error of the midpoint rule.

    Args:
        model, image, background, label: as in `occlusion`.
        steps: number of points at which the gradient is taken.

    Returns:
        float32 (H, W); above 0 where a pixel speaks for the class.
    """
    black = torch.full_like(image, background)
    fractions = (torch.arange(steps, dtype=image.dtype, device=image.device) + 0.5) / steps
    points = (black + fractions[:, None, None, None] * (image - black)).requires_grad_()
    with torch.enable_grad():
        logit = model(points)[:, label].sum()
        (gradients,) = torch.autograd.grad(logit, points)
    return ((image - black) * gradients.mean(0))[0].float()

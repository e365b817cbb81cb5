"""The features of a model, and their map in two dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.models.classifier import without_shifts


@torch.no_grad()
def penultimate_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the features that the last linear layer was given; without one, the logits are the features.

    Test-time shifts count for the logits alone.

    Args:
        model: in eval mode; from (B, 1, H, W) to logits (B, K).
        images: normalised, float32 (B, 1, H, W).

    Returns:
        float32 (B, K) and (B, F).
    """
    last = next((module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)), None)
    found: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        found.append(inputs[0].flatten(1))

    handle = last.register_forward_hook(record) if last is not None else None
    try:
        logits = without_shifts(model)(images)
    finally:
        if handle is not None:
            handle.remove()
    features = found[-1] if found else logits
    if without_shifts(model) is not model:
        logits = model(images)
    return logits.float(), features.float()


def principal_components(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Coordinates of features along the directions of largest variance (PCA), in float64: the same each time.

    Args:
        features: (N, F), N at least 2.
        count: number of directions, at most F.

    Returns:
        Coordinates float64 (N, count), and the fraction of the variance along each direction, float64 (count,). The
        largest entry of each direction is positive, which fixes its sign.
    """
    centred = features.double() - features.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    directions = directions[:, -count:].flip(1)
    largest = directions.abs().argmax(0)
    directions = directions * directions[largest, torch.arange(directions.shape[1])].sign()
    fractions = variances.clamp(min=0).flip(0)[:count] / variances.clamp(min=0).sum().clamp(min=1e-300)
    return centred @ directions, fractions

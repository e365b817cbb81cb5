"""Test-time shifts: in eval mode, the logits of an image are the mean over the image and its shifts by a pixel.

They are a part of the model, so that evaluation, prediction, export and ensembles have them without knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

Shifts = Annotated[int, Field(ge=0, le=2)]
"""Largest test-time shift along each axis, in pixels. 0: none."""


def mean_over_shifts(classify: Callable[[Tensor], Tensor], images: Tensor, largest: int) -> Tensor:
    """The mean logits over all shifts of images by up to `largest` pixels along each axis: 9 shifts for 1, 25 for 2.

    One pass per shift, so it takes no more memory than one.

    Args:
        classify: from images (B, 1, H, W) to logits (B, K).
        images: (B, 1, H, W), normalised or not.

    Returns:
        Logits (B, K), at least in float32.
    """
    logits = torch.stack([classify(shifted) for shifted in shifts_of(images, largest)])
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).mean(0)


def shifts_of(images: Tensor, largest: int) -> Iterator[Tensor]:
    """The shifts of images by up to `largest` pixels along each axis, the images as they are among them.

    The pixels at the border are repeated outside of it: they are background, whatever the normalisation made of it.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (largest,) * 4, mode="replicate")
    for top in range(2 * largest + 1):
        for left in range(2 * largest + 1):
            yield padded[..., top : top + height, left : left + width]

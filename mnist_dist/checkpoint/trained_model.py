"""The trained model of a run as a module that takes images as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.data.loader import normalize
from mnist_dist.models.classifier import probabilities

TOLERANCE = 1e-3
"""By which a pixel may lie outside 0 to 1, as rounding does."""


class TrainedModel(nn.Module):
    """A trained model, in eval mode. It normalises the images itself, as its training did.

    Each method takes images of 28×28 pixels, white on black: uint8, or floating point from 0 to 1; a tensor or a NumPy
    array of shape (B, 28, 28) or (B, 1, 28, 28), or (28, 28) for one image, which is a batch of one. They may be on
    any device.

    Raises:
        ValueError: another shape, or pixels of a floating dtype outside 0 to 1.
        TypeError: another dtype, or neither a tensor nor an array.

    >>> import torch
    >>> from mnist_dist import load_model
    >>> model = load_model("runs/digits")
    >>> images = torch.zeros(5, 28, 28, dtype=torch.uint8)
    >>> model(images).shape, model.probabilities(images).shape, model.predict(images).shape
    (torch.Size([5, 10]), torch.Size([5, 10]), torch.Size([5]))
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = loaded.model
        """From normalised images float32 (B, 1, 28, 28) to logits."""
        self.config = loaded.config
        """The configuration of the run."""
        self.step = loaded.step
        """Optimizer steps of the checkpoint."""
        self.class_names: tuple[str, ...] = loaded.config.data.class_names
        """The name of each label."""
        self.weights_sha256 = weights_sha256(loaded.model)
        """SHA-256 of the weights: that of summary.json, for the last checkpoint of a finished run."""
        self.eval()

    def forward(self, images: Any) -> Tensor:
        """Logits (B, K), of the dtype of the weights."""
        weight = next(self.model.parameters())
        return self.model(normalize(as_pixels(images).to(weight.device), self.config.data).to(weight.dtype))

    def probabilities(self, images: Any) -> Tensor:
        """Class probabilities, float32 (B, K), without gradients."""
        with torch.no_grad():
            return probabilities(self.model, self(images))

    def predict(self, images: Any) -> Tensor:
        """The most likely label of each image, int64 (B,). `class_names` has its name."""
        return self.probabilities(images).argmax(1)

    def extra_repr(self) -> str:
        """What `print` shows beside the layers."""
        return f"step={self.step}, weights_sha256={self.weights_sha256[:12]}"


def as_pixels(images: Any) -> Tensor:
    """Images as a tensor (B, 1, 28, 28) with pixels 0 to 255: uint8, or as it was given a floating dtype.

    Raises:
        TypeError, ValueError: see `TrainedModel`.
    """
    if not isinstance(images, Tensor):
        if not hasattr(images, "__array_interface__"):  # Pillow's images have it, too
            raise TypeError(f"images: must be a tensor or a NumPy array, not {type(images).__name__}")
        images = torch.from_numpy(np.array(images))  # a copy: torch warns of arrays that cannot be written
    shape = tuple(images.shape)
    if shape[-2:] != (28, 28) or len(shape) > 4 or (len(shape) == 4 and shape[1] != 1):
        raise ValueError(f"images: must have the shape (B, 28, 28), (B, 1, 28, 28) or (28, 28), not {shape}")
    pixels = images.reshape(-1, 1, 28, 28)
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise TypeError(f"images: must be uint8, or floating point from 0 to 1, not {pixels.dtype}")
    if pixels.numel():
        low, high = (value.item() for value in torch.aminmax(pixels.detach()))
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
            raise ValueError(
                f"images: pixels of {pixels.dtype} must be from 0 to 1, not from {low:.4g} to {high:.4g}; give uint8 "
                "for 0 to 255, and images that are not normalised: the model does that"
            )
    return pixels.float() * 255

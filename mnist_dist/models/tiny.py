"""Networks of few parameters: filters that are made of smaller tables, and filters that are used several times.

Computing is cheap here and parameters are dear. So a layer's filters (out, in, 3, 3) are products of one filter per
input channel and a matrix between the channels: a depthwise convolution and a pointwise one (Sifre & Mallat 2014),
computed as one dense convolution, which a CPU does as fast as the depthwise one alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.models.classifier import Dropout, ImageClassifier, Width, dropout_of
from mnist_dist.models.registry import register_model


class FactoredConv2d(nn.Conv2d):
    """A 3x3 convolution, padded and without bias, whose filters are a sum of `rank` depthwise-pointwise products.

    Filter (o, i) is the sum over r of mix[o, r, i] * filters[i, r], in rank * (in * 9 + out * in) parameters.
    """

    def __init__(self, channels_in: int, channels_out: int, rank: int = 1) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)
        del self.weight  # a product below, no parameter
        self.filters = nn.Parameter(torch.randn(channels_in, rank, 3, 3) / 3)
        self.mix = nn.Parameter(torch.randn(channels_out, rank, channels_in) * (2 / (rank * channels_in)) ** 0.5)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The filters, float (out, in, 3, 3). Computed at each use, so that gradients reach the factors."""
        return (self.mix.mT[..., None, None] * self.filters).sum(2)

    def forward(self, maps: Tensor) -> Tensor:
        """From maps (B, in, H, W), or an image (B, 1, H, W) that stands in every input channel, to (B, out, H, W)."""
        weight = self.weight
        if maps.shape[1] == 1:
            weight = weight.sum(1, keepdim=True)  # the same as the image in every channel, for less work
        return F.conv2d(maps, weight, padding=1)


class Residual(nn.Module):
    """Maps (B, C, H, W) to the SiLU of themselves plus what the layers make of them, of the same shape."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W)."""
        return F.silu(maps + self.layers(maps))


class GlobalAveragePool(nn.Module):
    """Maps (B, C, H, W) to their means, features (B, C); for empty batches too."""

    def forward(self, maps: Tensor) -> Tensor:
        """Features (B, C)."""
        return maps.mean((2, 3))


@register_model
def tiny(num_classes: int = 10, width: Width = 16, dropout: Dropout = 0.0) -> ImageClassifier:
    """Fewer than 8,000 parameters: two convolutions, then three of factored filters with residual adds.

    Shapes and parameters of one image, with the default width; a batch norm has two parameters per channel:

    | layer | shape after it | parameters |
    |---|---|---|
    | image | 1x28x28 | |
    | 16 filters of 5x5, every second position, batch norm, SiLU | 16x14x14 | 400 + 32 |
    | 16 filters of 3x3, max-pool, batch norm, SiLU | 16x7x7 | 2304 + 32 |
    | 32 factored filters of rank 2, batch norm, SiLU | 32x7x7 | 1312 + 64 |
    | 32 factored filters of rank 1, batch norm, added, SiLU; twice | 32x7x7 | 2 * (1312 + 64) |
    | mean over all positions | 32 | |
    | linear | 10 | 330 |

    The running statistics of the norms are buffers: they are measured, not trained, and not counted.
    """
    deep = 2 * width
    body = nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(width),  # after the pooling: a quarter of the work
        nn.SiLU(),
        FactoredConv2d(width, deep, rank=2),
        nn.BatchNorm2d(deep),
        nn.SiLU(),
        Residual(FactoredConv2d(deep, deep), nn.BatchNorm2d(deep)),
        Residual(FactoredConv2d(deep, deep), nn.BatchNorm2d(deep)),
        GlobalAveragePool(),
        *dropout_of(dropout),
    )
    return ImageClassifier(body, nn.Linear(deep, num_classes))


class Recurrent(nn.Module):
    """One convolution applied several times, with batch norms of their own and SiLUs between.

    The norms have biases, but no scales: with them one set of filters can do something else at each step, for one
    parameter per channel.

    Args:
        conv: of as many filters as input channels.
        plan: "c" applies the convolution, "n" the next norm and a SiLU; "m" is a 2x2 max-pool.
    """

    def __init__(self, conv: FactoredConv2d, plan: str) -> None:
        super().__init__()
        self.conv, self.plan = conv, plan
        self.pool = nn.MaxPool2d(2)
        self.norms = nn.ModuleList(shift_only_norm(conv.out_channels) for _ in range(plan.count("n")))

    def forward(self, maps: Tensor) -> Tensor:
        """From maps (B, C, H, W), or images (B, 1, H, W), to (B, C, H', W'); each pool halves H and W."""
        norms = iter(self.norms)
        for layer in self.plan:
            if layer == "c":
                maps = self.conv(maps)
            elif layer == "m":
                maps = self.pool(maps)
            else:
                maps = F.silu(next(norms)(maps))
        return maps


def shift_only_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with a bias, but without a scale: one parameter per channel."""
    norm = nn.BatchNorm2d(channels)
    norm.register_parameter("weight", None)
    return norm


class GlobalMaxPool(nn.Module):
    """Maps (B, C, H, W) to their largest values, features (B, C); for empty batches too.

    The gradient goes to the place of the largest value. `amax` would compare the values with the largest one instead:
    compiled in bf16, only that one is rounded, so none is equal to it, and the gradient is 0/0.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Features (B, C)."""
        return maps.flatten(2).max(2).values


@register_model
def tiny700(num_classes: int = 10, width: Width = 16, dropout: Dropout = 0.0) -> ImageClassifier:
    """Fewer than 700 parameters: one set of factored filters, applied seven times, first to the image.

    Shapes and parameters of one image, with the default width; a norm has one parameter per channel:

    | layer | shape after it | parameters |
    |---|---|---|
    | image, in each of 16 channels | 1x28x28 | |
    | 16 factored filters of rank 1, max-pool, norm, SiLU | 16x14x14 | 400 + 16 |
    | the same filters, norms of their own, SiLU; three times | 16x14x14 | 3 * 16 |
    | max-pool | 16x7x7 | |
    | the same filters, norms of their own, SiLU; three times | 16x7x7 | 3 * 16 |
    | largest value over all positions | 16 | |
    | linear | 10 | 170 |

    The running statistics of the norms are buffers: they are measured, not trained, and not counted.
    """
    # The first pool comes before its norm: a quarter of the work.
    layers = Recurrent(FactoredConv2d(width, width), "cmncncncnmcncncn")
    body = nn.Sequential(layers, GlobalMaxPool(), *dropout_of(dropout))
    return ImageClassifier(body, nn.Linear(width, num_classes))

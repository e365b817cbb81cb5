"""What a report shows of a trained model: mistakes on the test set, feature maps, filters and layers."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.loader import normalize
from mnist_dist.models.feature_maps import filters
from mnist_dist.models.summary import summarize
from mnist_dist.tracking.report import ModelView
from mnist_dist.training.examples import ExampleCollector, select_examples
from mnist_dist.training.visualizer import draw_feature_maps, tile

MISTAKES = 24
"""Mistakes that are shown."""
MAX_PLANES = 256
"""Planes of filters in one picture, one for each input channel of each filter: of more, nothing can be seen."""


@torch.no_grad()
def view_model(model: nn.Module, images: Tensor, labels: Tensor, config: Config) -> ModelView:
    """Classify images in float32 on the CPU, and look into the model.

    Args:
        model: on the CPU, in eval mode.
        images: uint8 (N, 28, 28).
        labels: (N,) of any integer type.
    """
    size, data, pictures = config.train.eval_batch_size, config.data, images[:, None]
    collector = ExampleCollector(MISTAKES, len(data.class_names))
    for start in range(0, len(images), size):
        logits = model(normalize(pictures[start : start + size], data)).float()
        truth = labels[start : start + size].long()
        collector.add(start, logits, truth, F.cross_entropy(logits, truth, reduction="none"))
    return view_predictions(model, collector.rows(torch.device("cpu")), pictures, config)


def view_predictions(model: nn.Module, rows: Tensor, pictures: Tensor, config: Config) -> ModelView:
    """Look into a model whose predictions are known.

    Args:
        model: on the CPU. It is left in eval mode.
        rows: those of `ExampleCollector.rows`, for MISTAKES, of all ranks.
        pictures: uint8 (N, 1, 28, 28), the test set.
    """
    mistakes, _ = select_examples(rows, MISTAKES, pictures, model)
    layers = tuple(
        (layer.name, layer.kind, " x ".join(map(str, layer.shape)), f"{layer.parameters:,}" if layer.parameters else "")
        for layer in summarize(model).layers
    )
    return ModelView(
        mistakes=mistakes,
        layers=layers,
        maps=draw_feature_maps(model.eval(), pictures[:1].cpu(), config.data),
        filters=dict(draw_filters(name, weight) for name, weight in filters(model)),
    )


def draw_filters(name: str, weight: Tensor) -> tuple[str, np.ndarray]:
    """A caption, and a picture of the first filters of a convolution, uint8 (H, W). Each filter stays in one line.

    Args:
        name: of the layer.
        weight: (out, in, h, w).
    """
    count, channels = weight.shape[:2]
    shown = weight[: max(MAX_PLANES // channels, 1)]
    caption = name if len(shown) == count else f"{name}, the first {len(shown)} of {count}"
    return caption, tile(shown.flatten(0, 1), channels)

"""Media of an evaluation for the tracker: examples, feature maps, filters and histograms.

Nothing here changes a weight, a running statistic or a random state. The media do not depend on the number of ranks:
each rank picks its own worst mistakes, and one all-gather of a fixed number of rows brings them to rank 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.dataset import Splits
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.models.feature_maps import feature_maps, filters, montage
from mnist_dist.tracking.media import Histogram, Media
from mnist_dist.tracking.tracker import Tracker
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.training.examples import ExampleCollector, select_examples
from mnist_dist.training.state import TrainingState

if TYPE_CHECKING:
    import numpy as np

BINS = 64  # of a histogram


class Visualizer:
    """Logs media of held-out evaluations to the tracker. Every rank must call its methods.

    Args:
        state: its models are visualized; its progress gives the step and the epoch.
        data: the held-out set is taken from it.
        tracker: used on the main process only.
    """

    def __init__(self, state: TrainingState, data: Splits, tracker: Tracker) -> None:
        self.state, self.runtime, self.tracker = state, state.runtime, tracker
        self.split, self.data = data.held_out
        self.config, self.tracking = state.config.data, state.config.tracking

    def collector(self) -> ExampleCollector:
        """A collector to pass to `evaluate`, and then to `show`."""
        return ExampleCollector(self.tracking.examples, len(self.config.class_names))

    def show(self, examples: ExampleCollector) -> None:
        """Log the media of an evaluation and of the current weights."""
        progress, media = self.state.progress, self.build_media(examples)
        if media is not None:
            self.tracker.log_media(progress.step, progress.epoch + 1, media)

    @torch.no_grad()
    def build_media(self, examples: ExampleCollector) -> Media | None:
        """The media, on the main process; None on the other ranks. The same weights give the same media."""
        media: dict[str, Any] = {}
        is_main, model = self.runtime.is_main, self.state.eval_model
        tensors = self.full_tensors() if self.tracking.histograms else []
        if self.tracking.examples:
            rows = self.runtime.all_gather(examples.rows(self.runtime.device))
            if is_main:
                with self.runtime.mixed_precision.autocast():
                    media = draw_maps(model, self.data.images[:1], self.config)
                mistakes, samples = select_examples(rows, self.tracking.examples, self.data.images, model)
                media |= {"mistakes": mistakes, "samples": samples}
        if not is_main:
            return None
        if tensors:
            media |= self.count_histograms(*tensors)
        return Media(self.split, **media)

    def full_tensors(self) -> list[dict[str, Tensor]]:
        """Parameters of the model in training, not of the EMA, and their gradients after clipping; full, by name.

        Gradients are those of the last update. After a resume there are none until the first update: a run that was
        stopped after an epoch's last step, and evaluates that epoch after the resume, has none.
        """
        parameters = dict(self.state.local_model.named_parameters())
        gradients = {f"{name}/gradient": p.grad for name, p in parameters.items() if p.grad is not None}
        full = self.state.strategy.full_state_dict
        return [full(parameters), {name.rpartition("/")[0]: tensor for name, tensor in full(gradients).items()}]

    def count_histograms(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Any]:
        """A histogram of each tensor. They are computed together, so that the host waits for the device once."""
        found = histograms([*parameters.values(), *gradients.values()])
        of_parameters, of_gradients = found[: len(parameters)], found[len(parameters) :]
        return {
            "parameters": dict(zip(parameters, of_parameters, strict=True)),
            "gradients": dict(zip(gradients, of_gradients, strict=True)),
        }


def wants_media(config: Config, tracked: Config, runtime: Runtime) -> bool:
    """Whether the tracker logs media; the same on all ranks. Every rank must call it.

    Args:
        config: the run's, the same on all ranks.
        tracked: the configuration with the tracking mode that rank 0 resolved.
    """
    tracking = config.tracking
    if not (tracking.examples or tracking.histograms):
        return False
    if tracking.also and tracking.examples:
        return True  # which no environment variable turns off
    if tracking.mode == "disabled":
        return False
    return runtime.broadcast(runtime.is_main and tracking_mode(tracked.tracking)[0] != "disabled")


@torch.no_grad()
def draw_maps(model: nn.Module, image: Tensor, config: DataConfig) -> dict[str, Any]:
    """Feature maps of an image, uint8 (1, 1, 28, 28), and filters, of each convolution, as `maps`, `filters`."""
    was_training = model.training
    model.eval()
    maps = draw_feature_maps(model, image, config)
    model.train(was_training)
    return {
        "maps": maps,
        "filters": {name: tile(weight.flatten(0, 1), weight.shape[1]) for name, weight in filters(model)},
    }


def draw_feature_maps(model: nn.Module, image: Tensor, config: DataConfig) -> dict[str, np.ndarray]:
    """The feature maps of each convolution for an image uint8 (1, 1, 28, 28), in one picture uint8 (H, W) each.

    Args:
        model: in eval mode.
    """
    return {name: tile(channels) for name, channels in feature_maps(model, normalize(image, config)[0])}


def tile(maps: Tensor, group: int = 1) -> np.ndarray:
    """Maps (N, H, W) as one roughly square uint8 image.

    Args:
        group: number of consecutive maps that stay in one line, as the input channels of one filter.
    """
    count, _, side = maps.shape
    columns = group * max(round(math.sqrt(count) / group), 1)
    return montage(maps.cpu(), width=columns * (side + 1), rows=-(-count // columns)).numpy()


@torch.no_grad()
def histograms(tensors: Sequence[Tensor]) -> list[Histogram]:
    """A histogram of the finite values of each tensor, from the smallest to the largest.

    The host waits for the device once, whatever the number of tensors.

    Args:
        tensors: of any shape and floating dtype, all on one device.
    """
    if not tensors:
        return []
    return [as_histogram(*row) for row in torch.stack([count_bins(tensor) for tensor in tensors]).tolist()]


def count_bins(tensor: Tensor) -> Tensor:
    """Lowest edge, highest edge, and the count of each bin: float64 (2 + BINS,), which holds counts exactly."""
    values = tensor.flatten()
    if values.device.type not in ("cpu", "cuda"):  # other devices may not have float64
        values = values.cpu()
    values = values.double()
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin().nan_to_num(posinf=0.0)
    high = torch.where(finite, values, -torch.inf).amax().nan_to_num(neginf=0.0)
    margin = torch.where(low < high, 0.0, low.abs().clamp(min=1) / 2)  # if all values are equal
    low, high = low - margin, high + margin
    bins = ((values - low) * (BINS / (high - low))).nan_to_num().clamp_(0, BINS - 1).long()
    bins = torch.where(finite, bins, BINS)  # an extra bin, dropped below
    counts = values.new_zeros(BINS + 1).scatter_add_(0, bins, torch.ones_like(values))
    return torch.cat([torch.stack([low, high]), counts[:BINS]])


def as_histogram(low: float, high: float, *counts: float) -> Histogram:
    """The histogram of a row of `count_bins`."""
    inner = (low + (high - low) * edge / BINS for edge in range(1, BINS))
    return Histogram(tuple(map(int, counts)), (low, *inner, high))

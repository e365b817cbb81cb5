"""What the tracker shows of an evaluation beside numbers: examples, feature maps, filters, histograms.

Nothing here changes a weight, a running statistic or a random state, and the result does not depend on the number of
ranks: each rank keeps its own worst mistakes, and one all-gather of rows of a fixed size brings them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import Splits
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.models import ImageClassifier
from mnist_dist.models.feature_maps import feature_maps, filters, montage
from mnist_dist.tracking.media import Example, Histogram, Media
from mnist_dist.tracking.tracker import Tracker
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.training.metrics import CLASSES
from mnist_dist.training.state import TrainingState

if TYPE_CHECKING:
    import numpy as np

INDEX, LOSS, LABEL, LOGITS = 0, 1, 2, 3  # columns of a row; the logits are the rest
WIDTH = LOGITS + CLASSES
BINS = 64  # of a histogram


class ExampleCollector:
    """Collects predictions of this rank's part of an evaluation, and picks the most telling ones.

    All are kept until `rows` is called: 52 bytes per image, less than a tenth of the image itself.

    Args:
        count: examples of each kind.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.batches: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def add(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """See `evaluation.Collector`. Does not wait for the device."""
        if self.count:
            self.batches.append((start, logits, labels, losses))

    def rows(self, device: torch.device) -> Tensor:
        """This rank's mistakes of the largest loss, then its share of the first images: float32 (2 * count, 13).

        A row is index (exact: below 2**24), loss, label and logits; -1 where there is no image.
        """
        rows = torch.full((2 * self.count, WIDTH), -1.0, device=device)
        if not self.batches:
            return rows
        found = torch.cat([as_rows(*batch) for batch in self.batches])
        wrong = found[:, LOGITS:].argmax(1) != found[:, LABEL]
        # A loss that is nan is the worst. Of equal losses the first image comes first: rows are in the set's order.
        badness = torch.where(wrong, found[:, LOSS].nan_to_num(torch.inf, torch.inf), -1.0)
        worst = badness.argsort(descending=True, stable=True)[: self.count]
        rows[: len(worst)] = torch.where(wrong[worst, None], found[worst], -1.0)
        for start, *batch in self.batches:
            if start < self.count:
                first = as_rows(start, *batch)[: self.count - start]
                rows[self.count + start : self.count + start + len(first)] = first
        return rows


def as_rows(start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """A batch as rows (B, 13)."""
    index = torch.arange(start, start + len(labels), device=labels.device)
    return torch.cat([torch.stack([index, losses, labels], 1), logits], 1).float()


class Visualizer:
    """Shows examples, feature maps, filters and histograms of the held-out evaluation in the tracker.

    Every rank must call its methods alike.

    Args:
        tracker: shows them; used on the main process only.
    """

    def __init__(self, state: TrainingState, data: Splits, tracker: Tracker) -> None:
        self.state, self.runtime, self.tracker = state, state.runtime, tracker
        self.split, self.data = data.held_out
        self.config, self.tracking = state.config.data, state.config.tracking

    def collector(self) -> ExampleCollector:
        """What to give to an evaluation, and then to `show`."""
        return ExampleCollector(self.tracking.examples)

    def show(self, examples: ExampleCollector) -> None:
        """Show what an evaluation collected, and the present weights."""
        progress, media = self.state.progress, self.build_media(examples)
        if media is not None:
            self.tracker.log_media(progress.step, progress.epoch + 1, media)

    @torch.no_grad()
    def build_media(self, examples: ExampleCollector) -> Media | None:
        """What to show: the same at any number of ranks with the same weights. None off the main process."""
        parts: dict[str, Any] = {}
        is_main, model = self.runtime.is_main, self.state.eval_model
        tensors = self.full_tensors() if self.tracking.histograms else []
        if self.tracking.examples:
            rows = self.runtime.all_gather(examples.rows(self.runtime.device))
            if is_main:
                parts = self.describe_examples(rows.tolist(), model) | self.draw_maps(model)
        if not is_main:
            return None
        if tensors:
            parts |= self.count_histograms(*tensors)
        return Media(self.split, **parts)

    def describe_examples(self, rows: list[list[float]], model: nn.Module) -> dict[str, Any]:
        """The worst mistakes and the first images, from `ExampleCollector.rows` of all ranks in rank order."""
        count = self.tracking.examples
        present = [(place // count % 2, row) for place, row in enumerate(rows) if row[INDEX] >= 0]
        worst = sorted((row for kind, row in present if kind == 0), key=lambda row: (-badness(row), row[INDEX]))
        first = sorted((row for kind, row in present if kind == 1), key=lambda row: row[INDEX])
        return {"mistakes": self.as_examples(worst[:count], model), "samples": self.as_examples(first, model)}

    def as_examples(self, rows: list[list[float]], model: nn.Module) -> tuple[Example, ...]:
        """Rows with their images and probabilities."""
        found = torch.tensor(rows).reshape(-1, WIDTH)
        indices = found[:, INDEX].long()
        images = self.data.images[indices.to(self.data.images.device), 0].cpu().numpy()
        probabilities = cast(ImageClassifier, model).probabilities(found[:, LOGITS:]).tolist()
        predicted = found[:, LOGITS:].argmax(1).tolist()
        return tuple(
            Example(index, images[i], int(rows[i][LABEL]), predicted[i], tuple(probabilities[i]), rows[i][LOSS])
            for i, index in enumerate(indices.tolist())
        )

    def draw_maps(self, model: nn.Module) -> dict[str, Any]:
        """The feature maps of the first image, and the filters of each convolution."""
        was_training = model.training
        model.eval()
        with self.runtime.mixed_precision.autocast():
            maps = feature_maps(model, normalize(self.data.images[:1], self.config)[0])
        model.train(was_training)
        return {
            "maps": {name: tile(shown) for name, shown in maps},
            "filters": {name: tile(bank.flatten(0, 1), bank.shape[1]) for name, bank in filters(model)},
        }

    def full_tensors(self) -> list[dict[str, Tensor]]:
        """The parameters in training, not their average, and the gradients of the last update, as clipped; by name.

        There are no gradients before the first update of a start, as after a stop between an epoch's last step and its
        end.
        """
        parameters = dict(self.state.local_model.named_parameters())
        gradients = {f"{name}/gradient": p.grad for name, p in parameters.items() if p.grad is not None}
        full = self.state.strategy.full_state_dict
        return [full(parameters), {name.rpartition("/")[0]: tensor for name, tensor in full(gradients).items()}]

    def count_histograms(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Any]:
        """A histogram of each tensor. All at once, so that the host waits for the device once."""
        found = histograms([*parameters.values(), *gradients.values()])
        of_parameters, of_gradients = found[: len(parameters)], found[len(parameters) :]
        return {
            "parameters": dict(zip(parameters, of_parameters, strict=True)),
            "gradients": dict(zip(gradients, of_gradients, strict=True)),
        }


def badness(row: list[float]) -> float:
    """The loss, by which mistakes are ordered; infinity for nan."""
    return math.inf if math.isnan(row[LOSS]) else row[LOSS]


def tile(maps: Tensor, group: int = 1) -> np.ndarray:
    """Maps (N, H, W) as one uint8 image, about as wide as high.

    Args:
        group: neighbouring maps that stay in one line.
    """
    count, _, side = maps.shape
    across = group * max(round(math.sqrt(count) / group), 1)
    return montage(maps.cpu(), width=across * (side + 1), rows=-(-count // across)).numpy()


def wants_media(config: Config, tracked: Config, runtime: Runtime) -> bool:
    """Whether a tracker shows more than rows. Rank 0 knows; all ranks then compute it together.

    Args:
        config: the same on all ranks.
        tracked: with the tracking mode that rank 0 settled on.
    """
    tracking = config.tracking
    if tracking.mode == "disabled" or not (tracking.examples or tracking.histograms):
        return False
    return runtime.broadcast(runtime.is_main and tracking_mode(tracked.tracking)[0] != "disabled")


@torch.no_grad()
def histograms(tensors: Sequence[Tensor]) -> list[Histogram]:
    """A histogram of each tensor, from its least to its largest value, without values that are not finite.

    The host waits for the device once, whatever the number of tensors.

    Args:
        tensors: of any shape and floating dtype, all on one device.
    """
    if not tensors:
        return []
    return [as_histogram(*row) for row in torch.stack([count_bins(tensor) for tensor in tensors]).tolist()]


def count_bins(tensor: Tensor) -> Tensor:
    """The lowest and the highest edge and the counts of all bins, float64 (2 + BINS,), which holds counts exactly."""
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
    bins = torch.where(finite, bins, BINS)
    counts = values.new_zeros(BINS + 1).scatter_add_(0, bins, torch.ones_like(values))
    return torch.cat([torch.stack([low, high]), counts[:BINS]])


def as_histogram(low: float, high: float, *counts: float) -> Histogram:
    """A row of `count_bins` as plain numbers."""
    inner = (low + (high - low) * edge / BINS for edge in range(1, BINS))
    return Histogram(tuple(map(int, counts)), (low, *inner, high))

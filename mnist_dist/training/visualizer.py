"""What is shown of an evaluation beside its numbers: examples, maps, filters, histograms. Nothing here trains.

No weight, no running statistic and no random number changes, and whoever computes it, it is the same: every process
keeps its own worst mistakes, and one exchange of rows of a fixed size brings them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import Splits
from mnist_dist.data.loader import normalize
from mnist_dist.models import ImageClassifier
from mnist_dist.models.feature_maps import feature_maps, filters, montage
from mnist_dist.tracking.media import Example, Histogram, Media
from mnist_dist.tracking.wandb_auth import tracking_mode
from mnist_dist.training.metrics import CLASSES
from mnist_dist.training.state import TrainingState

if TYPE_CHECKING:
    from mnist_dist.distributed.runtime import Runtime


if TYPE_CHECKING:
    import numpy as np

INDEX, LOSS, LABEL, LOGITS = 0, 1, 2, 3  # places in a row; the logits fill the rest
WIDTH = LOGITS + CLASSES


class ExampleCollector:
    """What a network says of each image that this process evaluates; of it, the most telling few.

    Everything is kept until `rows` is called: 52 bytes an image, less than a tenth of the image itself.

    Args:
        count: examples of each kind.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.parts: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def note(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Keep a batch, without waiting for the device; arguments as `evaluate` gives them."""
        self.parts.append((start, logits, labels, losses))

    def rows(self, device: torch.device) -> Tensor:
        """This process's mistakes of the largest loss, then its share of the first images: float32 (2 * count, 13).

        A row is index (exact: below 2**24), loss, label and logits; where there is no image, -1.
        """
        rows = torch.full((2 * self.count, WIDTH), -1.0, device=device)
        if not self.parts:
            return rows
        found = torch.cat([as_rows(*part) for part in self.parts])
        wrong = found[:, LOGITS:].argmax(1) != found[:, LABEL]
        # A loss that is not a number is the worst. Of equal ones the first image counts: rows are in the set's order.
        badness = torch.where(wrong, found[:, LOSS].nan_to_num(torch.inf, torch.inf), -1.0)
        worst = badness.argsort(descending=True, stable=True)[: self.count]
        rows[: len(worst)] = torch.where(wrong[worst, None], found[worst], -1.0)
        for start, *part in self.parts:
            if start < self.count:
                shown = as_rows(start, *part)[: self.count - start]
                rows[self.count + start : self.count + start + len(shown)] = shown
        return rows


def as_rows(start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """A batch as rows (B, 13)."""
    index = torch.arange(start, start + len(labels), device=labels.device)
    return torch.cat([torch.stack([index, losses, labels], 1), logits], 1).float()


class Visualizer:
    """Shows what the network in training makes of the held-out set. Every process must call its methods alike.

    Args:
        show: takes a step, its epoch from 1 and what to show of it; called on the main process only.
    """

    def __init__(
        self, state: TrainingState, data: Splits, config: Config, show: Callable[[int, int, Media], None]
    ) -> None:
        self.state, self.runtime, self.show_media = state, state.runtime, show
        self.split, self.data = data.held_out
        self.config, self.tracking = config.data, config.tracking
        self.predictions = ExampleCollector(self.tracking.examples)

    def note(self, start: int, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """See `ExampleCollector.note`. For `evaluate`."""
        if self.tracking.examples:
            self.predictions.note(start, logits, labels, losses)

    def show(self) -> None:
        """Show what was noted, and the present weights."""
        progress, media = self.state.progress, self.take()
        if media is not None:
            self.show_media(progress.step, progress.epoch + 1, media)

    @torch.no_grad()
    def take(self) -> Media | None:
        """What to show, the same at any number of processes that hold the same weights; None off the main process."""
        parts: dict[str, Any] = {}
        is_main, network = self.runtime.is_main, self.state.eval_model
        tensors = self.whole_tensors() if self.tracking.histograms else []
        if self.tracking.examples:
            predictions, self.predictions = self.predictions, ExampleCollector(self.tracking.examples)
            rows = self.runtime.all_gather(predictions.rows(self.runtime.device))
            if is_main:
                parts = self.examples(rows.tolist(), network) | self.pictures(network)
        if not is_main:
            return None
        if tensors:
            parts |= self.histograms(*tensors)
        return Media(self.split, **parts)

    def examples(self, rows: list[list[float]], network: nn.Module) -> dict[str, Any]:
        """The worst mistakes and the first images, of all processes' `ExampleCollector.rows` by rank."""
        count = self.tracking.examples
        present = [(place // count % 2, row) for place, row in enumerate(rows) if row[INDEX] >= 0]
        worst = sorted((row for kind, row in present if kind == 0), key=lambda row: (-badness(row), row[INDEX]))
        first = sorted((row for kind, row in present if kind == 1), key=lambda row: row[INDEX])
        return {"mistakes": self.describe(worst[:count], network), "samples": self.describe(first, network)}

    def describe(self, rows: list[list[float]], network: nn.Module) -> tuple[Example, ...]:
        """Rows with their images."""
        found = torch.tensor(rows).reshape(-1, WIDTH)
        indices = found[:, INDEX].long()
        images = self.data.images[indices.to(self.data.images.device), 0].cpu().numpy()
        probabilities = cast(ImageClassifier, network).probabilities(found[:, LOGITS:]).tolist()
        predicted = found[:, LOGITS:].argmax(1).tolist()
        return tuple(
            Example(index, images[i], int(rows[i][LABEL]), predicted[i], tuple(probabilities[i]), rows[i][LOSS])
            for i, index in enumerate(indices.tolist())
        )

    def pictures(self, network: nn.Module) -> dict[str, Any]:
        """The maps of the first image and the filters of each convolution, of the network that is evaluated."""
        was_training = network.training
        network.eval()
        with self.runtime.autocast():
            maps = feature_maps(network, normalize(self.data.images[:1], self.config)[0])
        network.train(was_training)
        return {
            "maps": {name: picture(shown) for name, shown in maps},
            "filters": {name: picture(bank.flatten(0, 1), bank.shape[1]) for name, bank in filters(network)},
        }

    def whole_tensors(self) -> list[dict[str, Tensor]]:
        """The parameters in training, not their average, and the gradients of the last update, as clipped; by name.

        A start has no gradients before its first update: none after a stop between an epoch's last step and its end.
        """
        parameters = dict(self.state.model.named_parameters())
        gradients = {f"{name}/gradient": p.grad for name, p in parameters.items() if p.grad is not None}
        whole = self.state.holding.gather(gradients)
        return [self.state.holding.gather(parameters), {name.rpartition("/")[0]: g for name, g in whole.items()}]

    def histograms(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Any]:
        """Of all tensors at once, so that the device is waited for once."""
        found = histograms([*parameters.values(), *gradients.values()])
        own, others = found[: len(parameters)], found[len(parameters) :]
        return {
            "parameters": dict(zip(parameters, own, strict=True)),
            "gradients": dict(zip(gradients, others, strict=True)),
        }


def badness(row: list[float]) -> float:
    """By which mistakes are ordered: the loss; one that is not a number is the worst."""
    return math.inf if math.isnan(row[LOSS]) else row[LOSS]


def picture(maps: Tensor, together: int = 1) -> np.ndarray:
    """Maps (N, H, W) about as wide as high, uint8; `together` neighbours are never in two lines."""
    count, _, side = maps.shape
    across = together * max(round(math.sqrt(count) / together), 1)
    return montage(maps.cpu(), width=across * (side + 1), rows=-(-count // across)).numpy()


def wants_media(config: Config, recording: Config, runtime: Runtime) -> bool:
    """Whether there is a tracker that shows more than rows: the main process knows, and all compute it together.

    Args:
        config: the same on all processes.
        recording: with the tracking that the main process settled on.
    """
    tracking = config.tracking
    if tracking.mode == "disabled" or not (tracking.examples or tracking.histograms):
        return False
    return runtime.broadcast(runtime.is_main and tracking_mode(recording.tracking)[0] != "disabled")


BINS = 64


@torch.no_grad()
def histograms(tensors: Sequence[Tensor]) -> list[Histogram]:
    """For each tensor a histogram from its least value to its largest.

    Tensors are of any shape and floating dtype, all on one device. Values that are not finite are left out. The host
    waits for the device once, whatever the number of tensors.
    """
    if not tensors:
        return []
    return [histogram(*row) for row in torch.stack([count(tensor) for tensor in tensors]).tolist()]


def count(tensor: Tensor) -> Tensor:
    """The lowest and the highest border and the counts of all bins, float64 (2 + BINS,), which holds counts exactly."""
    values = tensor.flatten()
    if values.device.type not in ("cpu", "cuda"):  # others may not know float64
        values = values.cpu()
    values = values.double()
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin().nan_to_num(posinf=0.0)
    high = torch.where(finite, values, -torch.inf).amax().nan_to_num(neginf=0.0)
    margin = torch.where(low < high, 0.0, low.abs().clamp(min=1) / 2)  # around a value that is the only one
    low, high = low - margin, high + margin
    bins = ((values - low) * (BINS / (high - low))).nan_to_num().clamp_(0, BINS - 1).long()
    bins = torch.where(finite, bins, BINS)
    counts = values.new_zeros(BINS + 1).scatter_add_(0, bins, torch.ones_like(values))
    return torch.cat([torch.stack([low, high]), counts[:BINS]])


def histogram(low: float, high: float, *counts: float) -> Histogram:
    """A row of `count` as plain numbers."""
    inner = (low + (high - low) * border / BINS for border in range(1, BINS))
    return Histogram(tuple(map(int, counts)), (low, *inner, high))

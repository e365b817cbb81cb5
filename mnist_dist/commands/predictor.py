"""What `predict` classifies with: the model of a run, or one that `mnist-dist export` wrote; and the data it knows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.commands.exported_model import open_exported
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.dataset import read_pair_of
from mnist_dist.data.identity import check_split_data, content_digest
from mnist_dist.data.loader import normalize
from mnist_dist.data.prepare import provide_files, resolve_root
from mnist_dist.models import classifier

BATCH = 1000


@dataclass(frozen=True)
class Predictor:
    """A trained model, whatever file it came from."""

    probabilities: Callable[[Tensor], Tensor]
    """From images uint8 (N, 28, 28) to class probabilities float32 (N, K)."""
    data: DataConfig
    """The data that it was trained on."""
    digests: Mapping[str, str]
    """SHA-256 of these data; see `LoadedModel`."""
    model: nn.Module | None = None
    """The model itself; None for an exported one, which is a graph."""


def predictor_of_run(loaded: LoadedModel) -> Predictor:
    """The model of a run."""
    config, model = loaded.config.data, loaded.model

    def probabilities(images: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [model(normalize(part.unsqueeze(1), config)) for part in images.split(BATCH)]
            return classifier.probabilities(model, torch.cat(parts))

    return Predictor(probabilities, config, loaded.digests, model)


def predictor_of_file(path: Path) -> Predictor:
    """The model of a file that `mnist-dist export` wrote. Raises UserError as `open_exported` does."""
    exported = open_exported(path)
    data = DataConfig(name=exported.facts["data.name"], classes=exported.classes)
    digests = {
        name: exported.facts[key] for name in ("train", "test") if (key := f"data.{name}_sha256") in exported.facts
    }
    return Predictor(lambda images: exported(images)[1], data, digests)


def read_split(config: DataConfig, digests: Mapping[str, str], split: str, root: str | None) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 28, 28) and labels int64 (N,) of a split, which must be those that a model knows.

    Args:
        config, digests: as in `Predictor`.
        root: the data set's folder; None: that of the run.

    Raises:
        UserError: there are no data, or other data than the model's.
    """

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    folder = resolve_root(config.root if root is None else root, config.name)
    images, labels = read_pair_of(provide_files(folder, config.source, say, config.name), split, config)
    check_split_data(split, digests, {split: content_digest(images, labels)}, folder, say)
    return images.squeeze(1), labels

"""What is shown beside numbers, in one process: pictures, histograms, and when nothing is to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_training import stateful_model
from small_training import open_trainer

from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model, list_models
from mnist_dist.tracking.media import Media
from mnist_dist.training.trainer import Trainer
from mnist_dist.training.visualizer import tile, wants_media

SMALL = ("--run.device=cpu", "--run.threads=1", "--train.batch_size=12", "--train.epochs=1", "--train.precision=no")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(folder: Path, *arguments: str, network: Any = stateful_model) -> tuple[Trainer, list[tuple[int, int, Media]]]:
    """Two steps, with what they show."""
    config = load([*SMALL, *arguments]).config
    shown: list[tuple[int, int, Media]] = []
    with start_runtime(config, Topology()) as runtime:
        trainer = open_trainer(
            runtime, config, folder, (24, 10), network=network, show=lambda *seen: shown.append(seen)
        )
        trainer.train()
    return trainer, shown


def test_pictures_are_of_the_network_that_is_evaluated_and_histograms_of_the_one_in_training(tmp_path: Path) -> None:
    trainer, ((step, epoch, media),) = train(
        tmp_path, "--optim.ema=0.5", "--optim.schedule=constant", "--optim.warmup=0"
    )
    assert (step, epoch, media.split) == (2, 1, "test")
    average, raw = trainer.state.eval_model.body[0], trainer.state.model.body[0]
    assert not torch.equal(average.weight, raw.weight)

    def levels(bank: torch.Tensor) -> np.ndarray:
        low, high = bank.amin((1, 2), keepdim=True), bank.amax((1, 2), keepdim=True)
        return ((bank - low) / (high - low) * 255).to(torch.uint8).numpy()

    assert (media.filters["body.0"][:5, :5] == levels(average.weight.detach()[:, 0])[0]).all()
    with torch.no_grad():
        image = normalize(trainer.data.test.images[:1], trainer.config.data)
        expected = levels(average(image)[0])
    assert (media.maps["body.0"][:12, :12] == expected[0]).all()
    assert media.parameters["body.0.weight"].edges[0] == raw.weight.min().item()
    assert media.gradients["head.weight"].edges[-1] == trainer.state.model.head.weight.grad.max().item()
    assert sum(media.gradients["head.weight"].counts) == 4000


@pytest.mark.parametrize("model", list_models())
def test_every_model_can_be_looked_at(model: str, tmp_path: Path) -> None:
    trainer, ((_, _, media),) = train(tmp_path, network=lambda: create_model(model))
    banks = {
        name: module for name, module in trainer.state.model.named_modules() if isinstance(module, torch.nn.Conv2d)
    }
    assert media.maps.keys() == media.filters.keys() == banks.keys()
    for name, bank in banks.items():
        tiles = bank.weight.shape[0] * bank.weight.shape[1]
        height, width = media.filters[name].shape
        side = bank.weight.shape[3] + 1
        assert width % (side * bank.weight.shape[1]) == 0  # whole filters in a line
        assert tiles <= width // side * (height // (side + side % 2)) < tiles + width // side
    assert media.parameters.keys() == media.gradients.keys() == dict(trainer.state.model.named_parameters()).keys()
    for example in media.samples:
        assert sum(example.probabilities) == pytest.approx(1, abs=1e-5)
        assert example.predicted == max(range(10), key=example.probabilities.__getitem__)


@pytest.mark.parametrize(
    ("off", "left"), [("--tracking.examples=0", "parameters gradients"), ("--tracking.histograms=false", "examples")]
)
def test_each_kind_can_be_left_out(off: str, left: str, tmp_path: Path) -> None:
    _, ((_, _, media),) = train(tmp_path, off)
    assert bool(media.samples and media.maps and media.filters) == (left == "examples")
    assert bool(media.parameters and media.gradients) == (left != "examples")


def test_nothing_is_shown_of_evaluations_between_epochs(tmp_path: Path) -> None:
    """But of a run's end, where that is no epoch's end."""
    _, shown = train(tmp_path / "a", "--train.eval_steps=1", "--train.epochs=2")
    assert [step for step, _, _ in shown] == [2, 4]
    _, shown = train(tmp_path / "b", "--train.max_steps=3", "--train.epochs=2")
    assert [(step, epoch) for step, epoch, _ in shown] == [(2, 1), (3, 2)]


def test_weights_that_are_not_finite_can_be_looked_at(tmp_path: Path) -> None:
    def broken() -> Any:
        model = stateful_model()
        model.body[0].weight.data[0] = torch.nan
        model.body[0].weight.data[1, 0, 0, 0] = torch.inf
        return model

    _, ((_, _, media),) = train(tmp_path, "--train.nonfinite=skip", network=broken)
    assert sum(media.parameters["body.0.weight"].counts) == 6 * 25 - 26
    assert sum(media.gradients["head.bias"].counts) == 0
    assert media.maps["body.0"].shape == media.maps["body.0"].shape


def test_a_picture_is_about_as_wide_as_high_and_keeps_together_what_belongs_together() -> None:
    assert tile(torch.rand(64, 7, 7)).shape == (8 * 8, 8 * 8)
    assert tile(torch.rand(5, 3, 3)).shape == (3 * 4, 2 * 4)
    assert tile(torch.rand(64 * 32, 3, 3), group=32).shape == (64 * 4, 32 * 4)
    assert tile(torch.rand(1, 3, 3)).shape == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (("--tracking.mode=offline",), True),
        (("--tracking.mode=offline", "--tracking.examples=0"), True),
        (("--tracking.mode=offline", "--tracking.histograms=false"), True),
        (("--tracking.mode=offline", "--tracking.examples=0", "--tracking.histograms=false"), False),
        (("--tracking.mode=disabled",), False),
    ],
)
def test_nothing_is_computed_that_nobody_shows(arguments: tuple[str, ...], shows: bool) -> None:
    config: Config = load([*SMALL, *arguments]).config
    with start_runtime(config, Topology()) as runtime:
        assert wants_media(config, config, runtime) == shows

"""Media on one rank: examples, feature maps, filters and histograms, and when media are logged."""

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


def train(
    folder: Path, *arguments: str, build_model: Any = stateful_model
) -> tuple[Trainer, list[tuple[int, int, Media]]]:
    """Train one epoch of two steps; the trainer, and the logged media with their step and epoch."""
    config = load([*SMALL, *arguments]).config
    logged: list[tuple[int, int, Media]] = []
    with start_runtime(config, Topology()) as runtime:
        trainer = open_trainer(
            runtime, config, folder, (24, 10), build_model=build_model, log_media=lambda *media: logged.append(media)
        )
        trainer.train()
    return trainer, logged


def test_maps_and_filters_are_of_the_evaluated_model_and_histograms_of_the_model_in_training(tmp_path: Path) -> None:
    trainer, ((step, epoch, media),) = train(
        tmp_path, "--optim.ema=0.5", "--optim.schedule=constant", "--optim.warmup=0"
    )
    assert (step, epoch, media.split) == (2, 1, "test")
    ema, trained = trainer.state.eval_model.body[0], trainer.state.model.body[0]
    assert not torch.equal(ema.weight, trained.weight)

    def grey_levels(maps: torch.Tensor) -> np.ndarray:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return ((maps - low) / (high - low) * 255).to(torch.uint8).numpy()

    assert (media.filters["body.0"][:5, :5] == grey_levels(ema.weight.detach()[:, 0])[0]).all()
    with torch.no_grad():
        image = normalize(trainer.data.test.images[:1], trainer.config.data)
        expected = grey_levels(ema(image)[0])
    assert (media.maps["body.0"][:12, :12] == expected[0]).all()
    assert media.parameters["body.0.weight"].edges[0] == trained.weight.min().item()
    assert media.gradients["head.weight"].edges[-1] == trainer.state.model.head.weight.grad.max().item()
    assert sum(media.gradients["head.weight"].counts) == 4000


@pytest.mark.parametrize("model", list_models())
def test_media_of_every_model(model: str, tmp_path: Path) -> None:
    trainer, ((_, _, media),) = train(tmp_path, build_model=lambda: create_model(model))
    convolutions = {
        name: module for name, module in trainer.state.model.named_modules() if isinstance(module, torch.nn.Conv2d)
    }
    assert media.maps.keys() == media.filters.keys() == convolutions.keys()
    for name, convolution in convolutions.items():
        tiles = convolution.weight.shape[0] * convolution.weight.shape[1]
        height, width = media.filters[name].shape
        side = convolution.weight.shape[3] + 1
        assert width % (side * convolution.weight.shape[1]) == 0  # all channels of a filter are in one line
        assert tiles <= width // side * (height // (side + side % 2)) < tiles + width // side
    assert media.parameters.keys() == media.gradients.keys() == dict(trainer.state.model.named_parameters()).keys()
    for example in media.samples:
        assert sum(example.probabilities) == pytest.approx(1, abs=1e-5)
        assert example.predicted == max(range(10), key=example.probabilities.__getitem__)


@pytest.mark.parametrize(
    ("off", "remaining"), [("--tracking.examples=0", "histograms"), ("--tracking.histograms=false", "examples")]
)
def test_examples_and_histograms_can_be_turned_off(off: str, remaining: str, tmp_path: Path) -> None:
    _, ((_, _, media),) = train(tmp_path, off)
    assert bool(media.samples and media.maps and media.filters) == (remaining == "examples")
    assert bool(media.parameters and media.gradients) == (remaining != "examples")


def test_media_are_logged_at_the_end_of_epochs_and_of_the_run_only(tmp_path: Path) -> None:
    _, logged = train(tmp_path / "a", "--train.eval_steps=1", "--train.epochs=2")
    assert [step for step, _, _ in logged] == [2, 4]
    _, logged = train(tmp_path / "b", "--train.max_steps=3", "--train.epochs=2")
    assert [(step, epoch) for step, epoch, _ in logged] == [(2, 1), (3, 2)]


def test_media_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    def broken_model() -> Any:
        model = stateful_model()
        model.body[0].weight.data[0] = torch.nan
        model.body[0].weight.data[1, 0, 0, 0] = torch.inf
        return model

    _, ((_, _, media),) = train(tmp_path, "--train.nonfinite=skip", build_model=broken_model)
    assert sum(media.parameters["body.0.weight"].counts) == 6 * 25 - 26
    assert sum(media.gradients["head.bias"].counts) == 0
    assert media.maps["body.0"].shape == (3 * 14, 2 * 13)


def test_tiled_maps_are_roughly_square_and_groups_stay_in_one_line() -> None:
    assert tile(torch.rand(64, 7, 7)).shape == (8 * 8, 8 * 8)
    assert tile(torch.rand(5, 3, 3)).shape == (3 * 4, 2 * 4)
    assert tile(torch.rand(64 * 32, 3, 3), group=32).shape == (64 * 4, 32 * 4)
    assert tile(torch.rand(1, 3, 3)).shape == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--tracking.mode=offline",), True),
        (("--tracking.mode=offline", "--tracking.examples=0"), True),
        (("--tracking.mode=offline", "--tracking.histograms=false"), True),
        (("--tracking.mode=offline", "--tracking.examples=0", "--tracking.histograms=false"), False),
        (("--tracking.mode=disabled",), False),
    ],
)
def test_wants_media(arguments: tuple[str, ...], expected: bool) -> None:
    config: Config = load([*SMALL, *arguments]).config
    with start_runtime(config, Topology()) as runtime:
        assert wants_media(config, config, runtime) == expected

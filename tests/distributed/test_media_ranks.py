"""Media on several ranks: the same at any number of ranks, and logging them changes nothing else."""

from __future__ import annotations

import math
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import run_ranks
from measured_keys import MEASURED_ROW_KEYS
from media_training import ARGUMENTS, LoggedMedia, to_plain, train
from programs import write_digits
from small_training import synthetic_images
from torch import nn

from mnist_dist.config.loader import load
from mnist_dist.data.dataset import Splits
from mnist_dist.data.loader import normalize
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier
from mnist_dist.tracking import tracker
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.tracker import NullTracker
from mnist_dist.train import main as program_main
from mnist_dist.training.evaluation import evaluate
from mnist_dist.training.state import TrainingState
from mnist_dist.training.visualizer import Visualizer
from mnist_dist.utils.errors import EXIT_DONE

SIZES = (24 * 5 + 1, 31)
SHARDS = ("--train.shards=6", "--optim.ema=0.9")


@cache
def trained(world_size: int, arguments: tuple[str, ...], sizes: tuple[int, int] = SIZES, has_media: bool = True) -> Any:
    """The result of `media_training.train` on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(world_size, train, arguments, Path(folder), sizes, has_media)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_ranks_does_not_change_the_media(world_size: int) -> None:
    """With fixed shards it does not change the weights, either."""
    main, *others = trained(world_size, SHARDS)
    assert main[0] == trained(1, SHARDS)[0][0]
    assert [(step, epoch) for step, epoch, _ in main[0]] == [(6, 1), (12, 2)]
    assert all(other[0] == [] for other in others)


def test_media_epochs_and_the_last_step() -> None:
    ((logged, *_),) = trained(1, (*SHARDS, "--train.epochs=6", "--tracking.media_epochs=4"))
    assert [epoch for _, epoch, _ in logged] == [1, 4, 6]
    ((logged, *_),) = trained(1, (*SHARDS, "--train.epochs=6", "--tracking.media_epochs=4", "--train.max_steps=15"))
    assert [(step, epoch) for step, epoch, _ in logged] == [(6, 1), (15, 3)]


def test_the_media_of_an_epoch_are_complete() -> None:
    ((logged, *_),) = trained(1, SHARDS)
    for _, _, media in logged:
        assert media["split"] == "test"
        assert 0 < len(media["mistakes"]) <= 5
        assert [example["index"] for example in media["samples"]] == [0, 1, 2, 3, 4]
        assert list(media["maps"]) == list(media["filters"]) == ["body.0", "body.4"]
        assert list(media["parameters"]) == list(media["gradients"])
        assert sum(media["gradients"]["body.0.weight"]["counts"]) == 6 * 25
    assert logged[0][2]["samples"] != logged[1][2]["samples"]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("setting", [SHARDS, ("--train.shards=0", "--optim.clip=0.5", "--train.accumulate=2")])
def test_media_change_no_weight_no_row_and_no_random_state(setting: tuple[str, ...], world_size: int) -> None:
    with_media, without = trained(world_size, setting), trained(world_size, setting, has_media=False)
    for (_, rows, *states), (logged, expected_rows, *expected_states) in zip(with_media, without, strict=True):
        assert (states, logged) == (expected_states, [])
        assert comparable(rows) == comparable(expected_rows)


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: to_plain(value) for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows]


def test_a_set_with_fewer_images_than_examples_and_ranks_without_images() -> None:
    """Three images in batches of seven: two of three ranks have none."""
    runs = [trained(world_size, SHARDS, (25, 3)) for world_size in (1, 2, 3)]
    assert runs[0][0][0] == runs[1][0][0] == runs[2][0][0]
    for _, _, media in runs[0][0][0]:
        assert [example["index"] for example in media["samples"]] == [0, 1, 2]
        assert len(media["mistakes"]) <= 3


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stop_after", [3, 6])
def test_a_resumed_run_logs_the_media_of_an_uninterrupted_one(stop_after: int, world_size: int, tmp_path: Path) -> None:
    """If it is stopped at an epoch's last step, it evaluates after the resume, without gradients of the last update."""
    logged: LoggedMedia = []
    for step in (stop_after, -1):
        logged += run_ranks(world_size, train, SHARDS, tmp_path, SIZES, True, step)[0][0]
    expected = trained(1, SHARDS)[0][0]
    if stop_after == 6:
        assert logged[0][2].pop("gradients") == {}
        expected = [(*expected[0][:2], {k: v for k, v in expected[0][2].items() if k != "gradients"}), *expected[1:]]
    assert logged == expected


def run_program(mode: str, arguments: list[str]) -> tuple[int, list[tuple[int, int, bool]]]:
    """Run the program on this rank; its exit code, and step, epoch and completeness of the media that it logs.

    Args:
        mode: WANDB_MODE on rank 0; it is `disabled` on the other ranks.
    """
    os.environ["WANDB_MODE"] = mode if read_topology().is_main else "disabled"
    logged: list[tuple[int, int, bool]] = []

    class Tracker(tracker.NullTracker):
        def log_media(self, step: int, epoch: int, media: Media) -> None:
            logged.append((step, epoch, bool(media.samples and media.gradients)))

    tracker.open_tracker = lambda *_: Tracker()
    return program_main(arguments), logged


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_rank_0_decides_for_all_ranks_whether_media_are_logged(mode: str, tmp_path: Path) -> None:
    """The environment of the other ranks is ignored: a rank that logged no media would not call the collectives."""
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=48, test=20)
    options = [f"--data.root={tmp_path}/data", "--data.source=local", "--data.val_size=0", f"--run.dir={tmp_path}/run"]
    main, *others = run_ranks(3, run_program, mode, [*ARGUMENTS, *options, "--run.quiet=true"])
    assert main == (EXIT_DONE, [(2, 1, True), (4, 2, True)] if mode == "offline" else [])
    assert others == [(EXIT_DONE, [])] * 2


# Examples of an untrained model, against all of its predictions


class ExtremeLogits(ImageClassifier):
    """A model with equal logits for every third image, nan for every eleventh, and a probability of 1 for class 9 for
    every fifth, whose loss is infinite if the label is another class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        index = images[:, 0, 0, :2].mul(255).round().long() @ torch.tensor([256, 1])
        logits = torch.where(index[:, None] % 3 == 0, 0.0, logits)
        certain = torch.full((10,), -torch.inf)
        certain[9] = 0.0
        logits = torch.where(index[:, None] % 5 == 2, certain, logits)
        return torch.where(index[:, None] % 11 == 5, torch.nan, logits)


def evaluate_untrained(count: int, images: int) -> tuple[Any, list[list[float]]]:
    """The media that this rank builds, with `count` examples of each kind; and loss and logits of each image."""
    topology = read_topology()
    settings = ["--data.mean=0", "--data.std=1", "--train.batch_size=12", f"--tracking.examples={count}"]
    config = load([*ARGUMENTS, *settings, "--tracking.histograms=false"], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = runtime.to_device(ExtremeLogits(nn.Sequential(nn.Flatten()), nn.Linear(784, 10)))
        data = synthetic_images(images, seed=2)
        predictions: list[Any] = []
        visualizer = Visualizer(
            TrainingState(model, config, runtime, len(data)), Splits(data, data, data), NullTracker()
        )
        collector = visualizer.collector()
        evaluate(model, data, config.data, runtime, 7, collector=collector)
        media = visualizer.build_media(collector)
        with torch.no_grad(), runtime.mixed_precision.autocast():
            for start in range(0, images, 7):
                rows = slice(start, start + 7)
                logits = model(normalize(data.images[rows], config.data)).float()
                losses = F.cross_entropy(logits, data.labels[rows], reduction="none")
                predictions += [[loss, *row] for loss, row in zip(losses.tolist(), logits.tolist(), strict=True)]
        return to_plain(media), to_plain(predictions)


def loss_or_inf(loss: Any) -> float:
    """The loss, by which mistakes are sorted; `to_plain` made text of nan and infinity."""
    return float(loss) if isinstance(loss, float) else math.inf


@cache
def evaluated(world_size: int, count: int, images: int) -> Any:
    return run_ranks(world_size, evaluate_untrained, count, images)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("count", "images"), [(16, 100), (100, 100), (100, 40), (3, 2)])
def test_mistakes_are_those_with_the_largest_losses(count: int, images: int, world_size: int) -> None:
    """Among equal losses the first image comes first; nan counts as infinite."""
    (media, predictions), *others = evaluated(world_size, count, images)
    assert [other for other, _ in others] == [None] * (world_size - 1)
    labels = synthetic_images(images, seed=2).labels.tolist()

    def predicted(row: list[Any]) -> int:
        values = [float(value) for value in row[1:]]
        return 0 if math.isnan(values[0]) else values.index(max(values))

    wrong = [index for index in range(images) if predicted(predictions[index]) != labels[index]]
    wrong.sort(key=lambda index: (-loss_or_inf(predictions[index][0]), index))
    assert [example["index"] for example in media["mistakes"]] == wrong[:count]
    assert [example["index"] for example in media["samples"]] == list(range(min(count, images)))
    for example in media["mistakes"] + media["samples"]:
        loss, *logits = predictions[example["index"]]
        assert (example["loss"], example["label"]) == (loss, labels[example["index"]])
        assert example["predicted"] == predicted([loss, *logits])
        expected = torch.tensor([float(value) for value in logits]).softmax(0).tolist()
        assert example["probabilities"] == to_plain(expected)
        first, second = example["image"][0][:2]
        assert first * 256 + second == example["index"]

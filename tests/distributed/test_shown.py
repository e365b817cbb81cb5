"""What is shown beside numbers is the same at any number of processes, and looking changes nothing."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clocks import ROW_CLOCKS
from harness import run_ranks
from rehearsal import image_set
from shown import ARGUMENTS, Shown, plain, train
from torch import nn

from mnist_dist.config_loader import load
from mnist_dist.data.batches import normalize
from mnist_dist.data.splits import Splits
from mnist_dist.evaluation import evaluate
from mnist_dist.insights import Insights
from mnist_dist.models import ImageClassifier
from mnist_dist.runtime import start_runtime
from mnist_dist.topology import read_topology
from mnist_dist.training_state import TrainingState

SIZES = (24 * 5 + 1, 31)
SHARDS = ("--train.shards=6", "--optim.ema=0.9")


@cache
def trained(world_size: int, arguments: tuple[str, ...], sizes: tuple[int, int] = SIZES, watched: bool = True) -> Any:
    """What each rank saw of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(world_size, train, arguments, Path(folder), sizes, watched)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_processes_changes_nothing_that_is_shown(world_size: int) -> None:
    """Of a whole run: with fixed shards its weights are the same too."""
    main, *others = trained(world_size, SHARDS)
    assert main[0] == trained(1, SHARDS)[0][0]
    assert [(step, epoch) for step, epoch, _ in main[0]] == [(6, 1), (12, 2)]
    assert all(other[0] == [] for other in others)


def test_a_run_shows_everything_of_each_epoch() -> None:
    ((shown, *_),) = trained(1, SHARDS)
    for _, _, media in shown:
        assert media["split"] == "test"
        assert 0 < len(media["mistakes"]) <= 5
        assert [example["index"] for example in media["samples"]] == [0, 1, 2, 3, 4]
        assert list(media["maps"]) == list(media["filters"]) == ["body.0", "body.4"]
        assert list(media["parameters"]) == list(media["gradients"])
        assert sum(media["gradients"]["body.0.weight"]["counts"]) == 6 * 25
    assert shown[0][2]["samples"] != shown[1][2]["samples"]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("setting", [SHARDS, ("--train.shards=0", "--optim.clip=0.5", "--train.accumulate=2")])
def test_looking_changes_no_weight_no_row_and_no_random_number(setting: tuple[str, ...], world_size: int) -> None:
    looked, blind = trained(world_size, setting), trained(world_size, setting, watched=False)
    for (_, rows, *ends), (shown, blind_rows, *blind_ends) in zip(looked, blind, strict=True):
        assert (ends, shown) == (blind_ends, [])
        assert comparable(rows) == comparable(blind_rows)


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: plain(value) for key, value in row.items() if key not in ROW_CLOCKS} for row in rows]


def test_ranks_and_splits_smaller_than_what_is_asked_for() -> None:
    """Three images in batches of seven: two of three processes have none."""
    runs = [trained(world_size, SHARDS, (25, 3)) for world_size in (1, 2, 3)]
    assert runs[0][0][0] == runs[1][0][0] == runs[2][0][0]
    for _, _, media in runs[0][0][0]:
        assert [example["index"] for example in media["samples"]] == [0, 1, 2]
        assert len(media["mistakes"]) <= 3


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stop", [3, 6])
def test_a_run_that_was_stopped_shows_what_one_that_was_not_does(stop: int, world_size: int, tmp_path: Path) -> None:
    """Stopped at an epoch's last step, it evaluates after it went on: of the last update no gradient is left then."""
    shown: Shown = []
    for step in (stop, -1):
        shown += run_ranks(world_size, train, SHARDS, tmp_path, SIZES, True, step)[0][0]
    expected = trained(1, SHARDS)[0][0]
    if stop == 6:
        assert shown[0][2].pop("gradients") == {}
        expected = [(*expected[0][:2], {k: v for k, v in expected[0][2].items() if k != "gradients"}), *expected[1:]]
    assert shown == expected


# The mistakes of a net without training, against all that it says


class Odd(ImageClassifier):
    """A net that says nothing of one image in three (all classes alike), and not even a number of one in eleven."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        number = images[:, 0, 0, :2].mul(255).round().long() @ torch.tensor([256, 1])
        logits = torch.where(number[:, None] % 3 == 0, 0.0, logits)
        return torch.where(number[:, None] % 11 == 5, torch.nan, logits)


def look(count: int, images: int) -> tuple[Any, list[list[float]]]:
    """What this rank shows of an untrained net; and, of each image, its loss and logits."""
    topology = read_topology()
    settings = ["--data.mean=0", "--data.std=1", "--train.batch_size=12", f"--tracking.examples={count}"]
    config = load([*ARGUMENTS, *settings, "--tracking.histograms=false"], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = runtime.place(Odd(nn.Sequential(nn.Flatten()), nn.Linear(784, 10)))
        data = image_set(images, seed=2)
        found: list[Any] = []
        insights = Insights(TrainingState(model, config, runtime), Splits(data, data, data), config, lambda *_: None)
        evaluate(model, data, config.data, runtime, 7, note=insights.note)
        media = insights.take()
        with torch.no_grad(), runtime.autocast():
            for start in range(0, images, 7):
                rows = slice(start, start + 7)
                logits = model(normalize(data.images[rows], config.data)).float()
                losses = F.cross_entropy(logits, data.labels[rows], reduction="none")
                found += [[loss, *row] for loss, row in zip(losses.tolist(), logits.tolist(), strict=True)]
        return plain(media), plain(found)


@cache
def looked(world_size: int, count: int, images: int) -> Any:
    return run_ranks(world_size, look, count, images)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("count", "images"), [(16, 100), (100, 100), (100, 40), (3, 2)])
def test_mistakes_are_exactly_those_of_the_largest_loss(count: int, images: int, world_size: int) -> None:
    """Among equal losses the first images come first; a loss that is no number is the largest."""
    (media, said), *others = looked(world_size, count, images)
    assert [other for other, _ in others] == [None] * (world_size - 1)
    labels = image_set(images, seed=2).labels.tolist()

    def predicted(row: list[Any]) -> int:
        return 0 if row[1] == "nan" else row[1:].index(max(row[1:]))

    wrong = [index for index in range(images) if predicted(said[index]) != labels[index]]
    wrong.sort(key=lambda index: (-float("inf") if said[index][0] == "nan" else -said[index][0], index))
    assert [example["index"] for example in media["mistakes"]] == wrong[:count]
    assert [example["index"] for example in media["samples"]] == list(range(min(count, images)))
    for example in media["mistakes"] + media["samples"]:
        loss, *logits = said[example["index"]]
        assert (example["loss"], example["label"]) == (loss, labels[example["index"]])
        assert example["predicted"] == predicted([loss, *logits])
        if loss != "nan":
            assert example["probabilities"] == torch.tensor(logits).softmax(0).tolist()
        first, second = example["image"][0][:2]
        assert first * 256 + second == example["index"]

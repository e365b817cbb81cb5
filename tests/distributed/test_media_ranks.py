"""What is shown beside numbers is the same at any number of processes, and looking changes nothing."""

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
def trained(
    world_size: int, arguments: tuple[str, ...], sizes: tuple[int, int] = SIZES, held_out_metrics: bool = True
) -> Any:
    """What each rank saw of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(world_size, train, arguments, Path(folder), sizes, held_out_metrics)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_processes_changes_nothing_that_is_shown(world_size: int) -> None:
    """Of a whole run: with fixed shards its weights are the same too."""
    main, *others = trained(world_size, SHARDS)
    assert main[0] == trained(1, SHARDS)[0][0]
    assert [(step, epoch) for step, epoch, _ in main[0]] == [(6, 1), (12, 2)]
    assert all(other[0] == [] for other in others)


def test_epochs_between_are_left_out() -> None:
    ((shown, *_),) = trained(1, (*SHARDS, "--train.epochs=6", "--tracking.media_epochs=4"))
    assert [epoch for _, epoch, _ in shown] == [1, 4, 6]
    ((shown, *_),) = trained(1, (*SHARDS, "--train.epochs=6", "--tracking.media_epochs=4", "--train.max_steps=15"))
    assert [(step, epoch) for step, epoch, _ in shown] == [(6, 1), (15, 3)]  # the last step's


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
    looked, blind = trained(world_size, setting), trained(world_size, setting, held_out_metrics=False)
    for (_, rows, *ends), (shown, blind_rows, *blind_ends) in zip(looked, blind, strict=True):
        assert (ends, shown) == (blind_ends, [])
        assert comparable(rows) == comparable(blind_rows)


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: to_plain(value) for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows]


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
    shown: LoggedMedia = []
    for step in (stop, -1):
        shown += run_ranks(world_size, train, SHARDS, tmp_path, SIZES, True, step)[0][0]
    expected = trained(1, SHARDS)[0][0]
    if stop == 6:
        assert shown[0][2].pop("gradients") == {}
        expected = [(*expected[0][:2], {k: v for k, v in expected[0][2].items() if k != "gradients"}), *expected[1:]]
    assert shown == expected


def program(mode: str, arguments: list[str]) -> tuple[int, list[tuple[int, int, bool]]]:
    """The program on a rank whose environment says offline if it is the main one; what its tracker is given."""
    os.environ["WANDB_MODE"] = mode if read_topology().is_main else "disabled"
    shown: list[tuple[int, int, bool]] = []

    class Tracker(tracker.NullTracker):
        def log_media(self, step: int, epoch: int, media: Media) -> None:
            shown.append((step, epoch, bool(media.samples and media.gradients)))

    tracker.open_tracker = lambda *_: Tracker()
    return program_main(arguments), shown


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_main_process_decides_for_all_whether_anything_is_shown(mode: str, tmp_path: Path) -> None:
    """Whatever the environment of the others says: who did not take part would be missed in the exchange."""
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=48, test=20)
    options = [f"--data.root={tmp_path}/data", "--data.source=local", "--data.val_size=0", f"--run.dir={tmp_path}/run"]
    main, *others = run_ranks(3, program, mode, [*ARGUMENTS, *options, "--run.quiet=true"])
    assert main == (EXIT_DONE, [(2, 1, True), (4, 2, True)] if mode == "offline" else [])
    assert others == [(EXIT_DONE, [])] * 2


# The mistakes of a net without training, against all that it says


class Odd(ImageClassifier):
    """A net to which all classes are alike in one image of three, that gives no number for one in eleven, and that has
    no doubt that one in five is a nine: its loss is infinite where that is wrong."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        number = images[:, 0, 0, :2].mul(255).round().long() @ torch.tensor([256, 1])
        logits = torch.where(number[:, None] % 3 == 0, 0.0, logits)
        sure = torch.full((10,), -torch.inf)
        sure[9] = 0.0
        logits = torch.where(number[:, None] % 5 == 2, sure, logits)
        return torch.where(number[:, None] % 11 == 5, torch.nan, logits)


def look(count: int, images: int) -> tuple[Any, list[list[float]]]:
    """What this rank shows of an untrained net; and, of each image, its loss and logits."""
    topology = read_topology()
    settings = ["--data.mean=0", "--data.std=1", "--train.batch_size=12", f"--tracking.examples={count}"]
    config = load([*ARGUMENTS, *settings, "--tracking.histograms=false"], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = runtime.to_device(Odd(nn.Sequential(nn.Flatten()), nn.Linear(784, 10)))
        data = synthetic_images(images, seed=2)
        found: list[Any] = []
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
                found += [[loss, *row] for loss, row in zip(losses.tolist(), logits.tolist(), strict=True)]
        return to_plain(media), to_plain(found)


def infinite_if_none(loss: Any) -> float:
    """The loss as mistakes are ordered by; nan and infinity alike."""
    return float(loss) if isinstance(loss, float) else math.inf


@cache
def looked(world_size: int, count: int, images: int) -> Any:
    return run_ranks(world_size, look, count, images)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("count", "images"), [(16, 100), (100, 100), (100, 40), (3, 2)])
def test_mistakes_are_exactly_those_of_the_largest_loss(count: int, images: int, world_size: int) -> None:
    """Among equal losses the first images come first; a loss that is no number is the largest."""
    (media, said), *others = looked(world_size, count, images)
    assert [other for other, _ in others] == [None] * (world_size - 1)
    labels = synthetic_images(images, seed=2).labels.tolist()

    def predicted(row: list[Any]) -> int:
        values = [float(value) for value in row[1:]]
        return 0 if math.isnan(values[0]) else values.index(max(values))

    wrong = [index for index in range(images) if predicted(said[index]) != labels[index]]
    wrong.sort(key=lambda index: (-infinite_if_none(said[index][0]), index))
    assert [example["index"] for example in media["mistakes"]] == wrong[:count]
    assert [example["index"] for example in media["samples"]] == list(range(min(count, images)))
    for example in media["mistakes"] + media["samples"]:
        loss, *logits = said[example["index"]]
        assert (example["loss"], example["label"]) == (loss, labels[example["index"]])
        assert example["predicted"] == predicted([loss, *logits])
        expected = torch.tensor([float(value) for value in logits]).softmax(0).tolist()
        assert example["probabilities"] == to_plain(expected)
        first, second = example["image"][0][:2]
        assert first * 256 + second == example["index"]

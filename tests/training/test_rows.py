"""Rows of metrics on one rank: losses, speed, gradient norms and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recorded_run import IMAGES, STEPS, Row, build, config, start, steps_of, stop_after, train_by_hand, update_norms

from mnist_dist.checkpoint.manager import list_checkpoints
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model
from mnist_dist.models.summary import count_flops
from mnist_dist.utils.errors import TrainingError


def test_rows_have_the_mean_loss_per_image_since_the_row_before(tmp_path: Path) -> None:
    """Rows are logged every three steps and at the end of each epoch, whose last batch has only two images."""
    settings = config(log_steps=3)
    run = start(settings, tmp_path)
    _, losses = train_by_hand(settings, epochs=2)
    sizes = [16, 16, 16, 2] * 2

    def mean(first: int, last: int) -> float:
        """Over the images of the batches first to last - 1."""
        total = sum(loss * size for loss, size in zip(losses[first:last], sizes[first:last], strict=True))
        return total / sum(sizes[first:last])

    expected = [(3, mean(0, 3)), (4, mean(3, 4)), (6, mean(4, 6)), (8, mean(6, 8))]
    found = run.values("train.loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    epochs = run.values("epoch.train.loss")
    assert [step for step, _ in epochs] == [4, 8]
    assert [loss for _, loss in epochs] == pytest.approx([mean(0, 4), mean(4, 8)], rel=1e-5)
    assert run.values("epoch.train.count") == [(4, IMAGES), (8, IMAGES)]
    assert all(0 <= accuracy <= 1 for _, accuracy in run.values("train.accuracy"))
    assert all(rate > 0 for _, rate in run.values("images_per_second"))
    assert [row["epoch"] for row in run.rows if "train.loss" in row] == [1, 1, 2, 2]
    assert [row["epoch"] for row in run.console.epochs] == [1, 2]


def test_rows_have_the_speed_since_the_row_before(tmp_path: Path) -> None:
    """Speed in steps, images and FLOPs agree; after a resume, it is measured from there on."""
    settings = config(log_steps=3)
    first = start(settings, tmp_path, before=stop_after(2))
    assert first.stopped
    resumed = start(settings, tmp_path, resume=list_checkpoints(tmp_path)[-1])
    flops = 3 * count_flops(create_model("basic"))
    rows = [row for row in first.rows + resumed.rows if "train.loss" in row]
    assert [row["step"] for row in rows] == [3, 4, 6, 8]
    for row, images in zip(rows, [16, 2, 16, 9], strict=True):  # mean number of images of a step
        assert row["step_seconds"] * row["images_per_second"] == pytest.approx(images)
        assert row["flops_per_second"] == pytest.approx(flops * row["images_per_second"])
        assert 1e6 < row["memory.peak_bytes"] < 1e12
        assert "mfu" not in row  # the peak was not measured


def test_rows_have_the_gradient_norms_before_clipping(tmp_path: Path) -> None:
    """At a learning rate of 1, plain SGD changes the weights by the gradient."""

    def norms(clip: float, name: str) -> dict[str, list[tuple[int, Any]]]:
        run = start(config({"lr": 1.0 if clip == 0 else 1e-9, "clip": clip}, max_steps=4), tmp_path / name)
        return {key: run.values(key) for key in ("gradient.norm", "gradient.norm_max")}

    expected, _ = update_norms(config({"lr": 1.0}, max_steps=4), tmp_path / "expected")
    unclipped, clipped = norms(0.0, "unclipped"), norms(1e-6, "clipped")
    assert unclipped["gradient.norm"] == [(3, pytest.approx(sum(expected[:3]) / 3)), (4, pytest.approx(expected[3]))]
    assert unclipped["gradient.norm_max"] == [(3, pytest.approx(max(expected[:3]))), (4, pytest.approx(expected[3]))]
    assert min(norm for _, norm in clipped["gradient.norm"]) > 0.1
    assert not any(key.startswith("step_seconds.") for row in start(config(), tmp_path / "one").rows for key in row)


def test_evaluations_count_every_image_once_at_any_batch_size(tmp_path: Path) -> None:
    def evaluate(size: int) -> list[Row]:
        settings = config(eval_batch_size=size)
        with start_runtime(settings, Topology()) as runtime:
            trainer = build(settings, runtime)
            rows = [trainer.evaluate(name).row(name) for name in ("train", "val", "test")]
            assert trainer.state.model.training  # back in training mode
            return rows

    rows = evaluate(4)
    assert [rows[0]["train.count"], rows[1]["val.count"], rows[2]["test.count"]] == [IMAGES, 11, 7]
    for size in (1, 11, 1000):
        for row, other in zip(rows, evaluate(size), strict=True):
            assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("train", [{"log_steps": 2}, {"log_steps": 50}, {"log_steps": 50, "max_steps": 3}])
def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint(tmp_path: Path, train: dict[str, int]) -> None:
    """It is found at a row, at the end of an epoch or at the end of the run, whichever is first."""
    with pytest.raises(TrainingError) as error:
        start(config({"lr": 1e30}, **train), tmp_path)
    step = min(train.values())
    noticed = min(step, STEPS)
    assert str(error.value).startswith(
        f"the gradient was not finite in {noticed - 1} of the steps from 2 to {noticed} "
    )
    assert "lower optim.lr=1e+30" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.everywhere
    assert steps_of(tmp_path) == []

"""Metrics of 2, 47 and 1000 classes are counted exactly, and checkpoints and rows hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mnist_dist.checkpoint.resume_checks import check_resumable
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.training.examples import ExampleCollector
from mnist_dist.training.metrics import MAX_PENDING, Counts, Metrics, pack_counts, unpack_counts
from mnist_dist.utils.errors import UserError

CPU = torch.device("cpu")
SIZES = (2, 47, 100, 101, 1000)


def draw_batches(num_classes: int, batches: int = MAX_PENDING + 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(batches, 7, num_classes, generator=generator)
    labels = torch.randint(num_classes, (batches, 7), generator=generator)
    return [(x, y, cross_entropy(x, y, reduction="none")) for x, y in zip(logits, labels, strict=True)]


def count(num_classes: int) -> Counts:
    counts = Counts(CPU, num_classes)
    for batch in draw_batches(num_classes):
        counts.add(*batch)
    return counts


@pytest.mark.parametrize("num_classes", SIZES)
def test_each_image_is_counted_in_its_cell(num_classes: int) -> None:
    expected: dict[tuple[int, int], int] = {}
    top2 = 0
    for logits, labels, _ in draw_batches(num_classes):
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            cell = label, max(range(num_classes), key=row.__getitem__)
            expected[cell] = expected.get(cell, 0) + 1
            top2 += sum(value > row[label] for value in row) < 2
    metrics = Metrics.from_counts(count(num_classes).tensor.tolist())
    found = {(a, b): n for a, row in enumerate(metrics.confusion) for b, n in enumerate(row) if n}
    assert found == expected
    assert len(metrics.confusion) == num_classes
    assert (metrics.count, metrics.top2_correct) == (7 * (MAX_PENDING + 3), top2)
    assert metrics.correct == sum(n for (a, b), n in expected.items() if a == b)


@pytest.mark.parametrize("num_classes", SIZES)
def test_a_checkpoint_gives_the_counts_back(num_classes: int) -> None:
    counts = count(num_classes)
    values: list[int] = counts.tensor.tolist()
    packed = json.loads(json.dumps(pack_counts(values)))
    assert unpack_counts(packed, num_classes) == values
    assert len(packed) <= 3 + (num_classes**2 if num_classes <= 100 else 2 * 7 * (MAX_PENDING + 3))
    other = Counts(CPU, num_classes)
    other.restore(packed, keep=True)
    assert other.tensor.equal(counts.tensor)
    other.restore(packed, keep=False)
    assert not other.tensor.any()


@pytest.mark.parametrize(("ours", "theirs"), [(47, 10), (10, 47), (1000, 10), (10, 1000), (101, 1000)])
def test_counts_of_another_number_of_classes_are_refused(ours: int, theirs: int) -> None:
    with pytest.raises(UserError, match=rf"the checkpoint's metrics \(\d+ counts\) are not of {ours} classes"):
        Counts(CPU, ours).restore(pack_counts(count(theirs).tensor.tolist()), keep=True)


def test_of_many_classes_a_row_has_the_cells_that_are_not_0() -> None:
    few = Metrics.from_counts(count(100).tensor.tolist()).details("test")
    assert len(few["test.confusion"]) == 100
    metrics = Metrics.from_counts(count(101).tensor.tolist())
    details = metrics.details("test")
    assert details.keys() == {"test.precision", "test.recall", "test.confusion_cells"}
    assert len(details["test.recall"]) == 101
    assert sum(n for _, _, n in details["test.confusion_cells"]) == metrics.count
    assert all(metrics.confusion[a][b] == n > 0 for a, b, n in details["test.confusion_cells"])


def test_mistakes_are_collected_with_all_logits() -> None:
    collector = ExampleCollector(2, num_classes=47)
    ((logits, labels, losses),) = draw_batches(47, batches=1)
    collector.add(0, logits, labels, losses)
    rows = collector.rows(CPU)
    assert rows.shape == (4, 3 + 47)
    assert rows[2, 3:].equal(logits[0])


def test_a_run_does_not_go_on_with_another_number_of_classes() -> None:
    before = Config(data=DataConfig(name="idx", root="data", classes=("a", "b", "c")))
    renamed = Config(data=DataConfig(name="idx", root="moved", classes=("x", "y", "z")))
    check_resumable(renamed, before.to_dict(), Path("step-00000007"))
    for now, said in ((("a", "b"), "on 3 classes, but there are 2 now"), ((), "on 3 classes, but there are 10 now")):
        config = Config(data=DataConfig(name="idx" if now else "mnist", classes=now))
        with pytest.raises(UserError, match=f"^step-00000007: was trained {said}; name the same data with"):
            check_resumable(config, before.to_dict(), Path("step-00000007"))
    written_before = {"data": {"root": "fashion", "classes": list("0123456789")}}  # by a version without data.name
    check_resumable(Config(data=DataConfig(name="fashion", root="fashion")), written_before, Path("step-00000007"))

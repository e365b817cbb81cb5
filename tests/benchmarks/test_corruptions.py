"""Corruptions move, turn, blur, widen by what they say, and are the same each time; confidence against accuracy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from common import corruptions
from common.calibration import BINS, Calibration
from common.corruptions import CORRUPTIONS, corrupt


def bar(rows: slice, columns: slice, count: int = 1) -> Tensor:
    """White bars on black: uint8 (count, 1, 28, 28)."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, :, rows, columns] = 255
    return images


def centre(images: Tensor) -> Tensor:
    """Mean place of the light, (row, column), of each image: (N, 2)."""
    weights = images.squeeze(1).double()
    places = torch.arange(28, dtype=torch.float64)
    both = torch.stack([(weights.sum(2) * places).sum(1), (weights.sum(1) * places).sum(1)], dim=1)
    return both / weights.sum((1, 2))[:, None]


def widths(images: Tensor) -> list[float]:
    """Light in the middle row, in pixels."""
    return (images[:, 0, 14].double().sum(1) / 255).tolist()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_each_time_and_independent_of_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (7, 1, 28, 28), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    before = images.clone()
    whole = corrupt(images, name, CORRUPTIONS[name].sizes[2])
    torch.manual_seed(5)  # the global generator has no part in it
    monkeypatch.setattr(corruptions, "CHUNK", 3)
    assert torch.equal(whole, corrupt(images, name, CORRUPTIONS[name].sizes[2]))
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape


def test_a_larger_severity_changes_more_and_the_drawn_numbers_stay() -> None:
    images = bar(slice(8, 20), slice(12, 16), count=5)
    for name, corruption in CORRUPTIONS.items():
        changed = [(corrupt(images, name, size).double() - images).abs().mean() for size in corruption.sizes]
        assert changed == sorted(changed)
        assert changed[0] > 0
        assert len(corruption.sizes) == 5
    moved = [centre(corrupt(images, "shift", size)) - centre(images) for size in (1, 3)]
    assert torch.allclose(3 * moved[0], moved[1], atol=0.05)


def test_a_shift_moves_by_its_pixels_in_a_direction_of_each_image() -> None:
    images = bar(slice(10, 18), slice(12, 16), count=20)
    moved = centre(corrupt(images, "shift", 4)) - centre(images)
    assert torch.allclose(moved.norm(dim=1), torch.full((20,), 4.0, dtype=torch.float64), atol=0.05)
    assert len({round(math.atan2(*step), 2) for step in moved.tolist()}) > 15


def test_a_rotation_turns_by_its_degrees_to_both_sides() -> None:
    images = bar(slice(2, 14), slice(13, 15), count=20)  # from the middle upwards
    up = centre(corrupt(images, "rotation", 30)) - 13.5
    angles = [round(math.degrees(math.atan2(column, -row))) for row, column in up.tolist()]
    assert {abs(angle) for angle in angles} == {30}
    assert len(set(angles)) == 2


def test_noise_has_its_standard_deviation() -> None:
    grey = torch.full((50, 1, 28, 28), 128, dtype=torch.uint8)
    assert (corrupt(grey, "noise", 0.1).double() / 255).std().item() == pytest.approx(0.1, rel=0.02)


def test_a_blur_has_its_standard_deviation_and_keeps_the_light() -> None:
    dot = 255 * bar(slice(14, 15), slice(14, 15)).float() / 255
    blurred = corruptions.blur(dot, 2.0, torch.empty(0))
    places = torch.arange(28) - 14.0
    share = blurred[0, 0] / blurred.sum()
    assert blurred.sum().item() == pytest.approx(255, rel=1e-5)
    assert math.sqrt((share.sum(0) * places**2).sum()) == pytest.approx(2.0, rel=0.02)


def test_strokes_grow_and_shrink_by_the_radius_at_each_edge() -> None:
    line = bar(slice(4, 24), slice(12, 16))
    assert widths(line) == [4]
    for name, sign, radii in (("thick", 1, (0.5, 1, 2.5)), ("thin", -1, (0.25, 1, 1.25))):
        found = [widths(corrupt(line, name, radius))[0] for radius in radii]
        assert found == pytest.approx([4 + 2 * sign * radius for radius in radii], abs=0.01)
    assert torch.equal(corruptions.dilate(line.float(), 0, scale=4), line.float())


def test_the_disc_is_round() -> None:
    dot = bar(slice(14, 15), slice(14, 15)).float()
    grown = corruptions.dilate(dot, 4, scale=1)[0, 0] > 0
    rows, columns = torch.meshgrid(torch.arange(28) - 14, torch.arange(28) - 14, indexing="ij")
    assert torch.equal(grown, rows**2 + columns**2 <= 16)


def logits_of(confidences: list[float]) -> Tensor:
    """Logits of ten classes, the first of which has these probabilities."""
    rest = [(1 - confidence) / 9 for confidence in confidences]
    return torch.tensor([[own, *[other] * 9] for own, other in zip(confidences, rest, strict=True)]).log()


def test_calibration_error_by_hand() -> None:
    # Three bins: 0.9 (right, right, wrong, wrong), 0.5 (right), 0.3 (wrong).
    confidences, labels = [0.9, 0.9, 0.9, 0.9, 0.5, 0.3], [0, 0, 1, 2, 0, 3]
    calibration = Calibration(nn.Identity())
    calibration.add(0, logits_of(confidences), torch.tensor(labels), torch.zeros(6))
    expected = (4 * abs(0.5 - 0.9) + abs(1 - 0.5) + abs(0 - 0.3)) / 6
    assert calibration.error() == pytest.approx(expected, abs=1e-6)
    assert calibration.counts.sum() == 6


def test_bins_hold_their_upper_end() -> None:
    calibration = Calibration(nn.Identity())
    calibration.add(0, torch.tensor([[100.0, *[0.0] * 9], [0.0] * 10]), torch.tensor([0, 0]), torch.zeros(2))
    assert calibration.counts.tolist() == [0, 1, *[0] * (BINS - 3), 1]  # 1, and 0.1, which is above 1/15


def test_calibration_does_not_depend_on_order_or_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(500, 10, generator=generator), torch.randint(10, (500,), generator=generator)
    found = []
    for order, size in ((torch.arange(500), 500), (torch.randperm(500, generator=generator), 7)):
        calibration = Calibration(nn.Identity())
        for rows in order.split(size):
            calibration.add(0, logits[rows], labels[rows], torch.zeros(len(rows)))
        found.append(calibration.error())
    assert found[0] == found[1]

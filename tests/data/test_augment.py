"""Augmentation: transforms within their limits, the same for a position on any process; every pixel in its place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnist_dist.config.sections import DataConfig
from mnist_dist.data.augment import apply_affine, is_augmented, random_affine, random_displacement

PIXEL = 2 / 28
IDENTITY = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])


def picture() -> Tensor:
    """One image (1, 1, 28, 28) whose pixels are all different."""
    return torch.arange(1.0, 785).reshape(1, 1, 28, 28)


@pytest.mark.parametrize("key", ["shift", "rotate", "scale", "shear", "elastic"])
def test_any_of_the_five_turns_augmentation_on(key: str) -> None:
    assert not is_augmented(DataConfig())
    assert is_augmented(DataConfig(**{key: 0.5}))


def test_nothing_asked_for_is_the_identity() -> None:
    theta = random_affine(DataConfig(), 100, seed=0, epoch=0)
    assert theta.dtype == torch.float32
    assert theta.equal(IDENTITY.expand(100, 2, 3))
    assert random_displacement(DataConfig(shift=2), 100, seed=0, epoch=0) is None


@settings(max_examples=100, deadline=None)
@given(
    shift=st.floats(0, 14),
    rotate=st.floats(0, 180),
    scale=st.floats(0, 0.9),
    shear=st.floats(0, 60),
    seed=st.integers(0, 2**31 - 1),
)
def test_transforms_stay_within_their_limits(
    shift: float, rotate: float, scale: float, shear: float, seed: int
) -> None:
    """Each transform is a rotation times a shear over a size, then a shift; each factor is within its limit."""
    theta = random_affine(DataConfig(shift=shift, rotate=rotate, scale=scale, shear=shear), 200, seed, epoch=1).double()
    (a, b, across), (c, d, down) = (row.unbind(1) for row in theta.unbind(1))
    size = 1 / torch.hypot(a, c)
    angle = torch.atan2(c, a)
    slope = (a * b + c * d) * size**2
    assert torch.allclose(a * d - b * c, size**-2, rtol=1e-3)  # a shear keeps areas
    assert across.abs().max() <= shift * PIXEL + 1e-5
    assert down.abs().max() <= shift * PIXEL + 1e-5
    assert angle.abs().max() <= math.radians(rotate) + 1e-5
    assert (size - 1).abs().max() <= scale + 1e-5
    assert slope.abs().max() <= math.tan(math.radians(shear)) + 1e-4


def test_limits_are_approached_on_both_sides() -> None:
    theta = random_affine(DataConfig(shift=3, rotate=10, scale=0.2), 2000, seed=0, epoch=0)
    angle, size = torch.atan2(theta[:, 1, 0], theta[:, 0, 0]), 1 / torch.hypot(theta[:, 0, 0], theta[:, 1, 0])
    for values, limit in ((theta[:, 0, 2], 3 * PIXEL), (theta[:, 1, 2], 3 * PIXEL), (angle, math.radians(10))):
        assert values.max() > 0.95 * limit
        assert values.min() < -0.95 * limit
    assert size.max() > 1.19
    assert size.min() < 0.81


def test_a_transform_depends_on_seed_epoch_and_position_alone() -> None:
    config = DataConfig(shift=2, rotate=15)
    torch.manual_seed(123)
    theta = random_affine(config, 50, seed=1, epoch=2)
    torch.manual_seed(456)
    assert random_affine(config, 50, seed=1, epoch=2).equal(theta)
    assert len(theta.unique(dim=0)) == 50
    assert not random_affine(config, 50, seed=2, epoch=2).isclose(theta).all(2).any()
    assert not random_affine(config, 50, seed=1, epoch=3).isclose(theta).all(2).any()


def test_the_identity_changes_nothing() -> None:
    assert torch.allclose(apply_affine(picture(), IDENTITY), picture(), atol=1e-2)


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 1), (-3, 2)])
def test_a_shift_moves_by_whole_pixels_and_leaves_0_behind(across: int, down: int) -> None:
    theta = IDENTITY.clone()
    theta[0, :, 2] = torch.tensor([across, down]) * PIXEL
    image, expected = picture()[0, 0], torch.zeros(28, 28)
    for y in range(28):
        for x in range(28):
            if 0 <= y + down < 28 and 0 <= x + across < 28:
                expected[y, x] = image[y + down, x + across]
    assert torch.allclose(apply_affine(picture(), theta)[0, 0], expected, atol=1e-2)


def test_a_quarter_turn_turns_the_picture() -> None:
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])
    assert torch.allclose(apply_affine(picture(), turn), picture().rot90(1, (2, 3)), atol=1e-2)


def test_a_larger_size_enlarges_and_shear_slants() -> None:
    square = torch.zeros(1, 1, 28, 28)
    square[..., 10:18, 10:18] = 1
    doubled = apply_affine(square, IDENTITY / 2)
    assert doubled.sum() == pytest.approx(4 * square.sum().item(), rel=1e-4)
    config = DataConfig(scale=0.5)
    sizes = [
        apply_affine(square, theta[None]).sum().item() / 64 for theta in random_affine(config, 50, seed=0, epoch=0)
    ]
    assert 0.2 < min(sizes) < 0.5
    assert 1.8 < max(sizes) < 2.3
    slanted = apply_affine(square, torch.tensor([[[1.0, 0.5, 0], [0, 1, 0]]]))
    assert slanted.sum().item() == pytest.approx(64, rel=1e-4)
    assert torch.allclose(slanted.sum(3), square.sum(3), atol=1e-4)  # rows keep their ink
    assert not slanted.isclose(square).all()


def test_each_image_has_its_own_transform_in_float32_under_autocast() -> None:
    images = torch.rand(6, 1, 28, 28)
    theta = random_affine(DataConfig(shift=2, rotate=20, scale=0.1, shear=10), 6, seed=0, epoch=0)
    together = apply_affine(images, theta)
    one_by_one = [apply_affine(images[i : i + 1], theta[i : i + 1]) for i in range(6)]
    assert together.equal(torch.cat(one_by_one))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert apply_affine(images, theta).equal(together)


# Elastic distortion


def test_displacements_have_their_deviation_in_pixels_and_depend_on_seed_epoch_and_position_alone() -> None:
    config = DataConfig(elastic=1.5)
    torch.manual_seed(1)
    drawn = random_displacement(config, 4000, seed=1, epoch=2)
    assert drawn is not None
    assert (drawn.shape, drawn.dtype) == ((4000, 2, 5, 5), torch.float32)
    assert (drawn / PIXEL).std(0).sub(1.5).abs().max() < 0.1
    assert (drawn / PIXEL).mean(0).abs().max() < 0.1
    torch.manual_seed(2)
    assert random_displacement(config, 4000, seed=1, epoch=2).equal(drawn)
    for seed, epoch in ((2, 2), (1, 3)):
        assert not random_displacement(config, 4000, seed, epoch).isclose(drawn).flatten(1).any(1).all()


def test_the_other_transforms_are_the_same_with_and_without_elastic_distortion() -> None:
    """So that the results of recipes from before it stay as they are, bit for bit."""
    theta = random_affine(DataConfig(shift=2, rotate=15), 50, seed=1, epoch=2)
    assert random_affine(DataConfig(shift=2, rotate=15, elastic=2), 50, seed=1, epoch=2).equal(theta)
    images = torch.rand(50, 1, 28, 28)
    assert apply_affine(images, theta, None).equal(apply_affine(images, theta))


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 1), (-3, 2)])
def test_points_that_all_move_alike_shift_the_picture(across: int, down: int) -> None:
    displacement = (torch.tensor([across, down]) * PIXEL).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    theta = IDENTITY.clone()
    theta[0, :, 2] = torch.tensor([across, down]) * PIXEL
    assert torch.allclose(apply_affine(picture(), IDENTITY, displacement), apply_affine(picture(), theta), atol=1e-1)


def test_a_moved_point_moves_what_is_near_it_smoothly_and_nothing_else() -> None:
    ramp = torch.arange(28.0).expand(1, 1, 28, 28)  # the value of a pixel is its column
    displacement = torch.zeros(1, 2, 5, 5)
    displacement[0, 0, 2, 2] = -2 * PIXEL  # the middle of the image shows what is two pixels to its left
    moved = (ramp - apply_affine(ramp, IDENTITY, displacement))[0, 0]
    assert moved[13:15, 13:15].sub(2).abs().max() < 0.1
    assert moved[[0, 0, 27, 27], [0, 27, 0, 27]].abs().max() < 1e-3
    assert moved[:, 3:25].diff(dim=1).abs().max() < 0.5
    assert moved[3:25].diff(dim=0).abs().max() < 0.5


def test_each_image_has_its_own_distortion_in_float32_under_autocast() -> None:
    images, config = torch.rand(37, 1, 28, 28), DataConfig(shift=2, elastic=1)
    theta, drawn = (draw(config, 37, seed=0, epoch=0) for draw in (random_affine, random_displacement))
    together = apply_affine(images, theta, drawn)
    assert not together.isclose(apply_affine(images, theta)).all(3).all(2).any()
    one_by_one = [apply_affine(images[i : i + 1], theta[i : i + 1], drawn[i : i + 1]) for i in range(37)]
    assert together.equal(torch.cat(one_by_one))
    assert apply_affine(images[5:9], theta[5:9], drawn[5:9]).equal(together[5:9])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert apply_affine(images, theta, drawn).equal(together)

"""The trained model as a module: images of any usual kind, normalised by itself; and errors for all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.checkpoint.trained_model import TrainedModel
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.loader import normalize
from mnist_dist.models import create_model

CONFIG = Config(data=DataConfig(mean=0.2, std=0.4))
IMAGES = torch.randint(256, (6, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    """An untrained one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TrainedModel(LoadedModel(CONFIG, create_model("basic").eval(), 7, {}))


@pytest.fixture(scope="module")
def expected(model: TrainedModel) -> Tensor:
    """The logits, by what training does to pixels."""
    return model.model(normalize(IMAGES[:, None], CONFIG.data))


@pytest.mark.parametrize(
    "images",
    [IMAGES, IMAGES[:, None], IMAGES.numpy(), IMAGES.numpy()[:, ::-1, ::-1][:, ::-1, ::-1]],
    ids=["tensor", "channels", "NumPy", "negative strides"],
)
def test_integer_pixels_give_the_logits_of_training(model: TrainedModel, expected: Tensor, images: Any) -> None:
    assert torch.equal(model(images), expected)
    assert torch.equal(model.predict(images), expected.argmax(1))
    assert torch.equal(model.probabilities(images), expected.detach().softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_pixels_give_the_same_but_for_rounding(model: TrainedModel, expected: Tensor, dtype: Any) -> None:
    images = IMAGES.to(dtype) / 255
    before = images.clone()
    torch.testing.assert_close(model(images), expected)
    assert torch.equal(images, before)


def test_one_image_is_a_batch_of_one_and_none_is_one_of_none(model: TrainedModel, expected: Tensor) -> None:
    picture = Image.fromarray(IMAGES[3].numpy())
    for image in (IMAGES[3], IMAGES[3:4], IMAGES[3, None, None], picture):
        torch.testing.assert_close(model(image), expected[3:4])
    assert model(IMAGES[:0]).shape == (0, 10)


def test_gradients_reach_the_images(model: TrainedModel) -> None:
    images = (IMAGES / 255).requires_grad_()
    model(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not model.probabilities(images).requires_grad


def test_another_dtype_of_the_weights(model: TrainedModel, expected: Tensor) -> None:
    double = TrainedModel(LoadedModel(CONFIG, create_model("basic"), 7, {}))
    double.load_state_dict(model.state_dict())
    assert double.double()(IMAGES).dtype == torch.float64
    torch.testing.assert_close(double(IMAGES).float(), expected)


def test_it_says_what_it_is(model: TrainedModel) -> None:
    assert not model.training
    assert not model.model.training
    assert (model.step, model.config, model.class_names) == (7, CONFIG, tuple("0123456789"))
    assert f"step=7, weights_sha256={model.weights_sha256[:12]}" in repr(model)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(28, 27), ValueError, r"must have the shape \(B, 28, 28\), .* not \(28, 27\)"),
        (torch.zeros(5, 3, 28, 28), ValueError, r"not \(5, 3, 28, 28\)"),
        (torch.zeros(5, 28, 28, 1), ValueError, r"not \(5, 28, 28, 1\)"),
        (torch.zeros(2, 2, 1, 28, 28), ValueError, r"not \(2, 2, 1, 28, 28\)"),
        (torch.zeros(784), ValueError, r"not \(784,\)"),
        (torch.zeros(1, 28, 28, dtype=torch.int64), TypeError, "must be uint8, or floating point .* not torch.int64"),
        (np.zeros((28, 28), dtype=bool), TypeError, "not torch.bool"),
        ([[0.0] * 28] * 28, TypeError, "must be a tensor or a NumPy array, not list"),
        (IMAGES.float(), ValueError, "from 0 to 1, not from 0 to 255; give uint8"),
        (torch.full((1, 28, 28), -0.42), ValueError, "not from -0.42 to -0.42"),
        (torch.full((1, 28, 28), float("nan")), ValueError, "not from nan to nan"),
    ],
)
def test_other_images_are_refused_in_one_line(
    model: TrainedModel, images: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^images: .*{message}") as raised:
        model(images)
    assert "\n" not in str(raised.value)

"""The models: registered under the names in the configuration, with the layers of their tutorials."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnist_dist.config.model_names import MODELS
from mnist_dist.models import (
    ImageClassifier,
    create_model,
    describe_model,
    list_models,
    register_model,
    registry,
)
from mnist_dist.models.summary import count_flops, count_parameters, summarize
from mnist_dist.utils.errors import UserError

ALL = list_models()

SHAPES = {
    "cnn": [(16, 28, 28), (16, 14, 14), (32, 14, 14), (32, 7, 7), (1568,), (10,)],
    "convnet": [(8, 28, 28), (8, 14, 14), (16, 14, 14), (16, 7, 7), (784,), (10,)],
    "basic": [(10, 24, 24), (10, 12, 12), (20, 8, 8), (20, 4, 4), (320,), (10,)],
    "deep_head": [(10, 24, 24), (10, 12, 12), (20, 10, 10), (2000,), (500,), (10,)],
    "deep_head_fixed": [(10, 24, 24), (10, 12, 12), (20, 10, 10), (2000,), (500,), (10,)],
    "compact": [(4, 12, 12), (32, 12, 12), (32, 6, 6), (64, 4, 4), (64, 2, 2), (256,), (10,)],
    "tiny": [(16, 14, 14), (16, 7, 7), (32, 7, 7), (32,), (10,)],
    "tiny700": [(16, 28, 28), (16, 14, 14), (16, 7, 7), (16,), (10,)],
    "allconv": [
        *[(4, 14, 14), (48, 12, 12), (64, 10, 10), (80, 8, 8), (96, 6, 6), (112, 4, 4)],
        *[(1792,), (10,)],
    ],
    "unshuffle": [(4, 14, 14), (32, 14, 14), (32, 7, 7), (64, 7, 7), (64, 3, 3), (576,), (128,), (10,)],
}
"""Output shapes of the layers, without those that equal the shape before."""

LAYERS = {
    "cnn": "conv 16@5x5 pad 2, max-pool 2, relu, conv 32@5x5 pad 2, max-pool 2, relu, flatten, linear 10",
    "convnet": "conv 8@3x3 pad 1, max-pool 2, relu, conv 16@3x3 pad 1, max-pool 2, relu, flatten, linear 10",
    "basic": "conv 10@5x5 pad 0, max-pool 2, relu, conv 20@5x5 pad 0, max-pool 2, relu, flatten, linear 10",
    "deep_head": "conv 10@5x5 pad 0, max-pool 2, relu, conv 20@3x3 pad 0, relu, flatten, linear 500, relu, linear 10, "
    "relu, softmax",
    "deep_head_fixed": "conv 10@5x5 pad 0, max-pool 2, relu, conv 20@3x3 pad 0, relu, flatten, linear 500, relu, "
    "linear 10",
}
"""Layers of the five tutorials' models, with the pooling before the ReLU."""


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# Names


def test_the_configuration_knows_exactly_the_registered_names() -> None:
    assert sorted(MODELS) == ALL == sorted(SHAPES)
    assert len({describe_model(name) for name in ALL}) == len(ALL)


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    def mine(num_classes: int = 10) -> ImageClassifier:
        """What it is.

        More of it.
        """
        return ImageClassifier(nn.Sequential(nn.Flatten()), nn.Linear(784, num_classes))

    assert register_model(mine) is mine
    assert "mine" in list_models()
    assert describe_model("mine") == "What it is."
    assert create_model("mine")(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ValueError, match="named mine is registered already"):
        register_model(mine)
    with pytest.raises(KeyError):
        create_model("yours")


@pytest.mark.parametrize("name", ALL)
def test_every_model_takes_the_number_of_classes(name: str) -> None:
    assert create_model(name, num_classes=47)(torch.zeros(2, 1, 28, 28)).shape == (2, 47)


# Layers


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_layers(name: str) -> None:
    layers = summarize(create_model(name)).layers
    shapes = [layer.shape for layer in layers]
    assert [shape for before, shape in zip([(1, 28, 28), *shapes], shapes, strict=False) if shape != before] == (
        SHAPES[name]
    )
    if name in LAYERS:
        assert ", ".join(layer.kind for layer in layers) == LAYERS[name]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cnn", 16 * 25 + 16 + 32 * 16 * 25 + 32 + 1568 * 10 + 10),
        ("convnet", 8 * 9 + 8 + 16 * 8 * 9 + 16 + 784 * 10 + 10),
        ("basic", 10 * 25 + 10 + 20 * 10 * 25 + 20 + 320 * 10 + 10),
        ("deep_head", 10 * 25 + 10 + 20 * 10 * 9 + 20 + 2000 * 500 + 500 + 500 * 10 + 10),
    ],
)
def test_parameters_are_counted(name: str, parameters: int) -> None:
    model = create_model(name)
    summary = summarize(model)
    assert count_parameters(model) == summary.parameters == parameters
    assert sum(layer.parameters for layer in summary.layers) == parameters


def test_flops_are_counted() -> None:
    """A multiply-add is two: filters x positions, then the linear layer."""
    expected = 2 * (8 * 9 * 28 * 28 + 16 * 8 * 9 * 14 * 14 + 784 * 10)
    assert summarize(create_model("convnet")).flops == expected


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_before_the_relu_changes_no_bit(format_: torch.memory_format, dtype: torch.dtype) -> None:
    """Values and gradients are equal, also with ties and where all values of a window are negative."""
    maps = torch.randn(4, 6, 8, 8).to(dtype)
    maps[:2] = maps[:2].round()
    weights = torch.randn(4, 6, 4, 4).to(dtype)
    found = []
    for layers in ((nn.ReLU(), nn.MaxPool2d(2)), (nn.MaxPool2d(2), nn.ReLU())):
        leaf = maps.clone(memory_format=format_).requires_grad_()
        out = nn.Sequential(*layers)(leaf)
        (out * weights).sum().backward()
        found.append((out, leaf.grad))
    assert found[0][0].equal(found[1][0])
    assert found[0][1].equal(found[1][1])


@pytest.mark.parametrize("name", ALL)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    model = create_model(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    assert count_flops(model) == counter.get_total_flops() > 0


@pytest.mark.parametrize("training", [True, False])
def test_counting_flops_changes_nothing(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(1352, 10))
    model.train(training)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    drawn = torch.get_rng_state()
    assert count_flops(model) == 2 * (9 * 2 * 26 * 26 + 1352 * 10)
    assert all(one.equal(other) for one, other in zip(before, model.state_dict().values(), strict=True))
    assert drawn.equal(torch.get_rng_state())
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


# Outputs and gradients


@pytest.mark.parametrize("name", ALL)
def test_features_logits_and_probabilities(name: str) -> None:
    model = create_model(name).eval()
    images = torch.randn(5, 1, 28, 28)
    logits, features = model.forward_features(images)
    assert logits.equal(model(images))
    assert logits.shape == (5, 10)
    assert features.shape[1:] == next(shape for shape in SHAPES[name] if len(shape) == 1)
    assert model.head(features).equal(logits)
    probabilities = model.probabilities(logits.bfloat16())
    assert probabilities.dtype == torch.float32
    assert probabilities.min() >= 0
    assert torch.allclose(probabilities.sum(1), torch.ones(5), atol=0.02)  # bfloat16 has 8 bits
    assert torch.allclose(model.probabilities(logits).sum(1), torch.ones(5), atol=1e-5)
    assert model.probabilities(logits).argmax(1).equal(logits.argmax(1))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_parameter_gets_a_gradient_from_any_batch(name: str, count: int) -> None:
    """From an empty microbatch too: DistributedDataParallel waits for every gradient."""
    model = create_model(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = torch.arange(count)
    F.cross_entropy(model(torch.randn(count, 1, 28, 28)), labels, reduction="none").sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if name != "deep_head":  # its last ReLU may be 0 for all images
            assert bool(parameter.grad.any()) == bool(count), key


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_draws_the_same_weights(name: str) -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(create_model(name).parameters())

    assert all(one.equal(other) for one, other in zip(draw(1), draw(1), strict=True))
    assert not any(one.equal(other) for one, other in zip(draw(1), draw(2), strict=True) if one.unique().numel() > 1)


# The tutorials' peculiarities


def test_convnet_draws_weights_of_standard_deviation_0_01_and_no_biases() -> None:
    for key, parameter in create_model("convnet").named_parameters():
        if key.endswith("bias"):
            assert not parameter.any(), key
        else:
            # The mean and the deviation of n draws: within five of their own standard errors.
            n = parameter.numel()
            assert abs(parameter.mean().item()) < 5 * 0.01 / n**0.5, key
            assert abs(parameter.std().item() - 0.01) < 5 * 0.01 / (2 * n) ** 0.5, key


def test_deep_head_returns_probabilities_and_deep_head_fixed_logits() -> None:
    published, fixed = create_model("deep_head"), create_model("deep_head_fixed")
    fixed.load_state_dict(published.state_dict())
    images = torch.randn(4, 1, 28, 28)
    output = published(images)
    assert torch.allclose(output.sum(1), torch.ones(4), atol=1e-5)
    assert torch.allclose(output, fixed(images).relu().softmax(1))
    assert published.probabilities(output).equal(output)
    assert torch.allclose(fixed.probabilities(fixed(images)), fixed(images).softmax(1))


def test_deep_head_and_deep_head_fixed_start_from_the_same_weights() -> None:
    torch.manual_seed(3)
    published = create_model("deep_head").state_dict()
    torch.manual_seed(3)
    fixed = create_model("deep_head_fixed").state_dict()
    assert published.keys() == fixed.keys()
    assert all(fixed[key].equal(value) for key, value in published.items())


def test_unshuffle_moves_pixels_as_torch_does() -> None:
    images = torch.randn(3, 1, 28, 28)
    first = create_model("unshuffle").body[0]
    assert first(images).equal(nn.PixelUnshuffle(2)(images))
    assert first(images[:0]).shape == (0, 4, 14, 14)


def test_allconv_has_the_convolutions_that_are_asked_for() -> None:
    for width, depth, patch in ((48, 5, 2), (8, 1, 2), (8, 6, 2), (32, 10, 1), (2, 13, 1)):
        args = {"width": width, "depth": depth, "patch": patch}
        layers = summarize(create_model("allconv", 10, args)).layers
        filters = [layer.kind for layer in layers if layer.kind.startswith("conv")]
        assert filters == [f"conv {width + 16 * index}@3x3 pad 0" for index in range(depth)]
        side = 28 // patch - 2 * depth
        assert layers[-2].shape == ((width + 16 * (depth - 1)) * side**2,)
    with pytest.raises(UserError, match="allconv: depth=7: at most 6 convolutions fit patches of 2 pixels"):
        create_model("allconv", 10, {"depth": 7})
    with pytest.raises(UserError, match=r"model\.args\.depth=14: input should be less than or equal to 13"):
        create_model("allconv", 10, {"depth": 14, "patch": 1})

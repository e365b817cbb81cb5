"""The networks of few parameters: how many they have, their factored filters, and that ranks and export agree."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from harness import run_ranks
from kept_run import copy_kept_run
from small_training import BASICS, open_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.load_model import LoadedModel, load_model
from mnist_dist.commands import export_formats
from mnist_dist.commands.exported_model import open_exported
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import create_model
from mnist_dist.models.summary import count_parameters, summarize
from mnist_dist.models.tiny import FactoredConv2d, GlobalMaxPool

LIMITS = {"tiny": 8000, "tiny700": 700}
"""Each model has fewer parameters than this, as its recipe promises."""


@pytest.mark.parametrize("name", LIMITS)
def test_all_parameters_together_are_fewer_than_the_limit(name: str) -> None:
    model = create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == count_parameters(model) == sum(layer.parameters for layer in summarize(model).layers)
    assert count < LIMITS[name]
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert {key.rpartition(".")[2] for key, _ in model.named_buffers()} == statistics  # no weight hides in a buffer


@pytest.mark.parametrize("rank", [1, 2])
def test_factored_filters_are_a_depthwise_and_a_pointwise_convolution(rank: int) -> None:
    torch.manual_seed(0)
    conv, maps = FactoredConv2d(5, 7, rank), torch.randn(3, 5, 9, 9)
    expected = torch.zeros(3, 7, 9, 9)
    for term in range(rank):
        depthwise = nn.functional.conv2d(maps, conv.filters[:, term, None], padding=1, groups=5)
        expected += nn.functional.conv2d(depthwise, conv.mix[:, term, :, None, None])
    torch.testing.assert_close(conv(maps), expected)
    assert count_parameters(conv) == rank * (5 * 9 + 7 * 5)
    assert conv.weight.shape == (7, 5, 3, 3)


def test_an_image_stands_in_every_channel_of_factored_filters() -> None:
    torch.manual_seed(0)
    conv, image = FactoredConv2d(5, 7), torch.randn(3, 1, 9, 9)
    torch.testing.assert_close(conv(image), conv(image.expand(-1, 5, -1, -1)))


def test_the_filters_of_tiny700_are_used_seven_times_with_norms_of_their_own() -> None:
    layers = summarize(create_model("tiny700")).layers
    shapes = [layer.shape for layer in layers if layer.name == "body.0.conv"]
    assert shapes == [(16, 28, 28)] + [(16, 14, 14)] * 3 + [(16, 7, 7)] * 3
    assert len({layer.name for layer in layers if layer.name.startswith("body.0.norms.")}) == 7


def has_finite_gradients() -> bool:
    """Whether the gradients of a compiled convolution before a `GlobalMaxPool` are finite in bf16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.SiLU(), GlobalMaxPool())
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.compile(net)(torch.randn(4, 3, 6, 6)).float().pow(2).mean()
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


@needs_compiler
def test_the_largest_value_has_a_gradient_when_it_is_compiled_in_half_precision() -> None:
    assert run_ranks(1, has_finite_gradients, timeout=300.0) == [True]


def test_the_largest_values_of_no_image() -> None:
    assert GlobalMaxPool()(torch.zeros(0, 5, 6, 6)).shape == (0, 5)


def train(name: str, fsdp: bool, shards: int, folder: Path) -> dict[str, Tensor]:
    """The weights of a model after an epoch of six steps."""
    if fsdp:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_MIN_NUM_PARAMS="200")
    topology = read_topology()
    arguments = ["--train.batch_size=12", "--train.epochs=1", "--optim.ema=0.5", f"--train.shards={shards}"]
    config = load([*BASICS, *arguments], topology.world_size, topology.fsdp).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = create_model(name)
        if fsdp or not shards:  # DDP and FSDP keep the batch norms' statistics of each rank's images
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eval()
                    norm.train = lambda mode=True, norm=norm: norm  # type: ignore[method-assign, assignment, misc]
        trainer = open_trainer(runtime, config, folder, (72, 30), build_model=lambda: model)
        trainer.train()
        return {key: value.clone() for key, value in trainer.state.eval_model.state_dict().items()}


@pytest.mark.parametrize("name", LIMITS)
def test_the_same_bits_on_one_and_on_two_ranks(name: str, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        found.append(run_ranks(ranks, train, name, False, 2, tmp_path / str(ranks), timeout=180)[0])
    assert all(tensor.equal(found[1][key]) for key, tensor in found[0].items())


@pytest.mark.parametrize("name", LIMITS)
def test_sharded_weights_become_those_of_one_rank(name: str, tmp_path: Path) -> None:
    """Also those of filters that are used seven times in one pass: their gradients are added."""
    found = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        found.append(run_ranks(ranks, train, name, ranks == 2, 0, tmp_path / str(ranks), timeout=180)[0])
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, atol=1e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", LIMITS)
def test_export(name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("needs the extra `export`")
    monkeypatch.chdir(copy_kept_run(tmp_path))
    torch.manual_seed(0)
    loaded: LoadedModel = replace(load_model("run"), model=create_model(name, 10, {"shifts": 1}).eval())
    images = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    path = tmp_path / f"model{suffix}"
    export_formats.write_graph(path, loaded, export_formats.facts_of(loaded, "uint8"))
    expected = export_formats.reference_logits(loaded, images)
    for count in (0, 1, 3):
        torch.testing.assert_close(open_exported(path)(images[:count])[0], expected[:count], atol=1e-4, rtol=1e-4)

"""Test-time shifts: in eval mode the logits are the mean over an image and its shifts, for all that use a model."""

from __future__ import annotations

import copy
import itertools
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
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
from mnist_dist.models import create_model, find_builder, list_models
from mnist_dist.models.classifier import ImageClassifier, without_shifts
from mnist_dist.models.embedding import penultimate_features
from mnist_dist.models.feature_maps import feature_maps
from mnist_dist.models.shifts import shifts_of
from mnist_dist.models.summary import count_flops, summarize
from mnist_dist.training.evaluation import evaluate
from mnist_dist.utils.errors import UserError


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pair(name: str, shifts: int = 1) -> tuple[ImageClassifier, ImageClassifier]:
    """A model with test-time shifts and one of the same weights without."""
    shifting, plain = create_model(name, 10, {"shifts": shifts}), create_model(name)
    plain.load_state_dict(shifting.state_dict())
    return shifting, plain


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images with each row and column taken from the nearest one that there is, pixel by pixel."""
    rows = (torch.arange(28) + down).clamp(0, 27)
    columns = (torch.arange(28) + right).clamp(0, 27)
    return images[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("largest", [1, 2])
def test_all_shifts_up_to_the_largest_with_the_border_repeated(largest: int) -> None:
    images = torch.randn(3, 1, 28, 28)
    steps = range(-largest, largest + 1)
    found = list(shifts_of(images, largest))
    assert len(found) == (2 * largest + 1) ** 2
    for shifted, (down, right) in zip(found, itertools.product(steps, steps), strict=True):
        assert shifted.equal(moved(images, down, right))
    assert found[len(found) // 2].equal(images)


def test_background_stays_background_whatever_the_normalisation() -> None:
    digit = torch.full((1, 1, 28, 28), -0.4242)
    digit[..., 10:18, 10:18] = 2.8
    for shifted in shifts_of(digit, 2):
        assert shifted.unique().equal(digit.unique())
        assert shifted.sum() == pytest.approx(digit.sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", list_models())
def test_the_logits_are_the_mean_in_eval_mode_and_untouched_in_training(name: str) -> None:
    shifting, plain = pair(name)
    images = torch.randn(5, 1, 28, 28)
    assert shifting.train()(images).equal(plain.train()(images))
    plain.load_state_dict(shifting.state_dict())
    shifting.eval()
    plain.eval()
    steps = (-1, 0, 1)
    expected = torch.stack([plain(moved(images, *step)) for step in itertools.product(steps, steps)]).mean(0)
    torch.testing.assert_close(shifting(images), expected, atol=1e-5, rtol=1e-4)
    assert shifting.classify(images).equal(plain(images))
    assert shifting(images[:0]).shape == (0, 10)
    probabilities = shifting.probabilities(shifting(images)).sum(1)
    torch.testing.assert_close(probabilities, torch.ones(5), atol=1e-4, rtol=0)


def test_the_mean_is_taken_in_float32_under_autocast() -> None:
    shifting, plain = pair("compact")
    images = torch.randn(4, 1, 28, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = shifting.eval()(images)
        parts = [plain.eval()(part) for part in shifts_of(images, 1)]
    assert parts[0].dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(parts).float().mean(0))


@pytest.mark.parametrize("name", list_models())
def test_weights_have_the_same_names_and_the_argument_is_listed(name: str) -> None:
    shifting, plain = pair(name)
    assert shifting.state_dict().keys() == plain.state_dict().keys()
    assert copy.deepcopy(shifting).shifts == 1
    builder = find_builder(name)
    assert builder.describe_parameters().endswith("shifts=0")
    with pytest.raises(UserError, match=r"model\.args\.shifts=3: input should be less than or equal to 2"):
        builder.build(10, {"shifts": 3})


@pytest.mark.parametrize("name", list_models())
def test_layers_maps_and_features_are_those_of_the_image_as_it_is(name: str) -> None:
    shifting, plain = pair(name)
    image = torch.randn(1, 28, 28)
    assert summarize(shifting).layers == summarize(plain).layers
    assert count_flops(shifting) == 9 * count_flops(plain)
    assert count_flops(without_shifts(shifting)) == count_flops(plain)
    for (name_, maps), (other_name, others) in zip(
        feature_maps(shifting.eval(), image), feature_maps(plain.eval(), image), strict=True
    ):
        assert name_ == other_name
        assert maps.equal(others)
    logits, features = penultimate_features(shifting, image[None])
    assert features.equal(penultimate_features(plain, image[None])[1])
    assert logits.equal(shifting(image[None]).detach())


def test_without_shifts_shares_the_weights_and_leaves_the_model_as_it_was() -> None:
    shifting, plain = pair("basic")
    single = without_shifts(shifting)
    assert (single is not shifting, single.shifts, shifting.shifts) == (True, 0, 1)
    assert all(a is b for a, b in zip(single.parameters(), shifting.parameters(), strict=True))
    assert without_shifts(plain) is plain
    own = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    own.shifts = 3  # type: ignore[assignment]  # a name of the user's own
    assert without_shifts(own) is own


def test_gradients_reach_the_image_in_eval_mode() -> None:
    shifting, _ = pair("compact")
    images = torch.randn(2, 1, 28, 28, requires_grad=True)
    shifting.eval()(images).sum().backward()
    assert images.grad is not None
    assert images.grad.any()


# Training and evaluation on ranks


def train(shifts: int, fsdp: bool, folder: Path) -> tuple[float, float, float, int, dict[str, Tensor]]:
    """Test losses: logged, of the final model, and by hand; then the FLOPs of training and the evaluated weights."""
    if fsdp:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_MIN_NUM_PARAMS="200")
    topology = read_topology()
    arguments = ["--train.batch_size=24", "--train.epochs=1", "--optim.ema=0.5", *(["--train.shards=0"] * fsdp)]
    config = load([*BASICS, *arguments], topology.world_size, topology.fsdp).config
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        rows: list[dict[str, float]] = []
        model = create_model("compact", 10, {"shifts": shifts})
        trainer = open_trainer(runtime, config, folder, (72, 31), build_model=lambda: model, rows=rows)
        trainer.train()
        final = trainer.state.eval_model
        test = trainer.data.test
        metrics = evaluate(final, test, config.data, runtime, config.train.eval_batch_size)
        plain = without_shifts(final)
        pixels = (test.images.float() / 255 - config.data.mean) / config.data.std
        steps = range(-shifts, shifts + 1)
        with torch.no_grad():
            logits = torch.stack([plain(moved(pixels, *step)) for step in itertools.product(steps, steps)]).mean(0)
        by_hand = F.cross_entropy(logits, test.labels).item()
        logged = [row["test.loss"] for row in rows if "test.loss" in row][-1]
        return logged, metrics.loss, by_hand, trainer.state.flops_per_image, final.state_dict()


@pytest.mark.parametrize(("ranks", "fsdp"), [(1, False), (2, False), (2, True)])
def test_a_run_trains_the_same_weights_and_evaluates_them_with_shifts(ranks: int, fsdp: bool, tmp_path: Path) -> None:
    found = {}
    for shifts in (0, 1):
        (tmp_path / str(shifts)).mkdir()
        results = run_ranks(ranks, train, shifts, fsdp, tmp_path / str(shifts))
        logged, evaluated, by_hand, flops, weights = results[0]
        assert logged == evaluated
        assert evaluated == pytest.approx(by_hand, rel=1e-4)
        found[shifts] = (logged, flops, weights)
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]
    assert all(tensor.equal(found[1][2][name]) for name, tensor in found[0][2].items())


# Export


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_graphs_have_the_shifts(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("needs the extra `export`")
    monkeypatch.chdir(copy_kept_run(tmp_path))
    plain = load_model("run")
    model = create_model("basic", 10, {"shifts": 1}).eval()
    model.load_state_dict(plain.model.state_dict())
    loaded: LoadedModel = replace(plain, model=model)
    images = torch.randint(0, 256, (11, 28, 28), dtype=torch.uint8)
    path = tmp_path / f"model{suffix}"
    export_formats.write_graph(path, loaded, export_formats.facts_of(loaded, "uint8"))
    expected = export_formats.reference_logits(loaded, images)
    assert not expected.isclose(export_formats.reference_logits(plain, images)).all()
    for count in (0, 1, 11):
        torch.testing.assert_close(open_exported(path)(images[:count])[0], expected[:count], atol=1e-4, rtol=1e-4)

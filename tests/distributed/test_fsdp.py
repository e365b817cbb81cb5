"""FSDP2 on two and three ranks: the weights are those of DistributedDataParallel, and each rank has a shard of them."""

from __future__ import annotations

import gc
import math
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import run_ranks
from small_training import open_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.fsdp import FSDPStrategy
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier, create_model
from mnist_dist.tracking.media import Media
from mnist_dist.utils.errors import UserError

SIZES = (24 * 5 + 1, 31)  # the last batch of an epoch has one image, which only one rank gets
BASICS = (
    *("--run.device=cpu", "--run.threads=1", "--train.shards=0", "--train.precision=no", "--tracking.log_steps=1"),
    *("--model.name=basic", "--train.epochs=2", "--train.batch_size=24", "--train.eval_batch_size=7"),
)
STEPS = 12
SETTINGS: dict[str, tuple[str, ...]] = {
    "sgd": ("--optim.name=sgd", "--optim.lr=0.05", "--optim.nesterov=true"),
    "sgd, no momentum": ("--optim.name=sgd", "--optim.lr=0.05", "--optim.momentum=0"),
    "adamw, clipped": ("--optim.clip=0.05", "--optim.label_smoothing=0.1"),
    "adam, ema": ("--optim.name=adam", "--optim.ema=0.9"),
    "accumulated": ("--train.accumulate=2", "--data.shift=2", "--optim.ema=0.5", "--optim.clip=1"),
}
NO_WRAP, SIZE_BASED_WRAP = "NO_WRAP", "SIZE_BASED_WRAP"  # FSDP_AUTO_WRAP_POLICY


def dropout_and_batch_norm(dropout: float = 0.3) -> nn.Module:
    """A model with dropout and batch norms, and a layer with fewer filters than there are ranks."""
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 2, 3),
        nn.BatchNorm2d(2, momentum=None),
        nn.Flatten(),
    )
    return ImageClassifier(body, nn.Linear(2 * 11 * 11, 10))


def batch_norm() -> nn.Module:
    """The same model without dropout, whose masks depend on the memory format."""
    return dropout_and_batch_norm(dropout=0.0)


def default() -> nn.Module:
    """The model of the default recipe."""
    return create_model("unshuffle")


MODELS = {
    "float64": None,
    "dropout and batch norm": dropout_and_batch_norm,
    "batch norm": batch_norm,
    "default": default,
}
"""None: `basic` in float64, in which only the order of sums makes a difference."""


@dataclass(frozen=True)
class Run:
    """Result of a run on one rank."""

    rows: list[dict[str, Any]]
    weights: dict[str, Tensor]
    """Full tensors of the model in training."""
    eval_weights: dict[str, Tensor]
    """Full tensors of the evaluated model."""
    sha256: str
    """Of the evaluated model."""
    description: str
    media: list[Media]
    """On the main process only."""

    def values(self, key: str) -> list[float]:
        """The values of a key in the rows that have it."""
        return [row[key] for row in self.rows if key in row]


def set_fsdp_environment(wrap: str = SIZE_BASED_WRAP, reshard: str = "true") -> None:
    """Set the variables that `accelerate launch` sets for FSDP2."""
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY=wrap,
        FSDP_MIN_NUM_PARAMS="200",
        FSDP_RESHARD_AFTER_FORWARD=reshard,
    )


def train(
    model: str, arguments: tuple[str, ...], folder: Path, fsdp: tuple[str, ...] | None, contiguous: bool = False
) -> Run:
    """Train one of MODELS, from the folder's newest checkpoint if there is one.

    Args:
        fsdp: arguments of `set_fsdp_environment`; None: without FSDP.
        contiguous: use the contiguous memory format instead of channels last.
    """
    if contiguous:
        Runtime.to_device = lambda self, model: model  # type: ignore[method-assign]
    if fsdp is not None:
        set_fsdp_environment(*fsdp)
    topology = read_topology()
    config = load([*BASICS, *arguments], topology.world_size, topology.fsdp).config
    with start_runtime(config, topology) as runtime:
        rows: list[dict[str, Any]] = []
        media: list[Media] = []

        def log_media(step: int, epoch: int, logged: Media) -> None:
            media.append(logged)

        trainer = open_trainer(
            runtime, config, folder, SIZES, build_model=MODELS[model], rows=rows, log_media=log_media
        )
        state = trainer.state
        assert isinstance(state.strategy, FSDPStrategy) == (fsdp is not None)
        trainer.train()
        weights = state.strategy.full_model(state.local_model).state_dict()
        eval_model = state.eval_model
        description = state.describe()["gradients"]
        return Run(rows, weights, eval_model.state_dict(), weights_sha256(eval_model), description, media)


@cache
def trained(
    world_size: int,
    model: str,
    arguments: tuple[str, ...],
    fsdp: tuple[str, ...] | None = (),
    contiguous: bool = False,
) -> Run:
    """The result of a run on rank 0, after checking that it is the same on all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        first, *others = run_ranks(world_size, train, model, arguments, Path(folder), fsdp, contiguous)
    assert {other.sha256 for other in others} <= {first.sha256}
    assert all(other.values("test.loss") == first.values("test.loss") for other in others)
    return first


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two state dicts."""
    assert first.keys() == second.keys()
    return max(float((first[name] - tensor).abs().max()) for name, tensor in second.items())


@pytest.mark.parametrize(
    ("setting", "world_size"),
    [("sgd", 3), ("adamw, clipped", 3), ("adam, ema", 3), ("accumulated", 3), ("accumulated", 2)],
)
def test_the_weights_are_those_of_ddp(setting: str, world_size: int) -> None:
    """In float64, up to the order of sums."""
    fsdp, ddp = (trained(world_size, "float64", SETTINGS[setting], environment) for environment in ((), None))
    assert len(fsdp.values("train.loss")) == STEPS
    assert not fsdp.values("step_seconds.least")  # not measured, since collectives run throughout a step
    assert fsdp.values("train.loss") == pytest.approx(ddp.values("train.loss"), rel=1e-7)
    for key in ("lr", "train.accuracy", "epoch.train.correct", "epoch.train.count", "test.correct", "test.count"):
        assert fsdp.values(key) == ddp.values(key), key
    assert fsdp.values("test.count") == [SIZES[1]] * 2
    assert distance(fsdp.weights, ddp.weights) < 1e-12
    assert distance(fsdp.eval_weights, ddp.eval_weights) < 1e-12


def test_media_are_those_of_ddp() -> None:
    """Histograms are of full tensors."""
    fsdp, ddp = (trained(3, "float64", SETTINGS["adam, ema"], environment) for environment in ((), None))
    assert len(fsdp.media) == 2
    for media, expected in zip(fsdp.media, ddp.media, strict=True):
        assert [each.index for each in media.mistakes] == [each.index for each in expected.mistakes]
        for found, other in ((media.parameters, expected.parameters), (media.gradients, expected.gradients)):
            assert found.keys() == other.keys()
            assert all(sum(found[name].counts) == sum(other[name].counts) for name in found)
            assert all(found[name].edges == pytest.approx(other[name].edges, abs=1e-9) for name in found)
        assert media.maps.keys() == expected.maps.keys()


@pytest.mark.parametrize(("model", "precision"), [("dropout and batch norm", "no"), ("default", "bf16")])
def test_in_the_same_memory_format_two_ranks_have_the_bits_of_ddp(model: str, precision: str) -> None:
    """`fully_shard` accepts contiguous weights only, so both runs use that memory format.

    With SGD without momentum: fused optimizers with state round the last elements of a tensor, which do not fill a
    vector register, differently, and a shard ends elsewhere.
    """
    arguments = (*SETTINGS["sgd, no momentum"], f"--train.precision={precision}", "--optim.ema=0.9")
    fsdp, ddp = (trained(2, model, arguments, environment, contiguous=True) for environment in ((), None))
    assert fsdp.values("train.loss") == ddp.values("train.loss")
    assert fsdp.sha256 == ddp.sha256
    assert distance(fsdp.weights, ddp.weights) == 0


@pytest.mark.parametrize("model", ["batch norm", "default"])
def test_the_weights_are_close_to_those_of_ddp_in_channels_last(model: str) -> None:
    """With SGD: Adam would enlarge rounding errors of gradients that are nearly 0."""
    fsdp, ddp = (trained(2, model, SETTINGS["sgd"], environment) for environment in ((), None))
    assert fsdp.values("train.loss") == pytest.approx(ddp.values("train.loss"), rel=1e-5)
    assert 0 < distance(fsdp.weights, ddp.weights) < 1e-5


@pytest.mark.parametrize("fsdp", [(NO_WRAP,), (NO_WRAP, "false")])
def test_wrap_policy_and_resharding_change_no_bit(fsdp: tuple[str, ...]) -> None:
    arguments = ("--optim.ema=0.9", "--train.accumulate=2")
    wrapped, other = trained(2, "default", arguments), trained(2, "default", arguments, fsdp)
    assert wrapped.sha256 == other.sha256
    prefix = "sharded over 2 processes with weights and moments "
    descriptions = [run.description.removeprefix(prefix) for run in (wrapped, other)]
    assert descriptions == ["(FSDP2, gathered in 4 groups)", "(FSDP2, the model gathered at once)"]


def count_collectives(*fsdp: str) -> tuple[int, int]:
    """The number of all-gathers and of reduce-scatters in a forward and backward pass."""
    set_fsdp_environment(*fsdp)
    gathers, scatters = (
        ("all_gather_into_tensor", "all_gather_single"),
        ("reduce_scatter_tensor", "reduce_scatter_single"),
    )
    found = dict.fromkeys((*gathers, *scatters), 0)  # torch 2.15 calls the second name of each
    with start_runtime(load(BASICS).config, read_topology()) as runtime:
        assert runtime.topology.fsdp is not None
        strategy = FSDPStrategy(default(), load(BASICS).config, runtime, runtime.topology.fsdp)
        for name, original in [(name, getattr(dist, name)) for name in found if hasattr(dist, name)]:

            def counting(*arguments: Any, name: str = name, original: Any = original, **options: Any) -> Any:
                found[name] += 1
                return original(*arguments, **options)

            setattr(dist, name, counting)
        strategy.wrapped_model(torch.zeros(1, 1, 28, 28)).sum().backward()
        return sum(found[name] for name in gathers), sum(found[name] for name in scatters)


def test_the_environment_sets_wrap_policy_and_resharding() -> None:
    settings = product((NO_WRAP, SIZE_BASED_WRAP), ("true", "false"))
    assert {fsdp: run_ranks(2, count_collectives, *fsdp)[0] for fsdp in settings} == {
        (NO_WRAP, "true"): (2, 1),
        (NO_WRAP, "false"): (1, 1),
        (SIZE_BASED_WRAP, "true"): (8, 4),
        (SIZE_BASED_WRAP, "false"): (4, 4),
    }


@pytest.mark.parametrize(("model", "world_size"), [("dropout and batch norm", 3), ("default", 2)])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(model: str, world_size: int, tmp_path: Path) -> None:
    arguments = ("--optim.ema=0.9", "--optim.clip=0.5", "--train.precision=bf16", "--train.checkpoint_steps=2")
    losses = []
    for last_step in (5, 0):
        stopping = (*arguments, f"--train.max_steps={last_step}")
        runs = run_ranks(world_size, train, model, stopping, tmp_path, ())
        losses += runs[0].values("train.loss")
    uninterrupted = trained(world_size, model, arguments)
    assert losses == uninterrupted.values("train.loss")
    assert [run.sha256 for run in runs] == [uninterrupted.sha256] * world_size


def test_checkpoints_are_resumed_by_any_strategy_and_number_of_ranks(tmp_path: Path) -> None:
    """FSDP2 on two ranks, then one rank, then DDP on three, then FSDP2 on three: as uninterrupted on one."""
    arguments = ("--optim.ema=0.9",)
    losses, counts = [], []
    for world_size, last_step, fsdp in ((2, 3, ()), (1, 5, None), (3, 8, None), (3, 0, ())):
        stopping = (*arguments, f"--train.max_steps={last_step}")
        run = run_ranks(world_size, train, "float64", stopping, tmp_path, fsdp)[0]
        losses += run.values("train.loss")
        counts += run.values("epoch.train.count")
    single = trained(1, "float64", arguments, None)
    assert losses == pytest.approx(single.values("train.loss"), rel=1e-7)
    assert counts == [SIZES[0]] * 2
    assert distance(run.weights, single.weights) < 1e-12
    assert distance(run.eval_weights, single.eval_weights) < 1e-12


# Memory


def measure_memory() -> tuple[dict[str, int], dict[str, int], int]:
    """Bytes in memory on this rank after two steps.

    Returns:
        Bytes of this rank's weights, gradients, moments and EMA; bytes of each full parameter by name; and bytes of the
        largest tensor in memory.
    """
    set_fsdp_environment()
    topology = read_topology()
    arguments = [*BASICS, "--train.max_steps=2", "--optim.ema=0.9"]
    config = load(arguments, topology.world_size, topology.fsdp).config
    with start_runtime(config, topology) as runtime, tempfile.TemporaryDirectory() as folder:
        trainer = open_trainer(
            runtime, config, Path(folder), SIZES, build_model=lambda: create_model("deep_head_fixed")
        )
        trainer.train()
        state = trainer.state
        assert state.ema is not None
        parameters = list(state.local_model.parameters())
        shards = {
            "weights": parameters,
            "gradients": [parameter.grad for parameter in parameters],
            "exp_avg": [state.optimizer.state[parameter]["exp_avg"] for parameter in parameters],
            "exp_avg_sq": [state.optimizer.state[parameter]["exp_avg_sq"] for parameter in parameters],
            "ema": list(state.ema.module.parameters()),
        }
        assert isinstance(state.strategy, FSDPStrategy)
        full = {name: shape.numel() * 4 for name, shape in state.strategy.shapes.items()}
        del trainer
        gc.collect()
        tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter) and not found.is_meta]
        largest = max(tensor.untyped_storage().nbytes() for tensor in tensors)
        return {name: storage_bytes(tensors) for name, tensors in shards.items()}, full, largest


def storage_bytes(tensors: list[Any]) -> int:
    """The size of the storages of tensors, each counted once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}.values())


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_has_its_shards_in_memory_and_no_full_tensor(world_size: int) -> None:
    for shards, full, largest in run_ranks(world_size, measure_memory):
        total, largest_parameter = sum(full.values()), max(full.values())
        assert largest_parameter == 500 * 2000 * 4
        for name, held in shards.items():
            assert held < 1.05 * total / world_size, name
            assert held > 0.95 * total / world_size, name
        assert largest < 0.6 * largest_parameter


# Checkpoints that do not fit


def load_other_shape(size: tuple[int, ...]) -> str:
    """The error for a tensor of another shape than the model's."""
    set_fsdp_environment()
    with start_runtime(load(BASICS).config, read_topology()) as runtime:
        assert runtime.topology.fsdp is not None
        strategy = FSDPStrategy(default(), load(BASICS).config, runtime, runtime.topology.fsdp)
        name = "head.2.weight"
        assert math.prod(strategy.local_state_dict({name: torch.ones(10, 128)}, "here")[name].shape) == 5 * 128
        with pytest.raises(UserError) as error:
            strategy.local_state_dict({name: torch.ones(size)}, "here")
        return str(error.value)


def test_a_checkpoint_of_another_shape_is_refused_on_every_rank() -> None:
    assert set(run_ranks(2, load_other_shape, (11, 128))) == {
        "here: head.2.weight is (11, 128), the model's is (10, 128)"
    }

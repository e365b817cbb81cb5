"""FSDP2 on two and three processes: what DistributedDataParallel learns, with the model cut up between them."""

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

SIZES = (24 * 5 + 1, 31)  # the last batch of an epoch has one image: all processes but one have none of it
BASICS = (
    *("--run.device=cpu", "--run.threads=1", "--train.shards=0", "--train.precision=no", "--tracking.log_steps=1"),
    *("--model.name=basic", "--train.epochs=2", "--train.batch_size=24", "--train.eval_batch_size=7"),
)
STEPS = 12
SETTINGS: dict[str, tuple[str, ...]] = {
    "sgd": ("--optim.name=sgd", "--optim.lr=0.05", "--optim.nesterov=true"),
    "sgd, no momentum": ("--optim.name=sgd", "--optim.lr=0.05", "--optim.momentum=0"),
    "adamw, clipped": ("--optim.clip=0.05", "--optim.label_smoothing=0.1"),
    "adam, averaged": ("--optim.name=adam", "--optim.ema=0.9"),
    "accumulated": ("--train.accumulate=2", "--data.shift=2", "--optim.ema=0.5", "--optim.clip=1"),
}
AT_ONCE, IN_GROUPS = "NO_WRAP", "SIZE_BASED_WRAP"


def noisy(dropout: float = 0.3) -> nn.Module:
    """Dropout and batch norms, and a layer of fewer filters than there are processes."""
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


def normed() -> nn.Module:
    """The same without dropout, whose masks are drawn in the order of the memory."""
    return noisy(dropout=0.0)


def default() -> nn.Module:
    """The net of the default recipe."""
    return create_model("unshuffle")


NETWORKS = {"exact": None, "noisy": noisy, "normed": normed, "default": default}
"""None: `basic` in double precision, where only a mistake shows."""


@dataclass(frozen=True)
class Run:
    """What one rank saw: the rows, the whole weights and those that are evaluated, and how it says that it learned."""

    rows: list[dict[str, Any]]
    weights: dict[str, Tensor]
    network: dict[str, Tensor]
    sha256: str
    described: str
    shown: list[Media]
    """On the main process."""

    def values(self, key: str) -> list[float]:
        """What the rows that have this key say of it."""
        return [row[key] for row in self.rows if key in row]


def ask_for_fsdp(wrap: str = IN_GROUPS, reshard: str = "true") -> None:
    """What `accelerate launch` tells its processes; accelerate itself is not to do anything about it."""
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY=wrap,
        FSDP_MIN_NUM_PARAMS="200",
        FSDP_RESHARD_AFTER_FORWARD=reshard,
    )


def train(
    network: str, arguments: tuple[str, ...], folder: Path, fsdp: tuple[str, ...] | None, contiguous: bool = False
) -> Run:
    """Train one of NETWORKS from the folder's newest checkpoint on, cut up where `fsdp` says how.

    Args:
        contiguous: never in another memory format, which convolutions otherwise are without FSDP.
    """
    if contiguous:
        Runtime.to_device = lambda self, model: model  # type: ignore[method-assign]
    if fsdp is not None:
        ask_for_fsdp(*fsdp)
    topology = read_topology()
    config = load([*BASICS, *arguments], topology.world_size, topology.fsdp).config
    with start_runtime(config, topology) as runtime:
        rows: list[dict[str, Any]] = []
        shown: list[Media] = []
        show = lambda *seen: shown.append(seen[2])  # noqa: E731
        trainer = open_trainer(runtime, config, folder, SIZES, network=NETWORKS[network], rows=rows, show=show)
        assert isinstance(trainer.state.strategy, FSDPStrategy) == (fsdp is not None)
        trainer.train()
        whole = trainer.state.strategy.full_model(trainer.state.local_model)
        states = whole.state_dict(), trainer.state.eval_model.state_dict()
        return Run(
            rows, *states, weights_sha256(trainer.state.eval_model), trainer.state.describe()["gradients"], shown
        )


@cache
def trained(
    world_size: int,
    network: str,
    arguments: tuple[str, ...],
    fsdp: tuple[str, ...] | None = (),
    contiguous: bool = False,
) -> Run:
    """A whole run; all ranks end with the same."""
    with tempfile.TemporaryDirectory() as folder:
        first, *others = run_ranks(world_size, train, network, arguments, Path(folder), fsdp, contiguous)
    assert {other.sha256 for other in others} <= {first.sha256}
    assert all(other.values("test.loss") == first.values("test.loss") for other in others)
    return first


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference between two state dicts."""
    assert first.keys() == second.keys()
    return max(float((first[name] - tensor).abs().max()) for name, tensor in second.items())


@pytest.mark.parametrize(
    ("setting", "world_size"),
    [("sgd", 3), ("adamw, clipped", 3), ("adam, averaged", 3), ("accumulated", 3), ("accumulated", 2)],
)
def test_it_learns_what_distributed_data_parallel_learns(setting: str, world_size: int) -> None:
    """In double precision: sums are added up in another order, and nothing else is different."""
    ours, theirs = (trained(world_size, "exact", SETTINGS[setting], fsdp) for fsdp in ((), None))
    assert len(ours.values("train.loss")) == STEPS
    assert not ours.values("step_seconds.least")  # exchanges are all over a step: what is a rank's own is not known
    assert ours.values("train.loss") == pytest.approx(theirs.values("train.loss"), rel=1e-7)
    for key in ("lr", "train.accuracy", "epoch.train.correct", "epoch.train.count", "test.correct", "test.count"):
        assert ours.values(key) == theirs.values(key), key
    assert ours.values("test.count") == [SIZES[1]] * 2
    assert distance(ours.weights, theirs.weights) < 1e-12
    assert distance(ours.network, theirs.network) < 1e-12


def test_what_is_shown_is_of_whole_tensors() -> None:
    ours, theirs = (trained(3, "exact", SETTINGS["adam, averaged"], fsdp) for fsdp in ((), None))
    assert len(ours.shown) == 2
    for shown, expected in zip(ours.shown, theirs.shown, strict=True):
        assert [each.index for each in shown.mistakes] == [each.index for each in expected.mistakes]
        for own, other in ((shown.parameters, expected.parameters), (shown.gradients, expected.gradients)):
            assert own.keys() == other.keys()
            assert all(sum(own[name].counts) == sum(other[name].counts) for name in own)
            assert all(own[name].edges == pytest.approx(other[name].edges, abs=1e-9) for name in own)
        assert shown.maps.keys() == expected.maps.keys()


@pytest.mark.parametrize(("network", "precision"), [("noisy", "no"), ("default", "bf16")])
def test_in_the_same_memory_format_two_processes_compute_the_same_bits(network: str, precision: str) -> None:
    """`fully_shard` takes contiguous weights only. Where there are no others, no gradient is different.

    By SGD without momentum: fused updates with moments round the end of a tensor, which fills no vector, otherwise.
    """
    arguments = (*SETTINGS["sgd, no momentum"], f"--train.precision={precision}", "--optim.ema=0.9")
    ours, theirs = (trained(2, network, arguments, fsdp, contiguous=True) for fsdp in ((), None))
    assert ours.values("train.loss") == theirs.values("train.loss")
    assert ours.sha256 == theirs.sha256
    assert distance(ours.weights, theirs.weights) == 0


@pytest.mark.parametrize("network", ["normed", "default"])
def test_it_stays_near_what_is_learned_in_another_memory_format(network: str) -> None:
    """By SGD, which does not blow up a last bit where a gradient is nearly zero, as Adam does."""
    ours, theirs = (trained(2, network, SETTINGS["sgd"], fsdp) for fsdp in ((), None))
    assert ours.values("train.loss") == pytest.approx(theirs.values("train.loss"), rel=1e-5)
    assert 0 < distance(ours.weights, theirs.weights) < 1e-5


@pytest.mark.parametrize("fsdp", [(AT_ONCE,), (AT_ONCE, "false")])
def test_what_is_gathered_when_changes_no_bit(fsdp: tuple[str, ...]) -> None:
    arguments = ("--optim.ema=0.9", "--train.accumulate=2")
    ours, theirs = trained(2, "default", arguments), trained(2, "default", arguments, fsdp)
    assert ours.sha256 == theirs.sha256
    ways = [run.described.removeprefix("sharded over 2 processes with weights and moments ") for run in (ours, theirs)]
    assert ways == ["(FSDP2, gathered in 4 groups)", "(FSDP2, the model gathered at once)"]


def exchanges(*fsdp: str) -> tuple[int, int]:
    """How often a forward and a backward pass gather weights, and scatter gradients."""
    ask_for_fsdp(*fsdp)
    gathers, scatters = (
        ("all_gather_into_tensor", "all_gather_single"),
        ("reduce_scatter_tensor", "reduce_scatter_single"),
    )
    found = dict.fromkeys((*gathers, *scatters), 0)  # torch 2.15 calls the second ones
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


def test_the_launchers_file_decides_what_is_gathered_when() -> None:
    found = {fsdp: run_ranks(2, exchanges, *fsdp)[0] for fsdp in product((AT_ONCE, IN_GROUPS), ("true", "false"))}
    assert found == {
        (AT_ONCE, "true"): (2, 1),
        (AT_ONCE, "false"): (1, 1),
        (IN_GROUPS, "true"): (8, 4),
        (IN_GROUPS, "false"): (4, 4),
    }


@pytest.mark.parametrize(("network", "world_size"), [("noisy", 3), ("default", 2)])
def test_a_run_goes_on_as_if_it_had_not_stopped(network: str, world_size: int, tmp_path: Path) -> None:
    arguments = ("--optim.ema=0.9", "--optim.clip=0.5", "--train.precision=bf16", "--train.checkpoint_steps=2")
    losses = []
    for last_step in (5, 0):
        stopping = (*arguments, f"--train.max_steps={last_step}")
        runs = run_ranks(world_size, train, network, stopping, tmp_path, ())
        losses += runs[0].values("train.loss")
    whole = trained(world_size, network, arguments)
    assert losses == whole.values("train.loss")
    assert [run.sha256 for run in runs] == [whole.sha256] * world_size


def test_checkpoints_are_those_of_every_other_way(tmp_path: Path) -> None:
    """Cut up on two, whole on one, DistributedDataParallel on three, cut up on three: one run, as on one process."""
    arguments = ("--optim.ema=0.9",)
    losses, counts = [], []
    for world_size, last_step, fsdp in ((2, 3, ()), (1, 5, None), (3, 8, None), (3, 0, ())):
        stopping = (*arguments, f"--train.max_steps={last_step}")
        run = run_ranks(world_size, train, "exact", stopping, tmp_path, fsdp)[0]
        losses += run.values("train.loss")
        counts += run.values("epoch.train.count")
    single = trained(1, "exact", arguments, None)
    assert losses == pytest.approx(single.values("train.loss"), rel=1e-7)
    assert counts == [SIZES[0]] * 2
    assert distance(run.weights, single.weights) < 1e-12
    assert distance(run.network, single.network) < 1e-12


# What each process keeps


def keep() -> tuple[dict[str, int], dict[str, int], int]:
    """After two steps, the bytes of this process's weights, gradients, moments and average; those of whole ones; and
    the bytes of the largest tensor in memory."""
    ask_for_fsdp()
    topology = read_topology()
    arguments = [*BASICS, "--train.max_steps=2", "--optim.ema=0.9"]
    config = load(arguments, topology.world_size, topology.fsdp).config
    with start_runtime(config, topology) as runtime, tempfile.TemporaryDirectory() as folder:
        trainer = open_trainer(runtime, config, Path(folder), SIZES, network=lambda: create_model("deep_head_fixed"))
        trainer.train()
        state = trainer.state
        assert state.ema is not None
        parameters = list(state.local_model.parameters())
        kept = {
            "weights": parameters,
            "gradients": [parameter.grad for parameter in parameters],
            "exp_avg": [state.optimizer.state[parameter]["exp_avg"] for parameter in parameters],
            "exp_avg_sq": [state.optimizer.state[parameter]["exp_avg_sq"] for parameter in parameters],
            "average": list(state.ema.module.parameters()),
        }
        assert isinstance(state.strategy, FSDPStrategy)
        whole = {name: shape.numel() * 4 for name, shape in state.strategy.shapes.items()}
        del trainer
        gc.collect()
        tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter) and not found.is_meta]
        largest = max(tensor.untyped_storage().nbytes() for tensor in tensors)
        return {what: held_bytes(tensors) for what, tensors in kept.items()}, whole, largest


def held_bytes(tensors: list[Any]) -> int:
    """The bytes of the memory that tensors lie in, which may be larger than they are."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}.values())


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_process_keeps_its_part_and_nothing_whole(world_size: int) -> None:
    for kept, whole, largest in run_ranks(world_size, keep):
        total, biggest = sum(whole.values()), max(whole.values())
        assert biggest == 500 * 2000 * 4
        for what, held in kept.items():
            assert held < 1.05 * total / world_size, what
            assert held > 0.95 * total / world_size, what
        assert largest < 0.6 * biggest


# What does not fit


def cut(size: tuple[int, ...]) -> str:
    """The refusal of a tensor of another size."""
    ask_for_fsdp()
    with start_runtime(load(BASICS).config, read_topology()) as runtime:
        assert runtime.topology.fsdp is not None
        strategy = FSDPStrategy(default(), load(BASICS).config, runtime, runtime.topology.fsdp)
        name = "head.2.weight"
        assert math.prod(strategy.local_state_dict({name: torch.ones(10, 128)}, "here")[name].shape) == 5 * 128
        with pytest.raises(UserError) as error:
            strategy.local_state_dict({name: torch.ones(size)}, "here")
        return str(error.value)


def test_a_checkpoint_of_another_shape_is_refused_on_every_rank() -> None:
    assert set(run_ranks(2, cut, (11, 128))) == {"here: head.2.weight is (11, 128), the model's is (10, 128)"}

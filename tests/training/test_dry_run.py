"""run.as_processes: what one process says of N is what N real processes do."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_training import PLAIN, run_forked
from harness import run_ranks
from programs import Ended, write_digits
from small_training import BASICS, synthetic_images, train
from torch import nn

from mnist_dist.config.loader import load
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import Splits
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology, read_topology
from mnist_dist.models import create_model
from mnist_dist.train import main
from mnist_dist.training.dry_run import try_step
from mnist_dist.training.evaluation import evaluate
from mnist_dist.training.rank_plan import plan_ranks
from mnist_dist.training.rank_shares import find_rank_shares
from mnist_dist.training.trial_step import StepCost, measure_step
from mnist_dist.utils.errors import UserError

TRAIN, TEST, BATCH = 250, 70, 48  # the last batch has 10 images
SIZES = (f"--train.batch_size={BATCH}", "--train.eval_batch_size=20", "--train.epochs=1", "--data.val_size=0")


def digits(val: int = 0) -> Splits:
    """As small_training's sets, and `val` further images."""
    return Splits(*(synthetic_images(count, seed) for seed, count in ((1, TRAIN), (3, val), (2, TEST))))


def evaluated(count: int, arguments: tuple[str, ...]) -> int:
    """Images that this rank evaluates."""
    topology = read_topology()
    config = load([*BASICS, *SIZES, *arguments], topology.world_size).config
    with start_runtime(config, topology) as runtime:
        seen = [0]
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        data = synthetic_images(count, seed=3)
        evaluate(model, data, config.data, runtime, config.train.eval_batch_size)
        return sum(seen)


@pytest.mark.parametrize(("world_size", "shards"), [(2, 0), (4, 0), (4, 12)])
def test_shares_are_those_of_real_ranks(world_size: int, shards: int, tmp_path: Path) -> None:
    arguments = (f"--train.shards={shards}",)
    config = load([*BASICS, *SIZES, *arguments], world_size).config
    shares = find_rank_shares(config, digits(), world_size, shards)
    if not shards:  # with shards, the small run's hook is on the model and not on its replicas
        results = run_ranks(world_size, train, (*SIZES, *arguments), tmp_path, (TRAIN, TEST))
        steps = [[len(batch) for batch in result.batches] for result in results]
        assert {len(each) for each in steps} == {shares.steps_per_epoch}
        assert [each[0] for each in steps] == list(shares.batch)
        assert [each[-1] for each in steps] == list(shares.last_batch)
    assert (sum(shares.batch), sum(shares.last_batch)) == (BATCH, TRAIN % BATCH)
    assert run_ranks(world_size, evaluated, TEST, arguments) == list(shares.evaluation["test"])


STRATEGIES = {
    "ddp": ("--train.shards=0", "--optim.ema=0.9", "--optim.clip=1"),
    "compressed": ("--train.compress=bf16",),
    "muon": ("--train.shards=0", "--optim.name=muon", "--train.accumulate=2"),
    "shards": ("--train.shards=12", "--optim.name=sgd"),
    "fsdp": ("--train.accumulate=2", "--optim.clip=1"),
}


def cost_of_a_step(strategy: str, as_processes: int = 0) -> StepCost | None:
    """What a step costs a real rank, or with `as_processes` one that is alone, which is then left as it was."""
    if strategy == "fsdp":
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    topology, data = read_topology(), digits()
    arguments = [*BASICS, *SIZES, *STRATEGIES[strategy], f"--run.as_processes={as_processes}"]
    config = load(arguments, topology.world_size, topology.fsdp).config
    if as_processes:
        before = dict(os.environ), torch.get_num_threads(), torch.get_rng_state().tolist()
        plan = plan_ranks(config, topology, as_processes)
        shares = find_rank_shares(config, data, as_processes, plan.shards)
        cost = try_step(config, plan, data, shares, False, Console())
        assert (dict(os.environ), torch.get_num_threads(), torch.get_rng_state().tolist()) == before
        assert not dist.is_initialized()
        return cost
    with start_runtime(config, topology) as runtime:
        torch.manual_seed(0)
        model = runtime.to_device(create_model(config.model.name))
        return measure_step(model, config, runtime, data.train, find_rank_shares(config, data, 2, runtime.shards))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_memory_and_traffic_are_those_of_a_real_rank(strategy: str) -> None:
    real, _ = run_ranks(2, cost_of_a_step, strategy)
    (alone,) = run_ranks(1, cost_of_a_step, strategy, 2)
    if strategy == "shards":  # real ranks of one machine use shared memory, where nothing is sent
        gathered = 2 * 3 * 4 * alone.parameters  # of each rank's 6 shards, 3 are left once they are added in pairs
        assert (alone.memory["gathered"], alone.sent) == (gathered, gathered / 2)
        real = replace(real, sent=alone.sent, memory=real.memory | {"gathered": gathered})
    assert alone == real


def test_memory_of_many_processes() -> None:
    weights = {}
    for strategy in ("ddp", "fsdp"):
        (cost,) = run_ranks(1, cost_of_a_step, strategy, 24)
        assert cost.sent >= 2 * 23 / 24 * 4 * cost.parameters
        assert cost.memory["adamw"] >= 2 * cost.memory["weights"]
        weights[strategy] = cost.memory["weights"]
    assert weights["ddp"] == 4 * cost.parameters
    assert weights["ddp"] / 24 <= weights["fsdp"] < weights["ddp"] / 8


# The command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in `data`."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    write_digits(home / "data", TRAIN, TEST)
    return home


RUN = (
    *("--data.root=data", *SIZES, "--model.name=basic", "--train.precision=no", "--tracking.mode=disabled"),
    *("--run.device=cpu", "--run.threads=1"),
)


def run_in(home: Path, arguments: tuple[str, ...]) -> int:
    """The exit code of `mnist-dist train`, on this rank."""
    os.chdir(home)
    return main([*RUN, *arguments])


def weights_of(folder: Path) -> str:
    """The digest of a run's weights."""
    return json.loads((folder / "summary.json").read_text())["weights_sha256"]


@pytest.mark.parametrize(("world_size", "shards"), [(2, -1), (4, 12)])
def test_with_fixed_shards_it_trains_to_the_weights_of_real_processes(world_size: int, shards: int, home: Path) -> None:
    name = f"{world_size}-{shards}"
    arguments = (f"--train.shards={shards}", "--run.quiet=true")
    assert run_ranks(world_size, run_in, home, (*arguments, f"--run.dir={name}-real")) == [0] * world_size
    alone = (*arguments, f"--run.dir={name}-alone", f"--run.as_processes={world_size}")
    assert run_ranks(1, run_in, home, alone) == [0]
    assert weights_of(home / f"{name}-alone") == weights_of(home / f"{name}-real")
    # The run directory is that of any run: real processes could go on with it.
    configs = [load([f"--config={home}/{name}-{kind}/config.yaml"]).config for kind in ("alone", "real")]
    assert configs[0].run.as_processes == configs[1].run.as_processes == 0


def dry(home: Path, *arguments: str, columns: int = 80, before: str = "") -> Ended:
    """The end of a dry run, which leaves no file behind.

    Args:
        before: statements to execute first.
    """
    files = set(home.rglob("*"))
    ended = run_forked([*RUN, *arguments], home, f"import os\nos.environ['COLUMNS'] = '{columns}'\n{before}\n{PLAIN}")
    assert [path for path in set(home.rglob("*")) - files if not path.name.startswith("std")] == []  # its output
    return ended


@pytest.mark.parametrize("columns", [60, 80])
def test_table_fits_the_terminal(columns: int, home: Path) -> None:
    ended = dry(home, "--run.as_processes=16", columns=columns)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[-1] == "16 processes: would train"
    assert max(map(len, lines)) <= columns
    for fact in ("each batch     48 images: 3 per process", "last batch     10 images: 0 to 1 per process, 6 of 16"):
        assert fact in ended.out
    assert "6 processes wait during an epoch's last batch" in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        (
            ("--run.as_processes=64", "--train.shards=6", "--train.batch_size=50"),
            ("(1) train.shards=6 (command line): cannot be divided by 64 processes", "(2) train.batch_size=50"),
        ),
        (("--run.as_processes=5",), ("train.batch_size=48 (command line): cannot be divided by 5 processes",)),
        (
            ("--run.as_processes=16", "--data.drop_last=true", "--data.limit=20"),
            ("data.drop_last=true leaves nothing",),
        ),
        (("--run.as_processes=16", "--run.dir=data"), ("run.dir=data: holds no run",)),
        (
            ("--run.as_processes=16", "--run.dir=data", "--model.init_from=none"),
            ("(1) run.dir=data: holds no run", "(2) model.init_from=none: "),
        ),
        (("--run.as_processes=16", "--data.root=none"), ("no data set in ",)),
    ],
)
def test_what_would_be_refused(arguments: tuple[str, ...], reasons: tuple[str, ...], home: Path) -> None:
    ended = dry(home, *arguments)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    count = arguments[0].partition("=")[2]
    assert ended.err.startswith(f"mnist_dist: error: {count} processes: would be refused: {reasons[0]}")
    for reason in reasons:
        assert reason in ended.err
    assert "would train" not in ended.out


def test_step_that_fails_on_one_image_is_refused(home: Path) -> None:
    patch = (
        "from torch import nn\nfrom mnist_dist.training import dry_run\nmeasure = dry_run.measure_step\n"
        "model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))\n"
        "dry_run.measure_step = lambda _, *others: measure(model, *others)"
    )
    ended = dry(home, "--run.as_processes=48", "--run.dir=data", before=patch)
    assert ended.code == 2
    assert "would be refused: (1) run.dir=data: holds no run" in ended.err
    assert "(2) a step of rank 0 fails: ValueError: Expected more than 1 value per channel" in ended.err
    eight = ("--run.as_processes=8", "--train.shards=0")  # 6 images each, but 1 or 2 of an epoch's last batch
    assert "got input size torch.Size([1, 784])" in dry(home, *eight, before=patch).err
    assert dry(home, *eight, "--data.drop_last=true", before=patch).code == 0


def test_launcher_that_starts_several_is_refused() -> None:
    with pytest.raises(UserError, match=r"run.as_processes=4 \(command line\): .* but 2 were started; start one"):
        load(["--run.as_processes=4"], world_size=2)


def test_python_gets_the_run_or_an_error(home: Path) -> None:
    ended = run_forked([], home, PYTHON)
    assert ended.out.splitlines() == ["python", "UserError run.as_processes=16: without fixed shards there is no run"]


PYTHON = f"""
from mnist_dist import Config, train
settings = dict(each.removeprefix("--").split("=") for each in {[*RUN, "--run.quiet=true", "--run.dir=python"]})
train(Config.from_recipe([], settings | {{"run.as_processes": 4, "train.shards": 4}}))
try:
    train(Config.from_recipe([], settings | {{"run.as_processes": 16, "run.dir": ""}}))
except Exception as error:
    print(type(error).__name__, str(error).partition(" to return")[0])
"""


# GPUs that this machine does not have


def test_gpus_may_be_absent(home: Path) -> None:
    ended = dry(home, "--run.as_processes=16", "--run.device=cuda", "--train.precision=auto", "--train.shards=16")
    assert ended.code == 0
    assert "cuda, bf16; this machine has none, so steps were tried on its CPU" in ended.out
    assert ended.out.splitlines()[-1] == "16 processes: would train"  # and nothing is trained on the CPU instead


def test_gpus_of_this_machine_give_the_number_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    for module in ("distributed.device", "training.rank_plan"):
        monkeypatch.setattr(f"mnist_dist.{module}.find_accelerator", lambda: "cuda")
    config = load(["--run.as_processes=64", "--train.precision=no"]).config
    plan = plan_ranks(config, Topology(), 64)
    assert (plan.device, plan.is_here, plan.shards) == ("cuda", True, 0)
    assert (plan.topology.machines, plan.topology.local_world_size) == (8, 8)
    on_cpu = plan_ranks(load(["--run.device=cpu", "--train.precision=no"]).config, Topology(), 64)
    assert (on_cpu.device, on_cpu.topology.machines) == ("cpu", 1)


def test_without_a_fake_group_all_else_is_shown(home: Path) -> None:
    module = "torch.testing._internal.distributed.fake_pg"
    ended = dry(home, "--run.as_processes=16", before=f"import sys\nsys.modules['{module}'] = None")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "16 processes: would train")
    assert "3 per process" in ended.out
    assert "note: memory and traffic were not measured" in ended.out

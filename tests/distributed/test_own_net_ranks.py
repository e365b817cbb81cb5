"""A network of the user's own on two ranks: every strategy trains it; what is wrong with it is one line on both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from programs import write_digits
from test_fsdp import set_fsdp_environment

from mnist_dist.checkpoint.manager import load_verified
from mnist_dist.train import start
from mnist_dist.utils.errors import UserError

NETS = '''
import os
from torch import nn


class Net(nn.Module):
    """Two layers share a weight, another one is frozen, and there is a batch norm."""

    def __init__(self, width: int = 12):
        super().__init__()
        conv = nn.Conv2d(1, 4, 5, stride=4, bias=False)  # a bias before a batch norm is moved by rounding alone
        self.body = nn.Sequential(conv, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, width))
        self.again = nn.Linear(width, width)
        self.more = nn.Linear(width, width)
        self.more.weight = self.again.weight
        self.fixed = nn.Linear(width, width).requires_grad_(False)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        return self.head(self.fixed(self.more(self.again(self.body(images)).relu()).relu()))


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class FailsWithout(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, images):
        return self.head(images.view(len(images), -1))


def on_one_rank():
    if os.environ["RANK"] == "1":
        raise OSError("only here")
    return Net()
'''
SETTINGS = (
    *("--data.root=data", "--data.source=local", "--data.val_size=0", "--run.device=cpu", "--run.threads=1"),
    *(
        "--train.precision=no",
        "--train.epochs=2",
        "--train.batch_size=16",
        "--run.quiet=true",
        "--tracking.mode=disabled",
    ),
    *("--optim.lr=0.001", "--run.timeout=60"),
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with data, whose last batch has one image, and the networks."""
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=16 * 3 + 1, test=20)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def train(work: Path, name: str, options: tuple[str, ...], fsdp: bool, run: str) -> str:
    """Train on this rank; the error, or nothing."""
    os.chdir(work)
    if fsdp:
        set_fsdp_environment()
    try:
        start([*SETTINGS, f"--model.name=nets.py:{name}", f"--run.dir={run}", *options])
    except UserError as error:
        return str(error)
    return ""


def trained(work: Path, world_size: int, *options: str, name: str = "Net", fsdp: bool = False) -> dict[str, Any]:
    """The weights after a run, and `sha256`."""
    run = f"run-{world_size}-{len(list(work.iterdir()))}"
    assert run_ranks(world_size, train, work, name, options, fsdp, run) == [""] * world_size
    assert [path.name for path in (work / run / "model").iterdir()] == ["nets.py"]
    saved = load_verified(max((work / run / "checkpoints").iterdir())).parse()
    assert saved.state["code"].keys() == {"nets.py"}
    return saved.model | {"sha256": json.loads((work / run / "summary.json").read_text())["weights_sha256"]}


def errors(work: Path, name: str, *options: str) -> set[str]:
    return set(run_ranks(2, train, work, name, options, False, "refused"))


def is_close(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    assert found.keys() == expected.keys()
    return all((found[name] - expected[name]).abs().max() < 1e-5 for name in expected if name != "sha256")


def test_every_strategy_trains_it(work: Path) -> None:
    averaged, sharded = trained(work, 2, "--train.shards=0"), trained(work, 2, fsdp=True)
    assert averaged["again.weight"].equal(averaged["more.weight"])
    assert sharded["again.weight"].equal(sharded["more.weight"])
    assert is_close(sharded, averaged)
    alone, fixed = trained(work, 1, "--train.shards=2"), trained(work, 2, "--train.shards=2")
    assert fixed["sha256"] == alone["sha256"]
    assert is_close(fixed, averaged)  # a shard each: the same batch norms


def test_a_parameter_without_a_gradient_is_refused_where_ddp_would_wait_for_it(work: Path) -> None:
    assert errors(work, "Unused", "--train.shards=0") == {
        "model.name=nets.py:Unused: parameter spare.weight gets no gradient (nor do 1 more): DistributedDataParallel "
        "would wait for it; use it, or freeze it"
    }
    assert not (work / "refused" / "checkpoints").exists()
    trained(work, 2, "--train.shards=2", name="Unused")
    trained(work, 2, name="Unused", fsdp=True)


def test_a_rank_without_an_image_is_foreseen(work: Path) -> None:
    (said,) = errors(work, "FailsWithout", "--train.shards=0")
    line = NETS[: NETS.index("return self.head(images.view")].count("\n") + 1
    assert (
        "with 0 images, this process's share of an epoch's last batch (data.drop_last=true leaves that out): " in said
    )
    assert f": nets.py:{line}: RuntimeError: cannot reshape" in said
    trained(work, 2, "--train.shards=0", "--data.drop_last=true", name="FailsWithout")


def test_an_error_on_one_rank_ends_both(work: Path) -> None:
    (said,) = errors(work, "on_one_rank")
    line = NETS[: NETS.index("raise OSError")].count("\n") + 1
    assert said == f"rank 1: model.name=nets.py:on_one_rank: nets.py:{line}: OSError: only here"


def train_elsewhere(work: Path) -> str:
    """Train in a folder of this rank's own."""
    return train(work / os.environ["RANK"], "Net", ("--data.root=../data",), False, "../refused")


def test_ranks_with_other_code_are_refused(work: Path) -> None:
    for rank in range(2):
        (work / str(rank)).mkdir()
        (work / str(rank) / "nets.py").write_text(f"{NETS}# {rank}\n")
    (said,) = set(run_ranks(2, train_elsewhere, work))
    assert said.startswith("the model's code of rank 1 differs from rank 0's: nets.py='")

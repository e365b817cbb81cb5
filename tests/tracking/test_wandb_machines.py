"""The load of several machines in one wandb run: two ranks as on two machines, and the fake server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import run_ranks
from programs import write_digits
from wandb_server import EVENTS, WandbServer

from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.tracking import wandb_tracker
from mnist_dist.tracking.wandb_thread import SharedLoad
from mnist_dist.train import main
from mnist_dist.training.machine_load import share_load

pytest.importorskip("wandb")

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key
SETTINGS = (
    *("--run.device=cpu", "--run.threads=1", "--run.dir=run", "--data.root=.", "--data.source=local"),
    *("--data.val_size=30", "--model.name=basic", "--train.epochs=2", "--train.batch_size=24"),
    *("--tracking.share=system", "--tracking.timeout=60", "--tracking.artifacts=false", "--tracking.examples=0"),
)


def set_environment(work: Path, url: str, key: str) -> None:
    os.chdir(work)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": key, "HOME": str(work)}


def train(work: Path, url: str) -> tuple[int, str, str]:
    """A run on this rank: its exit code and output."""
    set_environment(work, url, KEY)
    wandb_tracker.SYSTEM_SETTINGS["x_stats_sampling_interval"] = 0.1
    out, err = work / f"out-{os.environ['RANK']}", work / f"err-{os.environ['RANK']}"
    with out.open("w") as file, err.open("w") as errors:
        os.dup2(file.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    code = main(SETTINGS)
    return code, out.read_text(), err.read_text()


def resolve(work: Path, keys: list[str]) -> tuple[SharedLoad | None, list[str]]:
    """Where this rank sends its load, with the key of this machine; and the warnings."""
    topology, warnings = read_topology(), list[str]()
    set_environment(work, "http://127.0.0.1:1", keys[topology.rank])
    config = load(SETTINGS, 2).config
    with start_runtime(config, topology) as runtime:
        return share_load(config, "run1234", runtime, warnings.append), warnings


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_digits(tmp_path, train=30 + 24 * 4, test=50)
    return tmp_path


def labels(server: WandbServer) -> set[str]:
    """The labels of the load that the server received."""
    sent = "".join(request for request in server.requests if EVENTS in request)
    return {label for label in ("machine-0", "machine-1") if f"/l:{label}" in sent}


def test_each_machine_sends_its_load_into_the_same_run(work: Path) -> None:
    with WandbServer() as server:
        (first, second) = run_ranks(2, train, work, server.url, machines=2)
        assert (first[0], first[2], second) == (0, "", (0, "", ""))
        ((run_id, run),) = server.runs.items()
        assert labels(server) == {"machine-0", "machine-1"}
        losses = [row["global_step"] for row in run.history if "val/loss" in row]
        assert losses == [4, 8]
        assert run.fields["displayName"] == "run"
        assert run.summary["train/steps"] == 8
        assert f"wandb: {server.url}/someone/mnist_dist/runs/{run_id}" in first[1]
        assert KEY not in "".join(server.requests)


def test_a_machine_without_a_key_is_named(tmp_path: Path) -> None:
    first, second = run_ranks(2, resolve, tmp_path, [KEY, ""], machines=2)
    warning = "tracking.share=system: no wandb key on machine 1, whose load is not recorded"
    assert first == (SharedLoad(0, "run1234", "mnist_dist", "", "http://127.0.0.1:1"), [warning])
    assert second[0] is None


def test_offline_only_the_first_machine_is_recorded(tmp_path: Path) -> None:
    first, second = run_ranks(2, resolve, tmp_path, ["", ""], machines=2)
    warning = "tracking.share=system: wandb is offline, so only the load of the first machine is recorded"
    assert first == (None, [warning])
    assert second[0] is None


def test_one_machine_shares_with_nobody(tmp_path: Path) -> None:
    assert run_ranks(2, resolve, tmp_path, [KEY, KEY]) == [(None, []), (None, [])]

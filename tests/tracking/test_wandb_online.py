"""wandb online: whole runs with the real wandb against a fake server, which also fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forked_training import run_forked
from measured_keys import MEASURED_ROW_KEYS
from programs import Ended, read_rows, run, started, write_digits
from wandb_server import ENTITY, HISTORY, Fault, Run, WandbServer

from mnist_dist.commands.doctor_checks import NOTE, OK, check_wandb
from mnist_dist.config.loader import load
from mnist_dist.distributed.topology import Topology
from mnist_dist.tracking.media import wandb_key

pytest.importorskip("wandb")

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key
SECRET = "hush9876543210"
PROGRAM = (sys.executable, "-m", "mnist_dist.train")
RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--run.dir=run"),
    *("--data.source=local", "--data.val_size=30", "--model.name=basic", "--train.batch_size=24"),
    *("--tracking.log_steps=1", "--tracking.group=g", "--tracking.job_type=j", "--tracking.notes=why"),
    *("--tracking.tags=[one,two]", "--tracking.timeout=60"),
)
PLAIN = ("--tracking.examples=0", "--tracking.histograms=false", "--tracking.artifacts=false")  # rows only: quicker
LONG = (*PLAIN, "--train.epochs=100", "--train.batch_size=2")
RUN_FIELDS = {"groupName": "g", "jobType": "j", "notes": "why", "tags": ["one", "two"]}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server that wandb finds, with a key in the environment. It must have an answer to every request."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", SECRET)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        assert server.unknown == set()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps an epoch."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=30 + 24 * 4 + 7, test=50)
    return folder


@pytest.fixture(scope="module")
def much(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More data than a run of LONG uses before it is stopped."""
    folder = tmp_path_factory.mktemp("much")
    write_digits(folder, train=30 + 20_000, test=50)
    return folder


def train(work: Path, data: Path, *arguments: str, code: int = 0) -> Ended:
    """A whole run in a process of its own, which leaves no process behind."""
    work.mkdir(exist_ok=True)
    ended = run_forked([*RECIPE, f"--data.root={data}", *arguments], work)
    assert ended.code == code, ended.err
    return ended


def warnings(ended: Ended) -> list[str]:
    """The lines of a run on standard error."""
    return ended.err.splitlines()


def upload(ended: Ended, work: Path) -> None:
    """Run the upload command that the run's last lines show."""
    (command,) = re.findall(r"upload it with `wandb (.*)`", ended.out)
    (done,) = run([sys.executable, "-m", "wandb", *shlex.split(command)], work=work)
    assert done.code == 0, done.err


def assert_mirrored(run: Run, folder: Path, resent: bool = False) -> None:
    """The server's history has the rows of metrics.jsonl in the same order, each sent once.

    Args:
        resent: rows may have been sent twice, as the same wandb step with the same values.
    """
    rows = [
        {"global_step": row["step"], "_timestamp": row["time"]}
        | {wandb_key(k): v for k, v in row.items() if k not in ("step", "time") and not isinstance(v, list)}
        for row in read_rows(folder)
    ]
    history = run.history
    if resent:
        steps = {each["_step"]: each for each in history}
        assert [steps[each["_step"]] for each in history] == history
        history = list(steps.values())
    keys = {key for row in rows for key in row} - {"global_step", "_timestamp", "epoch"}
    shown = [each for each in history if keys & set(each)]  # not the entries of media
    assert [{key: each.get(key) for key in row} for each, row in zip(shown, rows, strict=True)] == rows
    assert [each["_step"] for each in history] == list(range(len(history)))
    sent = [number for name, number in run.sent if name == HISTORY]
    assert sent == sorted(set(sent))


def assert_nothing_private(server: WandbServer) -> None:
    """The key is in the Authorization header, and nowhere else."""
    assert server.keys == {KEY}
    for request in server.requests:
        assert KEY not in request
        assert SECRET not in request
        assert sys.executable not in request
        assert str(Path(__file__).parents[2]) not in request


# What the server has


def test_the_server_has_what_the_run_knows(server: WandbServer, data: Path, tmp_path: Path) -> None:
    ended = train(tmp_path, data, "--train.epochs=2")
    assert warnings(ended) == []
    ((run_id, received),) = server.runs.items()
    assert_mirrored(received, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for key in ("test.accuracy", "test.loss", "weights_sha256", "train.steps"):
        assert received.summary[wandb_key(key)] == summary[key]
    best = max(row["val.accuracy"] for row in read_rows(tmp_path / "run") if "val.accuracy" in row)
    assert received.summary["val/accuracy"]["max"] == best
    assert received.exit_codes == [0]
    assert received.config["train"]["batch_size"] == 24
    assert set(received.config) == {"run", "data", "model", "optim", "train", "tracking", "facts", "_wandb"}
    assert set(received.fields) <= {"id", "name", "project", "entity", "displayName", "program", *RUN_FIELDS}
    assert {key: received.fields[key] for key in ("program", *RUN_FIELDS)} == {"program": "mnist_dist", **RUN_FIELDS}
    assert f"wandb: {server.url}/{ENTITY}/mnist_dist/runs/{run_id}" in ended.out.splitlines()
    assert_models(server, run_id, summary["weights_sha256"], tmp_path / "run")
    assert_nothing_private(server)
    assert not any("/sdk/otel" in request for request in server.requests)  # no telemetry of wandb's


def assert_models(server: WandbServer, run_id: str, digest: str, folder: Path) -> None:
    """The last model is complete, as `latest`; the best one is there too."""
    models = [each for each in server.artifacts if each.kind == "model"]
    assert {each.name for each in models} == {f"model-{run_id}"}
    assert all(each.committed and each.run == run_id for each in models)
    (latest,) = [each for each in models if "latest" in each.aliases]
    assert len([each for each in models if "best" in each.aliases]) == 1
    assert latest.metadata["weights_sha256"] == digest
    (checkpoint,) = {name.rpartition("/")[0] for name in latest.files if "/" in name}
    for name in ("config.yaml", f"{checkpoint}/model.safetensors", f"{checkpoint}/manifest.json"):
        assert latest.files[name] == (folder / name).read_bytes()


def stop_early(
    work: Path, data: Path, *arguments: str, meanwhile: Callable[[], object] = lambda: None
) -> tuple[int, Ended]:
    """Start a long run and stop it by SIGTERM; the step of its checkpoint, and how it ended."""
    work.mkdir(exist_ok=True)
    command = [*PROGRAM, *RECIPE, *LONG, f"--data.root={data}", *arguments]
    with started(command, work=work) as (program,):
        program.wait_for_line("step 6/")
        meanwhile()
        program.signal(signal.SIGTERM)
        ended = program.end()
        assert program.family() == []
    assert ended.code == 3, ended.err
    newest = max((work / "run" / "checkpoints").iterdir())
    return int(newest.name.removeprefix("step-")), ended


def test_a_stopped_run_goes_on_as_the_same_run(server: WandbServer, much: Path, tmp_path: Path) -> None:
    step, _ = stop_early(tmp_path, much)
    (received,) = server.runs.values()
    assert_mirrored(received, tmp_path / "run")
    ended = train(tmp_path, much, *LONG, f"--train.max_steps={step + 6}")
    assert warnings(ended) == []
    assert list(server.runs.values()) == [received]
    assert received.exit_codes == [3, 0]
    assert_mirrored(received, tmp_path / "run")
    assert received.history[-1]["global_step"] == step + 6
    assert received.fields["tags"] == ["one", "two"]


def test_offline_parts_of_a_stopped_run_join_into_one(server: WandbServer, much: Path, tmp_path: Path) -> None:
    offline = "--tracking.mode=offline"
    step, _ = stop_early(tmp_path, much, offline)
    ended = train(tmp_path, much, *LONG, f"--train.max_steps={step + 6}", offline)
    assert server.requests == []
    upload(ended, tmp_path)
    (received,) = server.runs.values()
    assert received.exit_codes == [3, 0]
    assert_mirrored(received, tmp_path / "run")
    assert received.fields["groupName"] == "g"
    assert_nothing_private(server)


# A server that fails

OFFLINE = r"wandb cannot go online \(.*\); this run is recorded offline"
GIVEN_UP = r"wandb's server did not receive everything; metrics.jsonl has everything"
FAULTS = {
    "500s for a while": (Fault(times=3), None),
    "500s for ever": (Fault(), OFFLINE),
    "500s for rows": (Fault(at="file_stream"), GIVEN_UP),
    "never answers": (Fault("hold"), OFFLINE),
    "never takes rows": (Fault("hold", at="file_stream"), GIVEN_UP),
    "gone at the end": (Fault("drop", at='"complete":true'), GIVEN_UP),
    "takes the key back": (Fault(status=401, at="file_stream"), GIVEN_UP),
    "refuses the project": (Fault(status=403, at="UpsertBucket"), OFFLINE),
}
"""What the server does, and the run's warning."""


@pytest.fixture(scope="module")
def without(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Any]:
    """The seconds and the outcome of a run without a tracker."""
    folder, start = tmp_path_factory.mktemp("without"), time.monotonic()
    train(folder, data, "--train.epochs=2", "--tracking.mode=disabled")
    return time.monotonic() - start, outcome(folder / "run")


def outcome(folder: Path) -> tuple[Any, Any]:
    """A run's weights and rows, without times."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in read_rows(folder)]
    return summary["weights_sha256"], rows


@pytest.mark.parametrize("name", ["500s for ever"])
def test_a_server_that_fails_changes_nothing(
    name: str, server: WandbServer, data: Path, without: tuple[float, Any], tmp_path: Path
) -> None:
    assert_unchanged(name, server, data, without, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "500s for ever"])
def test_a_server_that_fails_in_any_way_changes_nothing(
    name: str, server: WandbServer, data: Path, without: tuple[float, Any], tmp_path: Path
) -> None:
    assert_unchanged(name, server, data, without, tmp_path)


def assert_unchanged(name: str, server: WandbServer, data: Path, without: tuple[float, Any], work: Path) -> None:
    """Same weights and rows, one warning at most, no long wait; the server gets everything once it works again."""
    fault, warning = FAULTS[name]
    server.fault, start = replace(fault), time.monotonic()
    ended = train(work, data, *PLAIN, "--train.epochs=2", f"--tracking.timeout={10 if warning else 60}")
    assert time.monotonic() - start < 2 * without[0] + 10 + 30
    assert outcome(work / "run") == without[1]
    if warning:
        (line,) = ended.err.splitlines()
        assert re.fullmatch(f"warning: {warning}", line), line
        server.fault = None
        server.release()
        upload(ended, work)
    else:
        assert ended.err == ""
    (received,) = server.runs.values()
    assert_mirrored(received, work / "run")
    assert_nothing_private(server)


@pytest.mark.faults
def test_a_server_that_is_gone_leaves_a_run_that_another_takes(
    server: WandbServer, data: Path, without: tuple[float, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.go_away()  # refuses connections
    ended = train(tmp_path, data, "--train.epochs=2", "--tracking.timeout=10")
    assert outcome(tmp_path / "run") == without[1]
    assert re.fullmatch(f"warning: {OFFLINE}\n", ended.err)
    with WandbServer() as other:
        monkeypatch.setenv("WANDB_BASE_URL", other.url)
        upload(ended, tmp_path)
        assert_mirrored(*other.runs.values(), tmp_path / "run")


@pytest.mark.faults
def test_a_slow_server_gets_everything(
    server: WandbServer, data: Path, without: tuple[float, Any], tmp_path: Path
) -> None:
    server.fault = Fault("hold")
    with started([*PROGRAM, *RECIPE, f"--data.root={data}", "--train.epochs=2"], work=tmp_path) as (program,):
        program.wait_for_line("epoch 2/2")  # trained, while the server has answered nothing
        assert server.runs == {}
        server.fault = None
        server.release()
        ended = program.end()
    assert (ended.code, ended.err) == (0, "")
    assert outcome(tmp_path / "run") == without[1]
    assert_mirrored(*server.runs.values(), tmp_path / "run")


@pytest.mark.faults
def test_a_server_that_is_lost_in_mid_run_gets_the_rest_later(
    server: WandbServer, much: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.2")

    def lose() -> None:
        server.wait_for(lambda: any(len(received.history) > 5 for received in server.runs.values()))
        server.fault = Fault("drop", at="file_stream")

    _, ended = stop_early(tmp_path, much, "--tracking.timeout=10", meanwhile=lose)
    assert len(*(received.history for received in server.runs.values())) < len(read_rows(tmp_path / "run"))
    server.fault = None
    upload(ended, tmp_path)
    assert_mirrored(*server.runs.values(), tmp_path / "run", resent=True)


@pytest.mark.faults
def test_the_stop_button_in_the_browser_stops_with_a_checkpoint(
    server: WandbServer, much: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.2")
    server.stopped = True
    ended = train(tmp_path, much, *LONG, "--tracking.log_steps=500", code=3)  # wandb asks every 15 s
    assert "stopped" in ended.err
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    (received,) = server.runs.values()
    assert received.exit_codes == [3]
    assert_mirrored(received, tmp_path / "run")


# A key that is wrong


def test_a_key_that_the_server_does_not_know_is_reported_before_training(
    server: WandbServer, data: Path, without: tuple[float, Any], tmp_path: Path
) -> None:
    server.fault = Fault(status=401)
    ended = train(tmp_path, data, "--train.epochs=2")
    assert ended.err == (
        f"warning: {server.url} refuses the wandb key in WANDB_API_KEY (environment); this run is recorded offline"
        " (to replace the key, run `wandb login --relogin`)\n"
    )
    assert outcome(tmp_path / "run") == without[1]
    assert [request.split()[:2] for request in server.requests] == [["POST", "/graphql"]]
    server.fault = None
    upload(ended, tmp_path)
    assert_mirrored(*server.runs.values(), tmp_path / "run")


def test_the_doctor_asks_whether_the_key_is_taken(server: WandbServer) -> None:
    config = load(["--tracking.mode=online"]).config
    assert check_wandb(config, Topology()).verdict == OK
    server.fault = Fault(status=401)
    found = check_wandb(config, Topology())
    assert found.verdict == NOTE
    assert found.found.endswith(f"{server.url} does not take the key of WANDB_API_KEY (environment)")
    assert KEY not in found.found + found.advice

"""Whole runs with the real wandb, offline: stopped, resumed, failed, without its service; and the models they keep."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked_training import PLAIN, run_forked
from measured_keys import MEASURED_ROW_KEYS
from programs import PYTHON, Ended, read_rows, run, write_digits
from wandb_records import Artifact, Recorded, read_run

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.tracker import open_tracker

pytest.importorskip("wandb")

RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--run.dir=run", "--data.source=local", "--data.val_size=30"),
    *("--model.name=basic", "--train.epochs=3", "--train.batch_size=24", "--optim.ema=0.5", "--optim.lr=0.01"),
    *("--tracking.mode=offline", "--tracking.log_steps=1", "--tracking.timeout=100"),
    "--tracking.alerts=true",
)
STEPS = 5  # of an epoch
AT_STEP_7 = """
import os, signal, time
import psutil
from mnist_dist.tracking import tracker
from mnist_dist.train import main
from mnist_dist.training.train_step import TrainStep
from mnist_dist.utils.exit import exit_with

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def fail():
    raise OSError("no")

def kill_service():
    while not trackers[0].view_hint:  # wandb has begun
        time.sleep(0.01)
    for child in psutil.Process().children():
        if child.name().startswith("wandb-core"):
            child.kill()

trackers = []
class Watched(tracker.WandbTracker):
    def __init__(self, *arguments):
        trackers.append(self)
        super().__init__(*arguments)
tracker.WandbTracker = Watched

step = TrainStep.step
def step_and_act(self, batch):
    result = step(self, batch)
    if self.state.progress.step + 1 == 7:
        ACTION()
    return result
TrainStep.step = step_and_act
exit_with(main)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=30 + 24 * 4 + 7, test=50)
    return folder


def train(work: Path, data: Path, *arguments: str, at_step_7: str = "") -> Ended:
    """A whole run in a folder, which leaves no process behind."""
    program = AT_STEP_7.replace("ACTION", at_step_7) if at_step_7 else PLAIN
    return run_forked([*RECIPE, f"--data.root={data}", *arguments], work, program)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run without times."""
    return [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in read_rows(folder)]


def segments(folder: Path) -> list[Recorded]:
    """Each start of a run, in order."""
    found = [read_run(segment) for segment in (folder / "wandb").glob("offline-run-*")]
    return sorted(found, key=lambda each: each.history[0]["_timestamp"])


def models(recorded: Recorded) -> list[Artifact]:
    return [artifact for artifact in recorded.artifacts if artifact.kind == "model"]


def best(folder: Path, key: str, choose: Any) -> dict[str, float]:
    """The best and the last value of a metric, by metrics.jsonl."""
    values = [row[key] for row in read_rows(folder) if key in row]
    return {choose.__name__: choose(values), "last": values[-1]}


@dataclass
class Whole:
    """An undisturbed run."""

    folder: Path
    recorded: Recorded
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    work = tmp_path_factory.mktemp("whole")
    ended = train(work, data)
    assert ended.code == 0, ended.err
    (recorded,) = segments(work / "run")
    return Whole(work / "run", recorded, json.loads((work / "run" / "summary.json").read_text()))


def test_wandb_has_every_row_and_the_summary(whole: Whole) -> None:
    recorded = whole.recorded
    assert recorded.exit_code == 0
    assert recorded.alerts == [("Run finished", f"run: test accuracy {whole.summary['test.accuracy']:.2%}", "INFO")]
    for row in read_rows(whole.folder):
        wanted = {key.replace(".", "/"): value for key, value in row.items() if not isinstance(value, list)}
        wanted |= {"global_step": wanted.pop("step"), "_timestamp": wanted.pop("time")}
        assert any(wanted.items() <= entry.items() for entry in recorded.history)
    for key, value in whole.summary.items():
        if not isinstance(value, list) and not key.startswith("val."):
            assert recorded.summary[key.replace(".", "/")] == value
    assert recorded.summary["val/accuracy"] == best(whole.folder, "val.accuracy", max)
    assert recorded.summary["val/loss"] == best(whole.folder, "val.loss", min)
    assert recorded.summary["epoch/train/loss"] == best(whole.folder, "epoch.train.loss", min)


def test_facts_are_there_from_the_start(whole: Whole) -> None:
    facts = whole.recorded.config["facts"]
    names = ("world_size", "machines", "device", "precision", "shards", "model.parameters", "versions.torch")
    names += ("data.train_sha256", "data.test_sha256")
    assert {name: facts[name.replace(".", "/")] for name in names} == {name: whole.summary[name] for name in names}


def test_the_newest_and_the_best_model_are_artifacts(whole: Whole) -> None:
    state = json.loads((whole.folder / "checkpoints" / f"step-{3 * STEPS:08d}" / "state.json").read_text())
    by_alias = {alias: each for each in models(whole.recorded) for alias in each.aliases}
    assert by_alias["latest"].name == by_alias["best"].name == f"model-{whole.summary['run_id']}"
    assert by_alias["latest"].metadata["step"] == 3 * STEPS
    assert by_alias["latest"].metadata["weights_sha256"] == whole.summary["weights_sha256"]
    assert by_alias["latest"].metadata["test/accuracy"] == whole.summary["test.accuracy"]
    assert by_alias["best"].metadata["step"] == state["progress"]["best"]["step"]
    assert by_alias["best"].metadata["val/accuracy"] == state["progress"]["best"]["accuracy"]
    for artifact in by_alias.values():
        checkpoint = f"checkpoints/step-{artifact.metadata['step']:08d}"
        names = ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors", "ema.safetensors")
        assert set(artifact.files) == {"config.yaml", *(f"{checkpoint}/{name}" for name in names)}
        for name, path in artifact.files.items():
            assert path.read_bytes() == (whole.folder / name).read_bytes()


def test_an_artifact_is_a_folder_that_evaluate_takes(whole: Whole, data: Path, tmp_path: Path) -> None:
    latest = models(whole.recorded)[-1]
    for name, path in latest.files.items():
        (tmp_path / "artifact" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "artifact" / name)
    (ended,) = run([*PYTHON, "-m", "mnist_dist", "evaluate", "artifact", "--json"], work=tmp_path)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["test.loss"] == whole.summary["test.loss"]


def test_one_version_may_be_both(data: Path, tmp_path: Path) -> None:
    assert train(tmp_path, data, "--train.epochs=1").code == 0
    (recorded,) = segments(tmp_path / "run")
    (model,) = models(recorded)
    assert sorted(model.aliases) == ["best", "latest"]


def test_no_model_leaves_where_none_is_wanted(data: Path, tmp_path: Path) -> None:
    assert train(tmp_path, data, "--train.epochs=1", "--tracking.artifacts=false").code == 0
    assert models(segments(tmp_path / "run")[0]) == []


def test_a_stopped_run_goes_on_as_the_same_run(whole: Whole, data: Path, tmp_path: Path) -> None:
    assert train(tmp_path, data, at_step_7="stop").code == 3
    (first,) = segments(tmp_path / "run")
    assert first.exit_code == 3
    assert first.alerts == [("Run stopped", "run: at step 7, with a checkpoint", "WARN")]
    assert first.summary["val/loss"] == best(tmp_path / "run", "val.loss", min)
    best_model, newest = models(first)
    assert (sorted(best_model.aliases), best_model.metadata["step"]) == (["best", "latest"], STEPS)
    assert (newest.aliases, newest.metadata["step"]) == (["latest"], 7)  # and wandb moves the alias to the last one

    ended = train(tmp_path, data)
    assert ended.code == 0, ended.err
    first, second = segments(tmp_path / "run")
    assert first.run.run_id == second.run.run_id
    assert {each.name for each in (*models(first), *models(second))} == {f"model-{first.run.run_id}"}
    assert f"wandb beta sync --id {first.run.run_id} run/wandb" in ended.out

    logged = first.logged("train/loss") + second.logged("train/loss")
    assert logged == whole.recorded.logged("train/loss")  # nothing twice, nothing missing
    assert second.summary["val/loss"] == whole.recorded.summary["val/loss"]  # of both segments
    assert second.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_run_that_fails_says_so_by_an_alert(data: Path, tmp_path: Path) -> None:
    assert train(tmp_path, data, "--tracking.artifacts=false", at_step_7="fail").code == 1
    (recorded,) = segments(tmp_path / "run")
    assert recorded.alerts == [("Run failed", "run: OSError: no", "ERROR")]


def test_a_service_that_is_killed_in_a_run_changes_nothing(whole: Whole, data: Path, tmp_path: Path) -> None:
    ended = train(tmp_path, data, at_step_7="kill_service")
    assert ended.code == 0, ended.err
    assert ended.err.count("warning: wandb failed (") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert timeless(tmp_path / "run") == timeless(whole.folder)


def record(folder: Path, rows: list[dict[str, Any]], warnings: list[str]) -> Recorded:
    """A run of these rows alone, in a folder that may hold more."""
    tracking = TrackingConfig(mode="offline", timeout=100)
    tracker = open_tracker(Config(tracking=tracking), folder, "run1234", False, warnings.append, True)
    for each in rows:
        tracker.log(each)
    tracker.finish({}, 1)
    (recorded,) = segments(folder)
    return recorded


def test_steps_that_were_undone_are_in_the_history_twice(tmp_path: Path) -> None:
    steps = [(1, 3), (2, 3), (2, 4)]
    rows = [{"step": step, "epoch": 1, "time": 1000.0, "lr": lr} for step, lr in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(rows[i] | {"val.loss": i + 1}) + "\n" for i in (0, 2)))
    warnings: list[str] = []
    recorded = record(tmp_path, rows, warnings)
    assert recorded.logged("lr") == [(1, 3), (2, 3), (2, 4)]
    assert recorded.summary["val/loss"] == {"min": 1, "last": 3}  # of metrics.jsonl, which has each step once
    assert warnings == []


@pytest.mark.parametrize("damage", ["no state", "no JSON", "no weights"])
def test_a_model_that_cannot_be_read_gives_one_warning_and_the_rest_is_there(
    damage: str, whole: Whole, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(whole.folder / "config.yaml", tmp_path)
    newest = tmp_path / "checkpoints" / f"step-{3 * STEPS:08d}"
    if damage == "no JSON":
        (newest / "state.json").write_text("{")
    else:
        (newest / ("state.json" if damage == "no state" else "ema.safetensors")).unlink()
        (newest / "model.safetensors").write_bytes(b"short")
    warnings: list[str] = []
    recorded = record(tmp_path, [{"step": 1, "epoch": 1, "time": 1000.0, "lr": 0.5}], warnings)
    assert recorded.logged("lr") == [(1, 0.5)]
    assert recorded.exit_code == 1
    (warning,) = warnings
    assert warning.startswith("the model could not be logged to wandb (")
    assert warning.endswith(f"; it is in {tmp_path}")

"""TensorBoard, trackio and MLflow: real runs whose files are read back, killed and resumed; and that none stops one."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from forked_training import PLAIN, run_forked
from harness import run_ranks
from measured_keys import MEASURED_ROW_KEYS
from programs import read_rows, write_digits
from tracker_readers import READERS, TrackerRun

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.distributed.accelerate_trackers import start_tracker
from mnist_dist.tracking import backend, queued_tracker
from mnist_dist.tracking.tracker import Tracker, open_tracker
from mnist_dist.tracking.trackio_backend import own_modules
from mnist_dist.train import main

SETTINGS = (
    *("--run.device=cpu", "--run.threads=1", "--run.dir=run", "--data.source=local", "--data.val_size=30"),
    *("--model.name=convnet", "--train.epochs=2", "--train.batch_size=24", "--tracking.mode=disabled"),
    *("--tracking.log_steps=1", "--tracking.timeout=100", "--tracking.examples=3"),
)
STEPS = 5  # of an epoch
KILLED_AT_STEP_7 = """
import os, sqlite3, signal, time
from pathlib import Path
from mnist_dist.train import main
from mnist_dist.training.train_step import TrainStep
from mnist_dist.utils.exit import exit_with

def has_step_6(name):
    try:
        if name == "tensorboard":
            (file,) = Path("run/tensorboard").glob("events*")
            return file.read_bytes().count(b"\\n\\ntrain/loss") == 6  # a tag with its length before it
        file = "run/mlflow/mlflow.db" if name == "mlflow" else "run/trackio/mnist_dist.db"
        return sqlite3.connect(file).execute("SELECT max(step) FROM metrics").fetchone()[0] == 6
    except (ValueError, sqlite3.Error):
        return False

step = TrainStep.step
def step_and_die(self, batch):
    result = step(self, batch)
    if self.state.progress.step + 1 == 7:
        while not all(map(has_step_6, self.state.config.tracking.also)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return result
TrainStep.step = step_and_die
exit_with(main)
"""


def installed() -> list[str]:
    """The tools that are installed here. Skips, with the names, if there are none."""
    found = [name for name, packages in backend.PACKAGES.items() if all(map(importlib.util.find_spec, packages))]
    if not found:
        pytest.skip(f"none of {', '.join(backend.PACKAGES)} is installed; pip install 'mnist_dist[trackers]'")
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=30 + 24 * 4 + 7, test=50)
    return folder


# Real runs


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all tools that was killed at step 7, two steps after its checkpoint, and resumed."""
    work = tmp_path_factory.mktemp("killed")
    arguments = [*SETTINGS, f"--data.root={data}", f"--tracking.also={','.join(installed())}"]
    assert run_forked(arguments, work, KILLED_AT_STEP_7).code == -9
    ended = run_forked(arguments, work, PLAIN)
    assert (ended.code, ended.err) == (0, "")
    for name in installed():
        assert f"{name}: view it with `" in ended.out
    return work / "run"


@pytest.mark.parametrize("name", list(READERS))
def test_a_killed_and_resumed_run_is_one_run_with_each_row_once(name: str, killed: Path) -> None:
    if name not in installed():
        pytest.skip(f"{name} is not installed; pip install 'mnist_dist[{name}]'")
    recorded = READERS[name](killed)
    found: dict[tuple[str, int], float] = {}
    for point, value in recorded.points:
        if not point[0].startswith(("summary/", "epoch")) or point[0].startswith("epoch/"):
            assert point not in found, f"{point} twice"
            found[point] = value
    rows = read_rows(killed)
    assert [row["step"] for row in rows if "train.loss" in row] == list(range(1, 2 * STEPS + 1))
    expected = {
        (key.replace(".", "/"), row["step"]): value
        for row in rows
        for key, value in row.items()
        if key not in ("step", "epoch", "time") and isinstance(value, (int, float))
    }
    assert set(found) == set(expected)
    measured = {key.replace(".", "/") for key in MEASURED_ROW_KEYS}
    for point, value in expected.items():
        if point[0] not in measured:
            assert found[point] == pytest.approx(value, rel=1e-6), point  # TensorBoard stores float32


@pytest.mark.parametrize("name", list(READERS))
def test_settings_results_and_images_are_recorded(name: str, killed: Path) -> None:
    if name not in installed():
        pytest.skip(f"{name} is not installed; pip install 'mnist_dist[{name}]'")
    recorded: TrackerRun = READERS[name](killed)
    assert str(recorded.config["optim.lr"]) == "0.003"
    assert str(recorded.config["facts.world_size"]) == "1"
    results = {key: value for (key, step), value in recorded.points if step == 2 * STEPS}
    assert results["summary/test/count"] == 50
    assert recorded.texts["summary/device"] == "cpu"
    for step in (STEPS, 2 * STEPS):
        keys = {key.partition("/")[0] for key, found in recorded.images if found == step}
        assert keys >= {"maps", "filters", "samples"}
    if name == "mlflow":
        assert recorded.texts["status"] == "FINISHED"


def train_on_rank(work: Path, arguments: list[str]) -> int:
    os.chdir(work)
    return main(arguments)


def train_twice(work: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """Two runs in one process: the exit code of the second, and what it left behind."""
    os.chdir(work)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    before: Any = None
    for folder in ("first", "run"):  # the first one also for what libraries open once
        before = dict(os.environ), {thread.name for thread in threading.enumerate()}
        code = main([*arguments, f"--run.dir={folder}"])
    after = dict(os.environ), {thread.name for thread in threading.enumerate()}
    return code, [str(set(a) ^ set(b)) for a, b in zip(before, after, strict=True) if a != b]


def light() -> list[str]:
    """Those installed but MLflow, whose import takes two seconds of a core."""
    return [name for name in installed() if name != "mlflow"]


def steps_of_losses(folder: Path, name: str) -> list[int]:
    return [step for (key, step), _ in READERS[name](folder).points if key == "train/loss"]


def test_two_processes_record_one_run(data: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"--data.root={data}", f"--tracking.also={','.join(light())}"]
    assert run_ranks(2, train_on_rank, tmp_path, arguments) == [0, 0]
    for name in light():
        assert steps_of_losses(tmp_path / "run", name) == list(range(1, 2 * STEPS + 1))


def test_two_runs_in_one_process_are_apart_and_leave_nothing_behind(data: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"--data.root={data}", "--train.max_steps=2", f"--tracking.also={','.join(light())}"]
    assert run_ranks(1, train_twice, tmp_path, arguments) == [(0, [])]
    for folder in ("first", "run"):
        for name in light():
            assert steps_of_losses(tmp_path / folder, name) == [1, 2]


# Faults


class FakeTracker:
    """Stands for a started tracker of accelerate."""

    def __init__(self, log: Any = lambda: None) -> None:
        self.on_log, self.rows = log, list[tuple[int, dict[str, Any]]]()
        self.tracker = self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Does nothing."""

    def log(self, values: dict[str, Any], step: int, walltime: float = 0) -> None:
        """Keeps the row."""
        self.on_log()
        self.rows.append((step, values))

    def finish(self) -> None:
        """Does nothing."""


def row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "time": 1000.0 + step, "train.loss": 1 / step, "recall": [1.0]}


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(queued_tracker, "skip_exit_hooks", lambda: found.append("exit hooks are skipped"))
    return found


def open_fake(folder: Path, warnings: list[str], start: Any, timeout: float = 60.0) -> Tracker:
    tracking = TrackingConfig(mode="disabled", also=("tensorboard",)).model_copy(update={"timeout": timeout})
    return open_tracker(Config(tracking=tracking), folder, "run1234", False, warnings.append, True, start_tracker=start)


def test_a_tool_that_fails_at_the_start_gives_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("broken\nbadly")

    tracker = open_fake(tmp_path, warnings, fail)
    for step in range(1, 100):
        tracker.log(row(step))
    tracker.finish({}, 0)
    assert warnings == ["tensorboard failed (OSError: broken); training goes on, and metrics.jsonl has everything"]
    assert (tracker.timed_out, tracker.view_hint) == (False, "")


def test_a_tool_that_fails_later_gives_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    def fail() -> None:
        raise SystemExit("no")

    tracker = open_fake(tmp_path, warnings, lambda *_, **__: FakeTracker(fail))
    for step in range(1, 100):
        tracker.log(row(step))
    tracker.finish({"train.steps": 99}, 0)
    assert warnings == ["tensorboard failed (SystemExit: no); training goes on, and metrics.jsonl has everything"]


def test_a_tool_that_hangs_is_waited_for_at_the_end_only(tmp_path: Path, warnings: list[str]) -> None:
    forever = threading.Event()
    tracker = open_fake(tmp_path, warnings, lambda *_, **__: forever.wait(), timeout=0.05)
    tracker.log(row(1))
    tracker.finish({}, 0)
    forever.set()
    assert warnings[:2] == [
        "exit hooks are skipped",
        "tensorboard did not finish within 0.05 s and was stopped; metrics.jsonl has everything",
    ]
    assert tracker.timed_out


def test_modules_are_listed_while_others_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio.here", ModuleType("trackio.here"))

    def import_one(phase: str, _: dict[str, int]) -> None:
        """Runs where another thread could: between two allocations."""
        monkeypatch.setitem(sys.modules, f"another_{phase}_{len(sys.modules)}", ModuleType("another"))

    threshold = gc.get_threshold()
    gc.callbacks.append(import_one)
    try:
        gc.set_threshold(1)
        assert "trackio.here" in own_modules()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(import_one)


def test_rows_that_a_tool_lacks_are_recorded_when_the_run_is_resumed(tmp_path: Path, warnings: list[str]) -> None:
    from mnist_dist.tracking.metrics_file import MetricsFile

    file = MetricsFile(tmp_path / "metrics.jsonl", -1, warnings.append)
    for step in (1, 2, 3):
        file.write(row(step))
    tracking = TrackingConfig(mode="disabled", also=("tensorboard",))
    fake = FakeTracker()
    tracker = open_tracker(
        Config(tracking=tracking),
        tmp_path,
        "run1234",
        True,
        warnings.append,
        True,
        start_tracker=lambda *_, **__: fake,
    )
    tracker.log(row(4))
    tracker.finish({}, 1)
    assert fake.rows == [(step, {"train/loss": 1 / step, "epoch": 1}) for step in (1, 2, 3, 4)]
    assert warnings == []


def test_a_server_that_does_not_answer_gives_one_warning(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "mlflow" not in installed():
        pytest.skip("mlflow is not installed; pip install 'mnist_dist[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    before = dict(os.environ)
    tracking = TrackingConfig(mode="disabled", also=("mlflow",), timeout=4)
    tracker = open_tracker(
        Config(tracking=tracking), tmp_path, "run1234", False, warnings.append, True, start_tracker=start_tracker
    )
    tracker.log(row(1))
    tracker.finish({}, 0)
    (warning,) = warnings
    assert warning.startswith("mlflow failed (MlflowException: API request to http://127.0.0.1:1/")
    assert not tracker.timed_out
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


# Settings


@pytest.mark.parametrize("name", list(backend.PACKAGES))
def test_a_package_that_is_absent_is_one_line_before_training(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "is_installed", lambda package: False)
    monkeypatch.chdir(tmp_path)
    assert main([f"--data.root={data}", f"--tracking.also={name}", "--tracking.mode=disabled"]) == 2
    assert capsys.readouterr().err == (
        f"mnist_dist: error: tracking.also={name}: {name} is not installed; run: pip install 'mnist_dist[{name}]'\n"
    )
    assert not list(tmp_path.iterdir())

"""Trackers: what wandb is given, and that no failure of wandb reaches training."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import FAKE_RUN, FAKE_SETTINGS
from wandb_records import items, read_records

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import RunConfig, TrackingConfig
from mnist_dist.tracking import wandb_tracker
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.tracker import NullTracker, open_tracker

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "time": 1000.0 + step, **metrics}


# wandb, the real one, offline


def record_run(folder: Path, config: Config, rows: list[dict[str, Any]], resumed: bool = False) -> Any:
    tracker = open_tracker(config, folder, "run1234", resumed, pytest.fail, True)
    for each in rows:
        tracker.log(each)
    tracker.finish({"test.accuracy": 0.99, "val.accuracy": 0.1, "device": "cpu"}, 0)
    assert not tracker.timed_out
    return tracker


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration that records offline, although there is a key."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", KEY)
    return Config(
        run=RunConfig(seed=7), tracking=TrackingConfig(mode="offline", tags=("one", "two"), group="g", timeout=60)
    )


def test_wandb_mirrors_rows_configuration_and_summary(tmp_path: Path, offline: Config) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    rows = [row(50, **{"train.loss": 0.5, "lr": 0.1}), row(50, **{"val.accuracy": 0.9, "val.loss": math.nan})]
    tracker = record_run(folder, offline, [*rows, *(row(50 + i, **{"train.loss": i / 7}) for i in range(1, 2000))])

    (file,) = folder.glob("wandb/offline-run-*/run-run1234.wandb")
    records = list(read_records(file))
    history = [items(record.history.item) for record in records if record.HasField("history")]
    assert len(history) == 2001
    assert history[0] | {"global_step": 50, "epoch": 1, "train/loss": 0.5, "lr": 0.1, "_timestamp": 1050} == history[0]
    assert history[1]["val/accuracy"] == 0.9
    assert [each["train/loss"] for each in history[2:]] == [i / 7 for i in range(1, 2000)]
    assert [each["global_step"] for each in history[2:]] == list(range(51, 2050))
    assert {key for each in history for key in each if not key.startswith("_")} == {
        *("global_step", "epoch", "train/loss", "lr", "val/accuracy", "val/loss")
    }

    (run,) = [record.run for record in records if record.HasField("run")]
    recorded = items(run.config.update)
    recorded.pop("_wandb", None)
    assert recorded == offline.to_dict() | {"facts": {}}
    assert (run.run_id, run.project, run.display_name, run.run_group) == ("run1234", "mnist_dist", "my run", "g")
    assert list(run.tags) == ["one", "two"]

    metrics = {
        record.metric.name or record.metric.glob_name: record.metric for record in records if record.HasField("metric")
    }
    assert metrics["*"].step_metric == "global_step"
    assert metrics["val/accuracy"].summary.max
    assert metrics["val/loss"].summary.min
    summary: dict[str, Any] = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["test/accuracy"] == 0.99
    assert summary["device"] == "cpu"
    assert summary["val/accuracy"] == {"max": 0.9, "last": 0.9}
    assert records[-1].exit.exit_code == 0

    path = file.parent
    assert tracker.view_hint == (
        f"wandb, offline: view it with `wandb leet '{path}'`, upload it with `wandb sync '{path}'`"
    )


def test_nothing_private_is_recorded_and_nothing_is_printed(
    tmp_path: Path, offline: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    record_run(tmp_path, offline, [row(1)])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} <= {"run-run1234.wandb", "debug.log", "debug-internal.log", "debug-core.log"}
    for path in files:
        assert KEY.encode() not in path.read_bytes()
        assert sys.executable.encode() not in path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_keeps_its_id_and_shows_how_to_join_the_parts(tmp_path: Path, offline: Config) -> None:
    tracker = record_run(tmp_path, offline, [row(1)], resumed=True)
    assert len(list(tmp_path.glob("wandb/offline-run-*-run1234"))) == 1
    assert tracker.view_hint.endswith(f"upload it with `wandb beta sync --id run1234 {tmp_path / 'wandb'}`")


def test_other_processes_and_disabled_record_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker.WandbTracker, "__init__", pytest.fail)
    disabled = Config(tracking=TrackingConfig(mode="disabled"))
    online = Config(tracking=TrackingConfig(mode="online"))
    for config, is_main in ((disabled, True), (disabled, False), (online, False)):
        tracker = open_tracker(config, tmp_path, "run1234", False, pytest.fail, is_main)
        assert isinstance(tracker, NullTracker)
        tracker.log(row(1))
        tracker.log_media(1, 1, Media("val"))
        tracker.write_logs("a line")
        tracker.finish({}, 0)
        assert not tracker.timed_out
        assert tracker.view_hint == ""
    assert not list(tmp_path.iterdir())


def test_wandb_that_is_not_installed_gives_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    tracker = open_tracker(Config(), tmp_path, "run1234", False, warnings.append, True)
    for step in range(100):
        tracker.log(row(step))
    tracker.finish({}, 0)
    tracker.finish({}, 0)
    (warning,) = warnings
    assert warning.startswith("wandb failed (ModuleNotFoundError: ")
    assert warning.endswith("); training goes on, and metrics.jsonl has everything")
    assert not tracker.timed_out
    assert not list(tmp_path.iterdir())


# wandb that fails, in processes of their own

DRIVER = """
    import json, os, signal, sys, threading
    from pathlib import Path
    import psutil
    from mnist_dist.tracking import queued_tracker
    from mnist_dist.config.schema import Config
    from mnist_dist.config.sections import TrackingConfig
    from mnist_dist.utils.exit import exit_with
    from mnist_dist.tracking.tracker import open_tracker

    def row(step):
        return {"step": step, "epoch": 1, "time": 0.0, "train.loss": 0.5}

    def services():
        children = psutil.Process().children(recursive=True)
        return [child.name() for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def start(mode="offline", timeout=0.2):
        tracking = TrackingConfig(mode=mode).model_copy(update={"timeout": timeout})  # below its range
        config = Config(tracking=tracking)
        return open_tracker(config, Path("run"), "run1234", False, lambda line: print("warned:", line), True)

    def end(tracker):
        tracker.finish({"test.accuracy": 1.0}, 0)
        print("timed out:", tracker.timed_out)
        print("children:", services())
        if tracker.timed_out:
            exit_with(lambda: 0)
"""


def run_script(script: str, folder: Path, **environment: str) -> list[str]:
    """The lines that a script prints in a process of its own, which must exit with 0 and print no errors."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def drive(script: str, folder: Path, fake: str = "", **environment: str) -> list[str]:
    """Run a script after DRIVER, beside a fake wandb if one is given."""
    (folder / "run").mkdir()
    if fake:
        (folder / "wandb.py").write_text(textwrap.dedent(fake))
    return run_script(textwrap.dedent(DRIVER) + textwrap.dedent(script), folder, **environment)


FAILS = "training goes on, and metrics.jsonl has everything"
HANGS = "warned: wandb did not finish within 0.2 s and was stopped; metrics.jsonl has everything"


@pytest.mark.parametrize(
    ("fake", "error"),
    [
        ("raise RuntimeError('broken\\nbadly')", "RuntimeError: broken"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("", "AttributeError: "),
        (FAKE_SETTINGS + "    def init(**kwargs): raise OSError('no')", "OSError: no"),
        (FAKE_SETTINGS + "    def init(**kwargs): raise SystemExit", "SystemExit"),
        (
            FAKE_SETTINGS + FAKE_RUN + "    def fail(self, row): raise KeyError('no')\n    Run.log = fail",
            "KeyError: 'no'",
        ),
        (FAKE_SETTINGS + FAKE_RUN + "    Run.summary = None", "AttributeError: "),
        (
            FAKE_SETTINGS + FAKE_RUN + "    def fail(self, exit_code): raise OSError('no')\n    Run.finish = fail",
            "OSError: no",
        ),
    ],
)
def test_wandb_that_raises_gives_one_warning(tmp_path: Path, fake: str, error: str) -> None:
    script = """
        tracker = start(timeout=60)
        for step in range(100):
            tracker.log(row(step))
        end(tracker)
    """
    output = drive(script, tmp_path, fake or "nothing = True")
    assert output[0].startswith(f"warned: wandb failed ({error}")
    assert output[0].endswith(FAILS)
    assert output[1:] == ["timed out: False", "children: []"]


@pytest.mark.parametrize(
    "fake",
    [
        "entered.set(); forever.wait()",
        FAKE_SETTINGS + "    def init(**kwargs): entered.set(); forever.wait()",
        FAKE_SETTINGS + FAKE_RUN + "    def hang(self, row): entered.set(); forever.wait()\n    Run.log = hang",
        FAKE_SETTINGS
        + FAKE_RUN
        + "    def hang(self, exit_code): forever.wait()\n    Run.finish = hang; entered.set()",
    ],
    ids=["import", "init", "log", "finish"],
)
def test_wandb_that_hangs_is_never_waited_for_but_at_the_end(tmp_path: Path, fake: str) -> None:
    script = """
        tracker = start()
        tracker.log(row(0))
        entered.wait()  # from here on wandb holds its thread
        for step in range(100):
            tracker.log(row(step))
        print("trained")
        end(tracker)
    """
    events = "import builtins, threading\nbuiltins.entered, builtins.forever = threading.Event(), threading.Event()\n"
    fake = "    from builtins import entered, forever\n" + textwrap.indent(textwrap.dedent(fake), "    ")
    output = drive(events + textwrap.dedent(script), tmp_path, fake)
    assert output == ["trained", HANGS, "timed out: True", "children: []"]


@pytest.mark.parametrize("take", ["log(row(step))", "log_media(step, 1, Media('val'))"], ids=["rows", "media"])
def test_what_wandb_does_not_take_is_not_hoarded(tmp_path: Path, take: str) -> None:
    script = f"""
        from mnist_dist.tracking.media import Media
        queued_tracker.MAX_QUEUED{"" if "row" in take else "_MEDIA"} = 5
        tracker = start()
        for step in range(100):
            tracker.{take}
        print("waiting:", tracker._queue.qsize())
        end(tracker)
    """
    output = drive(script, tmp_path, "import threading\nthreading.Event().wait()")
    assert output == [
        "warned: wandb cannot keep up; from step 5 on, rows are in metrics.jsonl only",
        "waiting: 5",
        HANGS,
        "timed out: True",
        "children: []",
    ]


WAIT_FOR_SERVICE = """
    import time
    tracker.log(row(1))
    while not tracker.view_hint:
        time.sleep(0.01)
    (service,) = psutil.Process().children()
"""


def test_a_service_that_is_killed_gives_one_warning(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    script = (
        "    tracker = start(timeout=60)" + WAIT_FOR_SERVICE + "    service.kill(); tracker.log(row(2)); end(tracker)"
    )
    output = drive(script, tmp_path)
    assert output[0].startswith("warned: wandb failed (")
    assert output[1:] == ["timed out: False", "children: []"]


def test_a_service_that_hangs_is_ended(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    script = "    tracker = start()" + WAIT_FOR_SERVICE + "    service.suspend(); tracker.log(row(2)); end(tracker)"
    assert drive(script, tmp_path) == [HANGS, "timed out: True", "children: []"]


def test_a_folder_that_cannot_be_written_gives_one_warning(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    script = """
        Path("run").rmdir()
        Path("run").touch()
        tracker = start(timeout=60)
        tracker.log(row(1))
        end(tracker)
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    output = drive(script, tmp_path, TMPDIR=str(temporary))
    assert output[0].startswith(f"warned: wandb cannot write to run; it records in {temporary}/wandb/offline-run-")
    assert output[1:] == ["timed out: False", "children: []"]


@pytest.mark.parametrize("key", [KEY, "canary"], ids=["no server", "no key"])
def test_online_that_does_not_work_becomes_offline(tmp_path: Path, key: str) -> None:
    pytest.importorskip("wandb")
    script = """
        tracker = start("auto", timeout=10)
        tracker.log(row(1))
        end(tracker)
        print(tracker.view_hint)
    """
    output = drive(script, tmp_path, WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:1")
    assert output[0].startswith("warned: wandb cannot go online (")
    assert output[0].endswith("); this run is recorded offline")
    assert output[1:3] == ["timed out: False", "children: []"]
    assert "upload it with `wandb sync run/wandb/offline-run-" in output[3]
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-run1234.wandb")
    assert [items(each.history.item)["global_step"] for each in read_records(file) if each.HasField("history")] == [1]
    assert "canary" not in "".join(output)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes()


def test_tracking_imports_neither_torch_nor_wandb(tmp_path: Path) -> None:
    script = (
        "import sys, mnist_dist.tracking.tracker; print(sorted({'torch', 'wandb', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert run_script(script, tmp_path) == ["[]"]

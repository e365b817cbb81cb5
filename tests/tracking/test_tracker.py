"""metrics.jsonl and wandb: what is recorded, and that nothing that goes wrong there reaches training."""

from __future__ import annotations

import json
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

from mnist_dist.config.schema import Config, RunConfig, TrackingConfig
from mnist_dist.tracking import wandb_tracker
from mnist_dist.tracking.media import Media
from mnist_dist.tracking.metrics_file import MetricsFile
from mnist_dist.tracking.tracker import NullTracker, open_tracker
from mnist_dist.tracking.wandb_auth import check_tracking, describe_tracking, tracking_mode
from mnist_dist.utils.errors import UserError

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key


@pytest.fixture(autouse=True)
def nobody(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without keys and an environment without wandb's variables; no test reaches the network."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return home


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "time": 1000.0 + step, **metrics}


def lines(path: Path) -> list[Any]:
    """The rows of a metrics.jsonl, read strictly."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


# metrics.jsonl


def test_rows_are_appended_one_a_line(tmp_path: Path) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = MetricsFile(path, -1, warnings.append)
    rows.write(row(1, loss=0.5))
    assert lines(path) == [row(1, loss=0.5)]  # there at once, without any closing
    rows.write(row(2, loss=0.25))
    assert lines(path) == [row(1, loss=0.5), row(2, loss=0.25)]
    assert warnings == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = MetricsFile(path, -1, pytest.fail)
    rows.write(row(1, loss=math.nan, lr=math.inf) | {"deep": {"list": [1, -math.inf, "nan"]}})
    assert lines(path) == [row(1) | {"loss": None, "lr": None, "deep": {"list": [1, None, "nan"]}}]


def test_a_resumed_run_repeats_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = MetricsFile(path, -1, pytest.fail)
    for step in (10, 20, 30, 40):
        rows.write(row(step))
    rows = MetricsFile(path, 20, pytest.fail)
    rows.write(row(30, again=1.0))
    assert [line["step"] for line in lines(path)] == [10, 20, 30]
    assert lines(path)[-1] == row(30, again=1.0)
    MetricsFile(path, -1, pytest.fail)
    assert lines(path) == []


@pytest.mark.parametrize(
    "torn", [b'{"step": 2, "ep', b"{", b"\0\0\0\0", b"\xff", b"[1]", b'{"epoch": 1}', b'{"step": "2"}']
)
def test_lines_that_are_no_whole_row_are_removed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(row(1)).encode()
    path.write_bytes(whole + b"\n" + torn)
    MetricsFile(path, 100, pytest.fail).write(row(2))
    assert lines(path) == [row(1), row(2)]
    path.write_bytes(torn + b"\n" + whole)  # whole, but for its line's end
    MetricsFile(path, 100, pytest.fail).write(row(2))
    assert lines(path) == [row(1), row(2)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_in_order_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, -1, pytest.fail).write(row(1))
    before = path.stat()
    MetricsFile(path, 1, pytest.fail)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_crash_while_trimming_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = MetricsFile(path, -1, pytest.fail)
    for step in (1, 2):
        rows.write(row(step))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        MetricsFile(path, 1, warnings.append)
    assert warnings == [f"{path}: cannot be written (Input/output error); training goes on without it"]
    assert lines(path) == [row(1), row(2)]


def test_a_vanished_folder_is_said_once_and_its_return_is_used(tmp_path: Path) -> None:
    folder, warnings = tmp_path / "run", []
    folder.mkdir()
    rows = MetricsFile(folder / "metrics.jsonl", -1, warnings.append)
    rows.write(row(1))
    (folder / "metrics.jsonl").unlink()
    folder.rmdir()
    rows.write(row(2))
    rows.write(row(3))
    assert len(warnings) == 1
    assert "No such file or directory" in warnings[0]
    folder.mkdir()
    rows.write(row(4))
    assert lines(folder / "metrics.jsonl") == [row(4)]


def test_a_path_that_cannot_be_a_file_is_said_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    rows = MetricsFile(tmp_path, -1, warnings.append)
    rows.write(row(1))
    assert warnings == [f"{tmp_path}: cannot be written (Is a directory); training goes on without it"]


def test_a_value_that_is_no_json_does_not_stop_a_run(tmp_path: Path) -> None:
    path, warnings = tmp_path / "metrics.jsonl", []
    rows = MetricsFile(path, -1, warnings.append)
    rows.write(row(1) | {"bad": object()})
    rows.write(row(2))
    assert lines(path) == [row(2)]
    assert len(warnings) == 1


def test_a_full_disk_leaves_whole_rows_only(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    script = """
        import resource, sys
        from pathlib import Path
        from mnist_dist.tracking.metrics_file import MetricsFile

        rows = MetricsFile(Path("metrics.jsonl"), -1, print)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        rows.write({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # room for one and a half
        rows.write({"step": 2})
        rows.write({"step": 3})
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        rows.write({"step": 4})
    """
    said = run_script(script, tmp_path)
    assert said == ["metrics.jsonl: cannot be written (the disk is full); training goes on without it"]
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 4}]


# Where wandb is to record


def mode_of(mode: str = "auto") -> str:
    return tracking_mode(TrackingConfig(mode=mode))[0]  # type: ignore[arg-type]


def test_auto_is_offline_without_a_key_and_online_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mode_of() == "offline"
    assert describe_tracking(Config()) == "wandb offline (no key; `wandb login` adds one)"
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert mode_of() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode_of() == "online"
    assert describe_tracking(Config()) == "wandb online (a key is configured)"
    assert KEY not in describe_tracking(Config())


@pytest.mark.parametrize(
    ("entry", "server", "mode"),
    [
        ("machine api.wandb.ai login user password x", "", "online"),
        ("machine api.wandb.ai login user password x", "https://api.wandb.ai", "online"),
        ("machine api.wandb.ai login user password x", "https://wandb.example:8080", "offline"),
        ("machine wandb.example:8080 login user password x", "https://wandb.example:8080", "online"),
        ("machine wandb.example:8080 login user password x", "", "offline"),
        ("machine github.com login user password x", "", "offline"),
        ("default login anonymous password x", "", "offline"),
        ("machine api.wandb.ai", "http://[", "offline"),
        ("what is this", "", "offline"),
    ],
)
def test_auto_reads_netrc(nobody: Path, monkeypatch: pytest.MonkeyPatch, entry: str, server: str, mode: str) -> None:
    (nobody / ".netrc").write_text(f"{entry}\n")
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert mode_of() == mode
    monkeypatch.setenv("NETRC", str(nobody / "other"))
    assert mode_of() == "offline"
    (nobody / "other").write_text(f"{entry}\n")
    assert mode_of() == mode


def test_auto_knows_the_server_that_wandb_login_chose(nobody: Path) -> None:
    (nobody / ".netrc").write_text("machine wandb.example login user password x\n")
    settings = nobody / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example\n")
    assert mode_of() == "online"
    settings.write_bytes(b"\xff[")
    assert mode_of() == "offline"


@pytest.mark.parametrize(
    ("asked", "key", "mode"),
    [("offline", KEY, "offline"), ("dryrun", KEY, "offline"), ("disabled", "", "disabled"), ("online", KEY, "online")],
)
def test_auto_respects_wandb_mode(monkeypatch: pytest.MonkeyPatch, asked: str, key: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert mode_of() == mode
    assert mode_of("offline") == "offline"  # what the configuration says goes first
    assert mode_of("disabled") == "disabled"


def test_online_without_a_key_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "no wandb key is configured; set WANDB_API_KEY, run `wandb login`, or go offline"
    with pytest.raises(UserError, match=f"^tracking.mode=online: {message}$"):
        check_tracking(Config(tracking=TrackingConfig(mode="online")))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=f"^WANDB_MODE=online: {message}$"):
        check_tracking(Config())
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"^WANDB_MODE=sometimes .*: must be online, offline or disabled$"):
        check_tracking(Config())


@pytest.mark.parametrize("project", ["a/b", "a\\b", "a#b", "a?b", "a%b", "a:b", "", "x" * 129])
def test_project_names_that_wandb_refuses_are_refused(project: str) -> None:
    with pytest.raises(UserError, match=r"^tracking.project=.*: must be 1 to 128 characters, none of them"):
        check_tracking(Config(tracking=TrackingConfig(project=project)))
    check_tracking(Config(tracking=TrackingConfig(project="x" * 128)))


@pytest.mark.parametrize("tag", ["", "x" * 65])
def test_tags_that_wandb_refuses_are_refused(tag: str) -> None:
    with pytest.raises(UserError, match=r"^tracking.tags: .* must be 1 to 64 characters$"):
        check_tracking(Config(tracking=TrackingConfig(tags=("fine", tag))))


def test_wandb_refuses_and_takes_the_same_names() -> None:
    wandb = pytest.importorskip("wandb")
    wandb.Settings(project="x" * 128, run_tags=("x" * 64,))
    for refused in ({"project": "a:b"}, {"project": "x" * 129}, {"run_tags": ("",)}, {"run_tags": ("x" * 65,)}):
        with pytest.raises(Exception, match=r"(?i)project|tag"):
            wandb.Settings(**refused)


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
        f"wandb, offline: view it with `wandb beta leet '{path}'`, upload it with `wandb sync '{path}'`"
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


def test_a_resumed_run_keeps_its_id_and_says_how_to_join_the_parts(tmp_path: Path, offline: Config) -> None:
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


def test_wandb_that_is_not_installed_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    from mnist_dist.tracking import wandb_tracker
    from mnist_dist.config.schema import Config, TrackingConfig
    from mnist_dist.utils.exit import exit_with
    from mnist_dist.tracking.tracker import open_tracker

    def row(step):
        return {"step": step, "epoch": 1, "time": 0.0, "train.loss": 0.5}

    def services():
        children = psutil.Process().children(recursive=True)
        return [child.name() for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def start(mode="offline", timeout=0.2):
        config = Config(tracking=TrackingConfig(mode=mode, timeout=timeout))
        return open_tracker(config, Path("run"), "run1234", False, lambda line: print("warned:", line), True)

    def end(tracker):
        tracker.finish({"test.accuracy": 1.0}, 0)
        print("timed out:", tracker.timed_out)
        print("children:", services())
        if tracker.timed_out:
            exit_with(lambda: 0)
"""


def run_script(script: str, folder: Path, **environment: str) -> list[str]:
    """The lines that a script prints in a process of its own, which must end well and say nothing else."""
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
def test_wandb_that_raises_is_said_once(tmp_path: Path, fake: str, error: str) -> None:
    script = """
        tracker = start(timeout=60)
        for step in range(100):
            tracker.log(row(step))
        end(tracker)
    """
    said = drive(script, tmp_path, fake or "nothing = True")
    assert said[0].startswith(f"warned: wandb failed ({error}")
    assert said[0].endswith(FAILS)
    assert said[1:] == ["timed out: False", "children: []"]


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
    said = drive(events + textwrap.dedent(script), tmp_path, fake)
    assert said == ["trained", HANGS, "timed out: True", "children: []"]


@pytest.mark.parametrize("take", ["log(row(step))", "log_media(step, 1, Media('val'))"], ids=["rows", "media"])
def test_what_wandb_does_not_take_is_not_hoarded(tmp_path: Path, take: str) -> None:
    script = f"""
        from mnist_dist.tracking.media import Media
        wandb_tracker.MAX_QUEUED{"" if "row" in take else "_MEDIA"} = 5
        tracker = start()
        for step in range(100):
            tracker.{take}
        print("waiting:", tracker._queue.qsize())
        end(tracker)
    """
    said = drive(script, tmp_path, "import threading\nthreading.Event().wait()")
    assert said == [
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


def test_a_service_that_is_killed_is_said_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    script = (
        "    tracker = start(timeout=60)" + WAIT_FOR_SERVICE + "    service.kill(); tracker.log(row(2)); end(tracker)"
    )
    said = drive(script, tmp_path)
    assert said[0].startswith("warned: wandb failed (")
    assert said[1:] == ["timed out: False", "children: []"]


def test_a_service_that_hangs_is_ended(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    script = "    tracker = start()" + WAIT_FOR_SERVICE + "    service.suspend(); tracker.log(row(2)); end(tracker)"
    assert drive(script, tmp_path) == [HANGS, "timed out: True", "children: []"]


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
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
    said = drive(script, tmp_path, TMPDIR=str(temporary))
    assert said[0].startswith(f"warned: wandb cannot write to run; it records in {temporary}/wandb/offline-run-")
    assert said[1:] == ["timed out: False", "children: []"]


@pytest.mark.parametrize("key", [KEY, "canary"], ids=["no server", "no key"])
def test_online_that_does_not_work_becomes_offline(tmp_path: Path, key: str) -> None:
    pytest.importorskip("wandb")
    script = """
        tracker = start("auto", timeout=10)
        tracker.log(row(1))
        end(tracker)
        print(tracker.view_hint)
    """
    said = drive(script, tmp_path, WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:1")
    assert said[0].startswith("warned: wandb cannot go online (")
    assert said[0].endswith("); this run is recorded offline")
    assert said[1:3] == ["timed out: False", "children: []"]
    assert "upload it with `wandb sync run/wandb/offline-run-" in said[3]
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-run1234.wandb")
    assert [items(each.history.item)["global_step"] for each in read_records(file) if each.HasField("history")] == [1]
    assert "canary" not in "".join(said)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes()


def test_tracking_imports_neither_torch_nor_wandb(tmp_path: Path) -> None:
    script = (
        "import sys, mnist_dist.tracking.tracker; print(sorted({'torch', 'wandb', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert run_script(script, tmp_path) == ["[]"]

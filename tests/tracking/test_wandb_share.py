"""What leaves this machine by choice: the console, the code, the machine's load; and that nothing else does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb_records import Recorded, read_run

import mnist_dist
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.console.console import Console, PlainConsole
from mnist_dist.console.tee import TeeConsole
from mnist_dist.tracking import wandb_tracker
from mnist_dist.tracking.tracker import open_tracker
from mnist_dist.tracking.wandb_auth import check_tracking
from mnist_dist.utils.errors import UserError

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key


def record(
    folder: Path, *share: str, console: Console | None = None, meanwhile: Callable[[], None] = lambda: None
) -> Recorded:
    """An offline run that shares these."""
    pytest.importorskip("wandb")
    tracking = TrackingConfig(mode="offline", timeout=100, share=share, group="g", job_type="j", notes="a note")  # type: ignore[arg-type]
    tracker = open_tracker(Config(tracking=tracking), folder, "run1234", False, pytest.fail, True)
    if isinstance(console, TeeConsole):
        console.copy_lines_to(tracker.write_logs)
        console.print("after")
    tracker.log({"step": 1, "epoch": 1, "time": 1000.0, "lr": 0.5})
    meanwhile()
    tracker.finish({}, 0)
    assert not tracker.timed_out
    (segment,) = (folder / "wandb").glob("offline-run-*")
    return read_run(segment)


@pytest.fixture(autouse=True)
def canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and a secret, in the environment and on the command line."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", KEY)
    monkeypatch.setattr(sys, "argv", ["train", f"--secret={KEY}"])


@pytest.mark.parametrize("share", [(), ("console",), ("code",), ("system",), ("console", "code", "system")])
def test_no_secret_is_in_any_file_and_nothing_is_printed(
    share: tuple[str, ...], tmp_path: Path, nobody: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = record(tmp_path, *share)
    assert recorded.environment is None  # host, command, versions, git
    files = [path for path in (*tmp_path.rglob("*"), *nobody.rglob("*")) if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in content
        assert sys.executable.encode() not in content
    assert capfd.readouterr() == ("", "")


def test_by_default_there_is_neither_code_nor_console_nor_load(tmp_path: Path) -> None:
    recorded = record(tmp_path)
    assert (recorded.artifacts, recorded.output, recorded.system) == ([], [], [])
    assert {path.name for path in recorded.folder.rglob("*") if path.is_file()} <= {
        *("run-run1234.wandb", "debug.log", "debug-internal.log", "debug-core.log")
    }


def test_code_is_this_packages_modules_alone(tmp_path: Path) -> None:
    recorded = record(tmp_path, "code")
    (artifact,) = recorded.artifacts
    assert (artifact.kind, artifact.name) == ("code", "source-mnist_dist")
    package = Path(mnist_dist.__file__).parent
    expected = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert set(artifact.files) == expected
    assert artifact.files["train.py"].read_bytes() == (package / "train.py").read_bytes()


def test_system_is_load_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    often = {"x_stats_sampling_interval": 0.1, "x_transaction_log_flush_interval": 0.1}
    monkeypatch.setattr(wandb_tracker, "SYSTEM_SETTINGS", wandb_tracker.SYSTEM_SETTINGS | often)

    def wait_for_load() -> None:
        deadline = time.monotonic() + 60
        while not any("cpu" in sample for file in tmp_path.rglob("*.wandb") for sample in read_run(file.parent).system):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    recorded = record(tmp_path, "system", meanwhile=wait_for_load)
    assert {"cpu", "memory_percent", "proc.memory.rssMB"} <= recorded.system[-1].keys()


class Screen(PlainConsole):
    """What the user sees."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")


def test_console_is_what_the_run_prints_from_its_first_line_on(tmp_path: Path) -> None:
    screen = Screen()
    console = TeeConsole(screen)
    console.header({"model": "cnn"})
    console.start_progress(10, 0, 1)
    console.warn("before wandb")
    recorded = record(tmp_path, "console", console=console)
    assert screen.lines == ["model: cnn", "warning: before wandb", "after"]
    assert "".join(recorded.output).splitlines() == screen.lines


def test_names_reach_wandb(tmp_path: Path) -> None:
    run = record(tmp_path).run
    assert (run.run_group, run.job_type, run.notes, run.host) == ("g", "j", "a note", "")


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        (TrackingConfig(group="x" * 129), r"^tracking.group=.*: must be 128 characters at most$"),
        (TrackingConfig(job_type="x" * 65), r"^tracking.job_type=.*: must be 64 characters at most$"),
        (
            TrackingConfig(entity="team/project"),
            r"^tracking.entity='team/project': must be a user's or a team's name alone",
        ),
        (
            TrackingConfig().model_copy(update={"project": "two\nlines"}),
            r"^tracking.project='two\\nlines': must be 1 to 128 characters",
        ),
    ],
)
def test_names_that_the_server_refuses_are_refused(tracking: TrackingConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_tracking(Config(tracking=tracking))
    longest = TrackingConfig(group="x" * 128, job_type="x" * 64, entity="x" * 128)
    longest = longest.model_copy(update={"notes": "two\nlines" * 1000})
    check_tracking(Config(tracking=longest))

"""Alerts in wandb: sent if they are asked for, at once, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from wandb_records import Recorded, read_run

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.tracker import NullTracker, open_tracker

EVENT = ("Straggler", "rank 1 takes 2.0 times as long as the others", "WARN")


def record(folder: Path, alerts: bool) -> Recorded:
    pytest.importorskip("wandb")
    tracking = TrackingConfig(mode="offline", timeout=100, alerts=alerts)
    tracker = open_tracker(Config(tracking=tracking), folder, "run1234", False, pytest.fail, True)
    tracker.alert("Straggler", EVENT[1])
    tracker.alert("Finished", "all done", "INFO")
    tracker.finish({}, 0)
    (segment,) = (folder / "wandb").glob("offline-run-*")
    return read_run(segment)


def test_alerts_are_recorded_offline_too(tmp_path: Path) -> None:
    assert record(tmp_path, True).alerts == [EVENT, ("Finished", "all done", "INFO")]


def test_none_are_sent_unless_asked_for(tmp_path: Path) -> None:
    assert record(tmp_path, False).alerts == []


def test_without_a_tracker_an_alert_does_nothing() -> None:
    NullTracker().alert(*EVENT)

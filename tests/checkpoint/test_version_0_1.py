"""Checkpoints of version 0.1, whose state.json has other names for the progress: read, verified and resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from programs import write_digits
from small_checkpoint import corruption, replace_file, saved, state_of

from mnist_dist.checkpoint.manager import load_verified, newest_verified, save_checkpoint
from mnist_dist.checkpoint.state import (
    LATER_PROGRESS_FIELDS,
    InitialWeights,
    TrainProgress,
    check_state,
    upgrade_state,
)
from mnist_dist.train import main
from mnist_dist.utils.errors import EXIT_DONE

OLD_NAMES = {"scaler_skips": "skipped", "nonfinite_skips": "left_out", "skip_batches": "avoided"}
PROGRESS = TrainProgress(
    step=7,
    scaler_skips=1,
    nonfinite_skips=2,
    rollbacks=3,
    skip_batches=[2, 5],
    epoch=1,
    step_in_epoch=3,
    evaluated=4,
    images=63,
    seconds=0.5,
    best={"step": 4, "accuracy": 0.5, "loss": 1.5},
)


def as_version_0_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same state under the names of version 0.1."""
    position = {OLD_NAMES.get(name, name): value for name, value in state["progress"].items()}
    return {"position" if key == "progress" else key: value for key, value in state.items()} | {"position": position}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace a checkpoint's state.json, and its entry in the manifest."""
    replace_file(folder, "state.json", json.dumps(state, indent=1).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of step 7 in a folder of its own."""
    return save_checkpoint(tmp_path / "checkpoints", 7, saved())


def test_its_progress_is_read_under_todays_names(folder: Path) -> None:
    new = state_of(7) | {"progress": vars(PROGRESS)}
    old = as_version_0_1(new)
    assert "progress" not in old
    assert {*OLD_NAMES.values()} < old["position"].keys()
    write_state(folder, old)
    assert corruption(folder) is None
    state = load_verified(folder).parse().state
    assert state == new
    assert TrainProgress(**state["progress"]) == PROGRESS


def test_todays_state_is_not_changed() -> None:
    assert upgrade_state(state_of(7)) == state_of(7)


def test_what_the_first_versions_did_not_write_has_its_default() -> None:
    state = state_of(7)
    del state["initial_weights"], state["norms"]
    state["progress"] = {k: v for k, v in state["progress"].items() if k not in LATER_PROGRESS_FIELDS}
    upgraded = upgrade_state(state)
    check_state(upgraded, 7)
    assert (upgraded["progress"]["stop_reason"], upgraded["progress"]["evaluations_since_best"]) == ("", 0)
    assert InitialWeights.from_json(upgraded["initial_weights"]) == InitialWeights()


OLD = as_version_0_1(state_of(7))
JUNK: dict[str, Any] = {
    "null": None,
    "a list": [1],
    "a text": "7",
    "empty": {},
    "a field less": {name: value for name, value in OLD["position"].items() if name != "left_out"},
    "a field more": OLD["position"] | {"code": 1},
    "both names of a field": OLD["position"] | {"scaler_skips": 0},
    "names of today": state_of(7)["progress"],
    "another step": OLD["position"] | {"step": 8},
    "a text for a number": OLD["position"] | {"skipped": "1"},
    "a number too small": OLD["position"] | {"left_out": -1},
    "more skips than steps": OLD["position"] | {"skipped": 8},
    "steps that are none": OLD["position"] | {"avoided": ["2"]},
}


@pytest.mark.parametrize("case", JUNK)
def test_junk_in_position_is_corrupt(folder: Path, case: str) -> None:
    write_state(folder, OLD | {"position": JUNK[case]})
    reason = corruption(folder)
    assert reason is not None
    assert reason.startswith("state.json: ")
    assert len(reason.splitlines()) == 1
    warnings: list[str] = []
    assert newest_verified(folder.parent, warnings.append) is None
    assert len(warnings) == 1


def test_position_beside_progress_is_corrupt(folder: Path) -> None:
    write_state(folder, state_of(7) | {"position": OLD["position"]})
    assert corruption(folder) == "state.json: the state holds 'position'"
    with pytest.raises(ValueError, match="the state holds 'position'"):
        check_state(OLD, 7)  # without `upgrade_state`


SETTINGS = ["--data.source=local", "--data.val_size=40", "--train.batch_size=40", "--train.epochs=2", "--run.dir=run"]
SETTINGS += ["--model.name=basic", "--tracking.mode=disabled", "--run.threads=1", "--run.device=cpu"]


def train(work: Path, *options: str) -> int:
    os.chdir(work)
    return main([f"--data.root={work}", *SETTINGS, *options])


def test_a_run_of_version_0_1_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    write_digits(tmp_path, train=360, test=50)
    summary, checkpoints = tmp_path / "run" / "summary.json", tmp_path / "run" / "checkpoints"
    assert run_ranks(1, train, tmp_path) == [EXIT_DONE]
    uninterrupted = json.loads(summary.read_text())
    shutil.rmtree(tmp_path / "run")

    assert run_ranks(1, train, tmp_path, "--train.max_steps=11") == [EXIT_DONE]
    (newest,) = checkpoints.glob("step-00000011")
    write_state(newest, as_version_0_1(json.loads((newest / "state.json").read_text())))
    assert run_ranks(1, train, tmp_path) == [EXIT_DONE]
    resumed = json.loads(summary.read_text())
    assert resumed["resumed_from"] == "run/checkpoints/step-00000011"
    same = ("weights_sha256", "train.steps", "train.images", "test.correct", "test.loss")
    assert [resumed[key] for key in same] == [uninterrupted[key] for key in same]

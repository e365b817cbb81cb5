"""Which folder a run may use: not one with something else in it, and not another run's id."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoint import saved

from mnist_dist.checkpoint.manager import save_checkpoint
from mnist_dist.checkpoint.run_dir import RunDir, open_run_dir
from mnist_dist.checkpoint.run_lock import RunLock
from mnist_dist.checkpoint.state import check_config_readable
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig, RunConfig, TrackingConfig
from mnist_dist.tracking.tracker import new_run_id
from mnist_dist.utils.errors import UserError


def opened(**run: str) -> RunDir:
    with RunLock() as lock:
        return open_run_dir(Config(run=RunConfig(**run)), [], lock, pytest.fail)


def add_run(folder: Path, step: int = 3) -> Path:
    """A run's folder with one checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    return save_checkpoint(folder / "checkpoints", step, saved(step=step))


# Folders


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds no run, but thesis\.tex; choose another --run\.dir, or use it all the"):
        opened(dir=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert opened(dir=str(tmp_path), resume="never").checkpoint is None


@pytest.mark.parametrize("names", [[], [".lock", ".snapshot"], ["lost+found"], ["metrics.jsonl", "notes.txt"]])
def test_an_empty_folder_and_that_of_a_run_are_used(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert opened(dir=str(tmp_path)).folder == tmp_path


def test_what_stands_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("gone")
    with pytest.raises(
        UserError, match=r"^run\.dir=runs/\S+: cannot be written \(runs is a link to gone, which does no"
    ):
        opened()
    Path("runs").unlink()
    Path("runs").touch()
    with pytest.raises(UserError, match=r"cannot be written \(runs is a file\); choose another --run\.dir$"):
        opened()
    with pytest.raises(
        UserError, match=r"^run\.dir=~nobodyxyz/a: no home folder for ~nobodyxyz; write the path in full"
    ):
        opened(dir="~nobodyxyz/a")


# Resuming


def test_the_folders_own_checkpoint_named_by_run_resume_is_its_own(tmp_path: Path) -> None:
    """Its rows and its id in the tracker stay."""
    own, other = add_run(tmp_path / "a"), add_run(tmp_path / "b", step=5)
    for resume in (own, tmp_path / "a"):
        found = opened(dir=str(tmp_path / "a"), resume=str(resume))
        assert found.checkpoint is not None
        assert (found.checkpoint.folder, found.same_run) == (own, True)
    with pytest.raises(
        UserError, match=r"has a checkpoint of its own, step-00000003; go on from that with --run\.resume"
    ):
        opened(dir=str(tmp_path / "a"), resume=str(other))


def test_last_is_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^run\.resume=last: no run in "):
        opened(resume="last")
    checkpoint = add_run(Path("runs/a"))
    found = opened(resume="last")
    assert found.checkpoint is not None
    assert (found.folder, found.checkpoint.folder, found.same_run) == (Path("runs/a"), checkpoint, True)
    found = opened(resume="last", dir="new")
    assert (found.folder, found.same_run) == (Path("new"), False)


# What could not be read back


@pytest.mark.parametrize("run_id", ["my.run 1", "x" * 65, "a/b"])
def test_a_run_id_that_no_checkpoint_could_hold_is_refused(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", run_id)
    with pytest.raises(
        UserError, match=r"^WANDB_RUN_ID='.*' \(environment\): must be 1 to 64 letters, digits, - and _;"
    ):
        new_run_id(Config(), tmp_path)


def test_a_run_id_that_another_run_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    config = Config(tracking=TrackingConfig(mode="offline"))
    (tmp_path / "a" / "wandb" / "offline-run-20260101_000000-mine").mkdir(parents=True)
    assert new_run_id(config, tmp_path / "a") == "mine"
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"^WANDB_RUN_ID=mine \(environment\): the run in \S+/a has this id; unset it"):
        new_run_id(config, tmp_path / "b")
    assert new_run_id(Config(tracking=TrackingConfig(mode="disabled")), tmp_path / "b") == "mine"


def test_settings_that_could_not_be_read_back_are_refused() -> None:
    check_config_readable(Config())
    with pytest.raises(UserError, match="could be read back"):
        check_config_readable(Config(data=DataConfig(root="x" * (1 << 21))))

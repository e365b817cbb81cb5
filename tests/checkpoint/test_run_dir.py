"""The run directory: created or reused, started over, and the checkpoint that a run resumes from."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_checkpoint import is_same, saved

from mnist_dist.checkpoint.manager import save_checkpoint
from mnist_dist.checkpoint.resume_checks import RESUME_OVERRIDABLE, check_resumable, warn_if_other_hardware
from mnist_dist.checkpoint.run_dir import (
    RunDir,
    delete_old_run,
    newest_run,
    open_run_dir,
    prepare_run_dir,
    read_summary,
    resolve_checkpoint,
    write_config,
    write_summary,
)
from mnist_dist.checkpoint.run_lock import RunLock
from mnist_dist.config.loader import dump, load
from mnist_dist.config.schema import FIELDS, Config
from mnist_dist.config.sections import DataConfig, OptimConfig, RunConfig, TrackingConfig, TrainConfig
from mnist_dist.utils.errors import TrainingError, UserError


def config(**run: Any) -> Config:
    return Config(run=RunConfig(**run))


def add_checkpoint(run: Path, step: int) -> Path:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    return save_checkpoint(run / "checkpoints", step, saved(step=step))


def open_and_start(
    config: Config,
    recipes: Sequence[str] = (),
    warn: Callable[[str], None] = pytest.fail,
    launcher: int = 0,
    restarts: int = 0,
    worker: int | None = None,
) -> RunDir:
    """Open and prepare a run directory, as a run does that then fails. The launcher is its own worker by default."""
    with RunLock(launcher, launcher if worker is None else worker, restarts, dump(config)) as lock:
        opened = open_run_dir(config, recipes, lock, warn)
        prepare_run_dir(opened, config, lock)
    return opened


def checkpoint_to_resume(config: Config, warn: Callable[[str], None] = pytest.fail) -> Path | None:
    """The folder of the checkpoint that a run would resume from."""
    with RunLock(0) as lock:
        found = open_run_dir(config, [], lock, warn).checkpoint
    return found.folder if found else None


# The folder


def test_without_a_name_each_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [open_and_start(config(), recipes).folder for recipes in ([], ["debug", "fast"], ["debug", "fast"], [])]
    assert len(set(folders)) == 4
    assert sorted(Path("runs").iterdir()) == sorted(folders)
    assert re.fullmatch(r"runs/default-\d{8}-\d{6}", str(folders[0]))
    assert re.fullmatch(r"runs/debug-fast-\d{8}-\d{6}", str(folders[1]))
    assert all((folder / "checkpoints").is_dir() for folder in folders)


def test_a_named_folder_is_created_or_reused_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "b"
    assert open_and_start(config(dir=str(path)), ["debug"]) == RunDir(path, None, same_run=False)
    (path / "metrics.jsonl").write_text("{}\n")
    kept = add_checkpoint(path, 3)
    again = open_and_start(config(dir=str(path)), ["debug"])
    assert (again.folder, again.same_run) == (path, True)
    assert (path / "metrics.jsonl").exists()
    assert kept.exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_and_start(config(dir="~/c")).folder == tmp_path / "c"


def test_starting_over_deletes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    old = add_checkpoint(tmp_path, 3)
    for left in (".writing-step-00000004", ".replaced-step-00000002", ".replaced-step-00000003", ".deleting-step-1"):
        (tmp_path / "checkpoints" / left).mkdir()
    for name in ("metrics.jsonl", "status.json", "summary.json", "config.yaml", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert open_and_start(config(dir=str(tmp_path), resume="never")).checkpoint is None
    assert not old.exists()
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "config.yaml", "notes.txt"]
    assert os.listdir(tmp_path / "checkpoints") == []


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "above" / ("x" * 300)):
        with pytest.raises(UserError) as error:
            open_and_start(config(dir=str(path)))
        assert re.fullmatch(rf"run\.dir={path}: cannot be written \(.+\); choose another --run\.dir", str(error.value))
    assert os.listdir(tmp_path) == ["file"]


# The checkpoint to resume from


def test_auto_resumes_from_the_newest_checkpoint_of_its_own_folder(tmp_path: Path) -> None:
    auto = config(dir=str(tmp_path))
    assert checkpoint_to_resume(auto) is None
    first, second = add_checkpoint(tmp_path, 3), add_checkpoint(tmp_path, 5)
    assert checkpoint_to_resume(auto) == second
    (second / "state.json").unlink()
    warnings: list[str] = []
    assert checkpoint_to_resume(auto, warnings.append) == first
    assert len(warnings) == 1


def test_the_verified_bytes_are_what_is_loaded(tmp_path: Path) -> None:
    """Even if the files change after they were verified."""
    path = add_checkpoint(tmp_path, 3)
    opened = open_and_start(config(dir=str(tmp_path)))
    for file in path.iterdir():
        file.write_bytes(b"changed")
    found = opened.load()
    assert found is not None
    assert is_same(found, saved(step=3))


def test_a_checkpoint_moved_aside_for_a_new_one_that_is_not_there_is_resumed(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 3)
    path = add_checkpoint(tmp_path, 5)
    path.rename(path.with_name(f".replaced-{path.name}"))
    assert checkpoint_to_resume(config(dir=str(tmp_path))) == path


def test_a_new_folder_or_never_starts_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    add_checkpoint(tmp_path, 3)  # run.dir="" means a new folder, not this one
    assert checkpoint_to_resume(config()) is None
    assert checkpoint_to_resume(config(dir=str(tmp_path), resume="never")) is None


def test_starting_over_leaves_nothing_of_the_earlier_run(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 3)
    for name in ("metrics.jsonl", "status.json", "summary.json", "profile/rank0.json", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    delete_old_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "notes.txt"}
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_path_names_a_checkpoint_or_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = add_checkpoint(tmp_path / "run", 3), add_checkpoint(tmp_path / "run", 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, expected in ((older, older), (tmp_path / "run", newer), (Path("~/run"), newer)):
        assert checkpoint_to_resume(config(dir=str(tmp_path / "other"), resume=str(path))) == expected
    (older / "state.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"^checkpoint {older}: state\.json: 2 bytes instead of \d+; choose another one$"
    ):
        checkpoint_to_resume(config(dir=str(tmp_path / "other"), resume=str(older)))
    assert not (tmp_path / "other").exists()


# Processes that a launcher restarts


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("named", [True, False])
def test_restarted_processes_resume_their_own_run(
    named: bool, resume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config(dir="mine" if named else "", resume=resume)
    open_and_start(config(), ["other"], launcher=os.getpid())  # another run, under another launcher
    first = open_and_start(settings, launcher=os.getppid())
    assert open_and_start(settings, launcher=os.getppid(), restarts=1) == RunDir(first.folder, None, same_run=False)
    path = add_checkpoint(first.folder, 3)
    (first.folder / "metrics.jsonl").write_text("{}\n")
    again = open_and_start(settings, launcher=os.getppid(), restarts=2)
    assert again.checkpoint is not None
    assert (again.folder, again.checkpoint.folder, again.same_run) == (first.folder, path, True)
    assert (first.folder / "metrics.jsonl").exists()


def test_another_worker_of_the_same_launcher_is_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When machines join or leave, torchrun restarts its processes and counts no restart."""
    monkeypatch.chdir(tmp_path)
    first = open_and_start(config(), launcher=os.getppid(), worker=1)
    path = add_checkpoint(first.folder, 3)
    again = open_and_start(config(), launcher=os.getppid(), worker=os.getpid())
    assert again.checkpoint is not None
    assert (again.folder, again.checkpoint.folder, again.same_run) == (first.folder, path, True)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_second_run_under_the_same_launcher_gets_its_own_folder(
    resume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook, or a script under `accelerate launch --no_python`, trains several runs: same settings or others."""
    monkeypatch.chdir(tmp_path)
    first = open_and_start(config(seed=1, resume=resume), launcher=os.getppid())
    add_checkpoint(first.folder, 3)
    again = open_and_start(config(seed=1, resume=resume), launcher=os.getppid())
    second = open_and_start(config(seed=2, resume=resume), launcher=os.getppid())
    restarted = open_and_start(config(seed=2, resume=resume), launcher=os.getppid(), restarts=1)
    assert len({first.folder, again.folder, second.folder}) == 3
    assert restarted.folder == second.folder
    assert [run.checkpoint for run in (again, second, restarted)] == [None] * 3
    assert len(list((first.folder / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("launcher", [0, os.getpid()], ids=["none", "another"])
def test_resume_never_applies_to_every_first_start(launcher: int, tmp_path: Path) -> None:
    """Of an earlier run without a launcher, or under another one, nothing is resumed."""
    open_and_start(config(dir=str(tmp_path)), launcher=os.getppid())
    path = add_checkpoint(tmp_path, 3)
    assert open_and_start(config(dir=str(tmp_path), resume="never"), launcher=launcher).checkpoint is None
    assert not path.exists()


@pytest.mark.parametrize("killed", [True, False])
def test_a_start_that_failed_before_the_run_started_does_not_count(killed: bool, tmp_path: Path) -> None:
    """It was refused or killed before it deleted the earlier run, so the next start must delete it."""
    add_checkpoint(tmp_path, 3)
    settings = config(dir=str(tmp_path), resume="never")
    with RunLock(os.getppid()) as lock:
        open_run_dir(settings, [], lock, pytest.fail)
        said = (tmp_path / ".lock").read_bytes()
    assert not (tmp_path / ".lock").exists()
    if killed:
        (tmp_path / ".lock").write_bytes(said)
    assert open_and_start(settings, launcher=os.getppid()).checkpoint is None


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        resolve_checkpoint(tmp_path / name, pytest.fail)
    what = {
        "absent": "no such folder; give auto, never, last, a checkpoint or a run directory",
        "file": "holds no whole checkpoint; give a checkpoint's folder or a run directory",
        "empty": "holds no whole checkpoint; give a checkpoint's folder or a run directory",
    }
    assert str(error.value) == f"run.resume={tmp_path / name}: {what[name]}"


# The same run


def test_settings_that_change_what_is_computed_may_not_change(tmp_path: Path) -> None:
    saved = Config().to_dict()
    check_resumable(Config(), json.loads(json.dumps(saved)), tmp_path)
    other = Config(optim=OptimConfig(lr=0.5), train=TrainConfig(epochs=9), run=RunConfig(seed=3))
    with pytest.raises(UserError) as error:
        check_resumable(other, saved, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: was written with other settings: run.seed=3 (was 0), optim.lr=0.5 (was 0.003), "
        f"train.epochs=9 (was {Config().train.epochs}); give the same, or start anew in another --run.dir"
    )


def test_more_epochs_are_allowed_where_the_learning_rates_do_not_depend_on_them(tmp_path: Path) -> None:
    def trained(epochs: int, **optim: Any) -> Config:
        return Config(optim=OptimConfig(**optim), train=TrainConfig(epochs=epochs))

    constant = {"schedule": "constant", "warmup": 0.0}
    check_resumable(trained(9, **constant), trained(2, **constant).to_dict(), tmp_path)
    for optim in ({}, {"schedule": "constant"}, {"schedule": "linear", "warmup": 0.0}):
        with pytest.raises(UserError, match=rf"train\.epochs=9 \(was 2\), which .* --model\.init_from={tmp_path} "):
            check_resumable(trained(9, **optim), trained(2, **optim).to_dict(), tmp_path)
    for epochs, optim in ((1, constant), (9, {**constant, "lr": 0.5})):
        with pytest.raises(UserError, match="give the same"):
            check_resumable(trained(epochs, **optim), trained(2, **constant).to_dict(), tmp_path)


def test_of_many_differences_the_first_are_named(tmp_path: Path) -> None:
    other = Config(data=DataConfig(val_size=1, limit=1, test_limit=1, mean=1.0, std=1.0))
    with pytest.raises(UserError, match=r"data\.mean=1\.0 \(was 0\.1307\) \.\.\.; give") as error:
        check_resumable(other, Config().to_dict(), tmp_path)
    assert "data.std" not in str(error.value)


def test_settings_that_a_checkpoint_does_not_know_had_their_defaults(tmp_path: Path) -> None:
    """A checkpoint of another version, and one with an empty configuration."""
    saved = Config().to_dict()
    del saved["optim"]["clip"]
    check_resumable(Config(), saved, tmp_path)
    with pytest.raises(UserError, match=r"optim\.clip=1\.0 \(was 0\.0\)"):
        check_resumable(Config(optim=OptimConfig(clip=1.0)), saved, tmp_path)
    with pytest.raises(UserError, match=r"run\.seed=3 \(was 0\)"):
        check_resumable(Config(run=RunConfig(seed=3)), {}, tmp_path)


def test_settings_that_change_nothing_may_change(tmp_path: Path) -> None:
    assert set(FIELDS) >= RESUME_OVERRIDABLE
    other = Config(
        run=RunConfig(dir="x", resume="y", device="cpu", threads=3, timeout=5.0, quiet=True),
        data=DataConfig(root="x", source="npm", classes=tuple("abcdefghij")),
        train=TrainConfig(
            max_steps=3,
            eval_batch_size=7,
            checkpoint_steps=2,
            keep=9,
            patience=2,
            target_accuracy=0.5,
            max_minutes=1.0,
        ),
        tracking=TrackingConfig(mode="disabled", project="p", log_steps=3),
    )
    check_resumable(other, Config().to_dict(), tmp_path)


# What is written


def test_config_yaml_starts_the_same_run(tmp_path: Path) -> None:
    mine = Config(optim=OptimConfig(lr=1e-5), data=DataConfig(classes=("a: b", *"1234567", "ü", "#")))
    write_config(tmp_path, mine)
    assert load(["--config", str(tmp_path / "config.yaml")]).config == mine
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    write_summary(tmp_path, {"test.loss": math.nan, "a": math.inf, "test.accuracy": 0.5, "resumed_from": None})
    assert read_summary(tmp_path) == {"test.loss": None, "a": None, "test.accuracy": 0.5, "resumed_from": None}
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_summary_that_is_none_is_no_summary(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_bytes(content.encode("latin-1"))
    assert read_summary(tmp_path) is None


def test_a_folder_that_is_gone_is_one_line_for_all_processes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        write_summary(tmp_path / "gone", {})
    assert str(error.value) == f"{tmp_path / 'gone' / 'summary.json'}: cannot be written (No such file or directory)"
    assert error.value.everywhere


def test_resuming_with_other_kernels_is_a_warning() -> None:
    said: list[str] = []
    here = {"torch": "2.15", "kernels": "x86_64 cpu AVX512"}
    warn_if_other_hardware(here, here, said.append)
    assert said == []
    warn_if_other_hardware({"torch": "2.14", "kernels": "x86_64 cpu AVX512"}, here, said.append)
    warn_if_other_hardware({}, here, said.append)
    assert said[0].startswith("this run resumes with torch 2.15 instead of 2.14: its weights may differ")
    assert "kernels x86_64 cpu AVX512 instead of None" in said[1]


def test_the_newest_run_is_the_one_that_was_started_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^last: no run in {tmp_path}/runs; give the folder of a run$"):
        newest_run(tmp_path / "runs")
    for name, seconds in (("z", 100), ("a", 300), ("m", 200)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        write_config(run, Config())
        os.utime(run / "config.yaml", (seconds, seconds))
    (tmp_path / "runs" / "no_run").mkdir()  # later than all, but a folder of something else
    (tmp_path / "runs" / "file").write_text("")
    assert newest_run(tmp_path / "runs") == tmp_path / "runs" / "a"
    write_config(tmp_path / "runs" / "z", Config())  # resumed
    assert newest_run(tmp_path / "runs") == tmp_path / "runs" / "z"

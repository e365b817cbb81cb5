"""What users gave to wandb itself, in variables and settings files: read as wandb reads it, and it reaches the run."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from harness import run_ranks
from programs import write_digits
from wandb_records import Recorded, read_run

from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.media import Example, Media
from mnist_dist.tracking.tracker import open_tracker
from mnist_dist.tracking.wandb_auth import (
    WANDB_HOSTS,
    check_tracking,
    describe_tracking,
    find_key,
    tracking_mode,
    wandb_address,
)
from mnist_dist.tracking.wandb_service import temporary_folders
from mnist_dist.tracking.wandb_settings import read_files, read_setting
from mnist_dist.train import main
from mnist_dist.utils.errors import UserError

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key
NAMED = {
    "WANDB_PROJECT": "digits",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "my name",
    "WANDB_TAGS": "a,b",
    "WANDB_RUN_GROUP": "g",
    "WANDB_NOTES": "why",
    "WANDB_JOB_TYPE": "j",
}


@pytest.fixture(autouse=True)
def work(nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a home without settings files."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def write_settings(where: str, **settings: str) -> None:
    """Write wandb's settings file of the `user`, of the `folder`, or of a folder with `.wandb`."""
    path = {"user": Path.home() / ".config" / "wandb", "folder": Path("wandb"), "dot": Path(".wandb")}[where]
    path.mkdir(parents=True, exist_ok=True)
    (path / "settings").write_text("[default]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))


def read_by_wandb() -> Any:
    """The settings as wandb reads them."""
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings()
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings.settings_system = str(folder / "settings")
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    return settings


# As wandb reads it


@pytest.mark.parametrize("environment", [{}, {"WANDB_MODE": "online"}, {"WANDB_CONFIG_DIR": "elsewhere"}])
@pytest.mark.parametrize("folder", ["", "folder", "dot"])
@pytest.mark.parametrize("user", ["", "disabled"])
def test_modes_and_servers_have_the_precedence_of_wandb(
    user: str, folder: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if user:
        write_settings("user", mode=user, base_url="http://user.example", project="of-the-user")
    if folder:
        write_settings(folder, mode="offline", entity="team")
    wandbs = read_by_wandb()
    assert tracking_mode(TrackingConfig())[0] == wandbs.mode
    servers = {wandb_address(), wandbs.base_url}
    assert len(servers) == 1 or {urlsplit(server).netloc for server in servers} == WANDB_HOSTS  # both names of one
    for key in ("project", "entity"):
        assert (read_setting(key, f"WANDB_{key.upper()}")[0] or None) == getattr(wandbs, key)
    assert tracking_mode(TrackingConfig(mode="online"))[0] == "online"  # the run's own setting goes first


def test_labels_are_wandbs_and_the_runs_own_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings("folder", project="of-the-folder", run_group="of-the-folder")
    assert describe_tracking(Config()).endswith(
        "; project of-the-folder by wandb/settings, group of-the-folder by wandb/settings"
    )
    for name, value in NAMED.items():
        monkeypatch.setenv(name, value)
    wandbs = read_by_wandb()
    assert (wandbs.project, wandbs.run_group, wandbs.run_tags) == ("digits", "g", ("a", "b"))
    assert describe_tracking(load(["--tracking.group=mine", "--tracking.notes=why"]).config) == (
        "wandb offline (no key; `wandb login` adds one); project digits by WANDB_PROJECT, entity team by WANDB_ENTITY,"
        " job_type j by WANDB_JOB_TYPE, tags a,b by WANDB_TAGS, name my name by WANDB_NAME, tracking.group over"
        " WANDB_RUN_GROUP"
    )


def test_a_key_of_a_settings_file_is_found() -> None:
    write_settings("folder", api_key=KEY)
    assert find_key() == (KEY, "wandb/settings")
    assert read_by_wandb().api_key == KEY


@pytest.mark.parametrize("content", [b"\xff[", b"mode = offline\n", b"[default]\n= x\n"])
def test_a_settings_file_that_cannot_be_read_counts_as_empty(content: bytes) -> None:
    write_settings("folder")
    Path("wandb", "settings").write_bytes(content)
    assert read_files() == {}


# Words that mean nothing


@pytest.mark.parametrize(
    ("environment", "mode", "told"),
    [
        ({"WANDB_DISABLED": "true"}, "", "wandb disabled (WANDB_DISABLED=true)"),
        ({"WANDB_DISABLED": "True", "WANDB_MODE": "online"}, "", "wandb disabled (WANDB_DISABLED=True)"),
        ({"WANDB_DISABLED": "false"}, "", "wandb online (a key is configured)"),
        ({"WANDB_DISABLED": "", "WANDB_MODE": ""}, "", "wandb online (a key is configured)"),
        ({"WANDB_MODE": ""}, "offline", "wandb offline (mode=offline in wandb/settings)"),
        ({"WANDB_MODE": "dryrun"}, "online", "wandb offline (WANDB_MODE=dryrun)"),
    ],
)
def test_an_empty_variable_is_none_and_disabled_is_honoured(
    environment: dict[str, str], mode: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if mode:
        write_settings("folder", mode=mode)
    assert describe_tracking(Config()) == told
    assert tracking_mode(TrackingConfig(mode="online"))[0] == "online"


@pytest.mark.parametrize(
    ("environment", "mode", "error"),
    [
        ({"WANDB_DISABLED": "perhaps"}, "", r"WANDB_DISABLED=perhaps \(environment\): must be true or false"),
        ({}, "never", r"mode=never \(wandb/settings\): must be online, offline or disabled"),
        ({"WANDB_PROJECT": "a:b"}, "", r"WANDB_PROJECT='a:b': must be 1 to 128 characters, none of them .*"),
        ({"WANDB_TAGS": "a,,b"}, "", r"WANDB_TAGS: '' must be 1 to 64 characters"),
        ({"WANDB_JOB_TYPE": "x" * 65}, "", r"WANDB_JOB_TYPE='x*': must be 64 characters at most"),
    ],
)
def test_what_wandb_would_refuse_is_an_error_that_names_its_source(
    environment: dict[str, str], mode: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if mode:
        write_settings("folder", mode=mode)
    with pytest.raises(UserError, match=f"^{error}$"):
        check_tracking(Config())


def train_where_rank_0_differs(data: str, variable: str, value: str) -> tuple[int, str]:
    """The exit code and the errors of a run on two machines, on the first of which a variable is set."""
    if os.environ["RANK"] == "0":
        os.environ[variable] = value
    small = ("--data.val_size=2", "--train.batch_size=2", "--train.max_steps=1", "--run.timeout=10")
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main([f"--data.root={data}", "--data.source=local", "--run.device=cpu", "--run.dir=run", *small])
    return code, errors.getvalue()


def test_what_rank_0_alone_is_told_is_refused_by_all_machines(work: Path) -> None:
    write_digits(work, train=10, test=10)
    error = "mnist_dist: error: WANDB_MODE=sometimes (environment): must be online, offline or disabled\n"
    ended = run_ranks(2, train_where_rank_0_differs, str(work), "WANDB_MODE", "sometimes", machines=2)
    assert ended == [(2, error)] * 2
    assert not Path("run", "config.yaml").exists()


# What reaches the run


def record(folder: Path, warnings: list[str], *media: Media) -> Recorded:
    """An offline run of one row, in a folder."""
    pytest.importorskip("wandb")
    config = Config(tracking=TrackingConfig(mode="offline", timeout=100))
    tracker = open_tracker(config, folder / "run", "run1234", False, warnings.append, True)
    tracker.log({"step": 1, "epoch": 1, "time": 1000.0, "lr": 0.5})
    for each in media:
        tracker.log_media(1, 1, each)
    tracker.finish({}, 0)
    (segment,) = folder.glob("**/offline-run-*")
    return read_run(segment)


def test_labels_reach_wandb_beside_empty_variables_and_a_stale_service(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_settings("folder", mode="disabled", project="another")
    stale = {"WANDB_SERVICE": f"3-1-unix-{work}/gone", "WANDB_MODE": "", "WANDB_RESUME": "", "WANDB_DIR": "elsewhere"}
    for name, value in (NAMED | stale).items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    recorded = record(work, warnings)
    assert warnings == [
        f"WANDB_SERVICE={stale['WANDB_SERVICE']} (environment) does not answer; wandb started a service of its own"
    ]
    assert recorded.folder.parent == work / "elsewhere" / "wandb"
    run = recorded.run
    assert (run.project, run.entity, run.display_name, run.run_group) == ("digits", "team", "my name", "g")
    assert (list(run.tags), run.notes, run.job_type) == (["a", "b"], "why", "j")
    assert recorded.logged("lr") == [(1, 0.5)]
    assert capfd.readouterr() == ("", "")
    assert os.environ["WANDB_MODE"] == ""  # as it was


@pytest.mark.parametrize("home", ["none", "no access"])
def test_a_user_without_a_home_has_a_recording_and_leaves_no_temporary_file(
    home: str, work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(user: int) -> Any:
        raise KeyError(user)

    temporary = work.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    if home == "none":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(pwd, "getpwuid", unknown)
        assert describe_tracking(Config()).endswith("; no home folder: wandb keeps all its files in the run's folder")
    else:
        monkeypatch.setenv("HOME", "/proc/1/none")
    example = Example(0, np.zeros((28, 28), np.uint8), 1, 2, (0.1,) * 10, 0.5)
    warnings: list[str] = []
    recorded = record(work, warnings, Media("val", mistakes=(example,)))
    assert warnings == []
    assert recorded.tables_with_images("mistakes")
    assert capfd.readouterr() == ("", "")
    assert os.environ.get("HOME") == (None if home == "none" else "/proc/1/none")
    assert not list(temporary.iterdir())
    assert not any(Path(folder.name).exists() for folder in temporary_folders(pytest.importorskip("wandb")))

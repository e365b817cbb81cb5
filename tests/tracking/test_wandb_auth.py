"""Where a run is recorded, decided without wandb: mode, key and server, refused settings, and the key check."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from wandb_server import Fault, WandbServer

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.wandb_auth import WANDB_KEY, check_tracking, describe_tracking, refuses_key, tracking_mode
from mnist_dist.train import main
from mnist_dist.utils.errors import UserError

KEY = "canary0123456789" * 3  # long enough for wandb to take it for a key


@pytest.fixture(autouse=True)
def nobody(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without keys and an environment without wandb's variables; no test reaches the network."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A wandb server that the environment names. It must have an answer to every request."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        assert server.unknown == set()


# The mode


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


# The settings that wandb refuses


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


# The key check


@pytest.mark.parametrize("key", ["canary", f"{KEY}\n", f"{KEY} ", "local-short"])
def test_a_key_that_is_none_is_refused_without_a_network(
    key: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert main(["--tracking.mode=auto"]) == 2
    assert capsys.readouterr().err == (
        "mnist_dist: error: WANDB_API_KEY (environment): not a wandb key, which has 40 or more letters, digits, _ and"
        " -, and no space or line break; correct it, run `wandb login --relogin`, or go offline by"
        " --tracking.mode=offline\n"
    )
    assert server.requests == []


@pytest.mark.parametrize(
    "key", [KEY, f"local-{KEY}", "a.b-c.d_e", "x" * 39, "x" * 40, f"{'x' * 50}-a", "", "é" * 40, "a b"]
)
def test_wandb_refuses_and_takes_the_same_keys(key: str) -> None:
    from wandb.sdk.lib.wbauth.validation import check_api_key

    assert (WANDB_KEY.fullmatch(key) is None) == (check_api_key(key) is not None)


@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=403), Fault(status=302), Fault("drop")],
    ids=lambda fault: str(fault.status),
)
def test_only_a_clear_answer_is_a_refusal(server: WandbServer, fault: Fault) -> None:
    assert not refuses_key(server.url, KEY)
    server.fault = fault
    assert not refuses_key(server.url, KEY)
    server.fault = Fault(status=401)
    assert refuses_key(server.url, KEY)
    server.go_away()
    assert not refuses_key(server.url, KEY)
    assert not refuses_key("http://[", KEY)


def test_the_key_stays_with_its_server(server: WandbServer) -> None:
    class Redirect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{server.url}/healthz")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Redirect) as other:
        thread = threading.Thread(target=other.handle_request, daemon=True)
        thread.start()
        assert not refuses_key(f"http://127.0.0.1:{other.server_port}", KEY)
        thread.join()
    assert [request.split()[:2] for request in server.requests] == [["GET", "/healthz"]]
    assert server.keys == set()

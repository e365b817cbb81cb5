"""Whether wandb's server takes the key: asked as the program starts, and never waited for.

The answer comes while torch is imported, so that a wrong key is said before training starts. One that comes later is
left to the tracker, which goes offline too: what the network does never decides whether a run trains, nor when it
starts.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import json
import netrc
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from mnist_dist.config.schema import Config, TrackingConfig
from mnist_dist.utils.errors import UserError

ANSWER_SECONDS = 10.0


class WandbKeyCheck:
    """Asks on a thread of its own, if wandb is to be online by a key."""

    def __init__(self, config: Config) -> None:
        self.refused = ""
        """Who refused which key; empty as long as nobody did."""
        key, where = find_key()
        self._thread = threading.Thread(target=self._ask, args=(key, where), name="wandb key", daemon=True)
        if key and tracking_mode(config.tracking)[0] == "online":
            self._thread.start()

    def settle(self, config: Config, warn: Callable[[str], None]) -> Config:
        """The configuration by which to record: offline where the key is known to be refused, which is said."""
        if not self.refused:
            return config
        warn(f"{self.refused}; this run is recorded offline, and `wandb login --relogin` takes another key")
        return config.model_copy(update={"tracking": config.tracking.model_copy(update={"mode": "offline"})})

    def _ask(self, key: str, where: str) -> None:
        if refuses_key(wandb_address(), key):
            self.refused = f"{wandb_address()} does not take the wandb key of {where}"


def refuses_key(address: str, key: str) -> bool:
    """Whether a wandb server says that it does not know this key. No answer, or any other, is no refusal."""
    import urllib.error
    import urllib.request

    try:
        question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
        request = urllib.request.Request(f"{address}/graphql", question)
        request.add_header("Content-Type", "application/json")
        # Not passed on where the server sends us elsewhere
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)["data"]["viewer"] is None
    except urllib.error.HTTPError as error:
        return error.code == 401
    except Exception:  # no server, no JSON, not wandb's
        return False


WANDB_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


# A key as wandb checks it without a network
WANDB_KEY = re.compile(r"[^-]*-[\w-]{40,}|\w{40,}|[\w-]+\.[\w-]+\.[\w-]+")


NAME = "1 to 128 characters, none of them / \\ # ? % :"  # what is part of addresses may be


WANDB_SERVERS = {"api.wandb.ai", "api.forge.coreweave.com"}  # wandb's own; newer releases use the second name


def check_tracking(config: Config) -> None:
    """Check what wandb or its server would refuse, before training and without wandb or a network.

    Raises:
        UserError: a name or a key that wandb does not take, or online without a key.
    """
    tracking = config.tracking
    if not is_name(tracking.project):
        raise UserError(f"tracking.project={tracking.project!r}: must be {NAME}")
    if tracking.entity and not is_name(tracking.entity):
        raise UserError(f"tracking.entity={tracking.entity!r}: must be a user's or a team's name alone, {NAME}")
    for tag in tracking.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(f"tracking.tags: {tag!r} must be 1 to 64 characters")
    for key, most in (("group", 128), ("job_type", 64)):  # the server's limits: too late when it is asked
        if len(getattr(tracking, key)) > most:
            raise UserError(f"tracking.{key}={getattr(tracking, key)!r}: must be {most} characters at most")
    key, where = find_key()
    if tracking_mode(tracking)[0] == "online" and key and not WANDB_KEY.fullmatch(key):
        raise UserError(
            f"{where}: is no wandb key (40 or more letters, digits, _ and -, no space or line end);"
            " mend it, run `wandb login --relogin`, or go offline by --tracking.mode=offline"
        )


def is_name(name: str) -> bool:
    """Whether wandb takes this name of a project, a user or a team."""
    return 1 <= len(name) <= 128 and name.isprintable() and not set(name) & set("/\\#?%:")


def describe_tracking(config: Config) -> str:
    """Where wandb records and why, for the console."""
    mode, reason = tracking_mode(config.tracking)
    return f"wandb {mode} ({reason})"


def tracking_mode(tracking: TrackingConfig) -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and why. Never leads to a prompt: online needs a key that is there already.

    Raises:
        UserError: online was asked for, but there is no key; or WANDB_MODE makes no sense.
    """
    mode: str = tracking.mode
    reason = f"tracking.mode={mode}"
    asked = os.environ.get("WANDB_MODE", "")
    if mode == "auto" and not asked:
        return ("online", "a key is configured") if has_key() else ("offline", "no key; `wandb login` adds one")
    if mode == "auto":
        if asked not in WANDB_MODES:
            raise UserError(f"WANDB_MODE={asked} (environment): must be online, offline or disabled")
        mode, reason = WANDB_MODES[asked], f"WANDB_MODE={asked}"
    if mode == "online" and not has_key():
        raise UserError(f"{reason}: no wandb key is configured; set WANDB_API_KEY, run `wandb login`, or go offline")
    return mode, reason


def has_key() -> bool:
    """Whether wandb would find a key for its server, or a token that it exchanges for one."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or find_key()[0])


def find_key() -> tuple[str, str]:
    """The key that wandb would find for its server, and where: in the environment or in netrc. Empty: none."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key, "WANDB_API_KEY (environment)"
    servers = {server} if (server := wandb_server()) else WANDB_SERVERS
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):
            hosts = netrc.netrc(str(Path(path).expanduser())).hosts
            return next(((key, path) for host, (_, _, key) in hosts.items() if host in servers and key), ("", ""))
    return "", ""


def wandb_server() -> str:
    """The host of wandb's server, with its port; empty for wandb's own."""
    address = wandb_address()
    with contextlib.suppress(ValueError):
        return "" if urlsplit(address).netloc in WANDB_SERVERS else urlsplit(address).netloc
    return address  # no address at all: no key is for it


def wandb_address() -> str:
    """The address of the wandb server that the environment or wandb's settings file names, or of wandb's own."""
    url = os.environ.get("WANDB_BASE_URL", "")
    if not url:
        file = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, ValueError, RuntimeError):
            file.read(Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings")
            url = file.get("default", "base_url", fallback="")
    return url.rstrip("/") or "https://api.wandb.ai"

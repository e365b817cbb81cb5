"""Whether a run records in wandb online, offline or not at all: the mode, the key and its server, and the key check.

All of it is needed before torch is imported, and without importing wandb, which takes about a second, may prompt for a
key, and may be absent or broken. So wandb's rules are repeated here; tests compare them with wandb's own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import netrc
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.backend import check_packages
from mnist_dist.tracking.wandb_settings import describe_labels, has_home, read_setting, requested_mode, resolve_labels
from mnist_dist.utils.errors import UserError

# The hosts of wandb's own server; newer releases of wandb use the second one.
WANDB_HOSTS = {"api.wandb.ai", "api.forge.coreweave.com"}
# wandb's own rule of what can be a key.
WANDB_KEY = re.compile(r"[^-]*-[\w-]{40,}|\w{40,}|[\w-]+\.[\w-]+\.[\w-]+")
VALID_NAME = "1 to 128 characters, none of them / \\ # ? % :"
ANSWER_SECONDS = 10.0


# The mode


def tracking_mode(tracking: TrackingConfig) -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and the reason. wandb never prompts: online needs a key that is configured.

    Raises:
        UserError: online without a key, or a mode that was given to wandb itself has an unknown value.
    """
    mode: str = tracking.mode
    reason = f"tracking.mode={mode}"
    if mode == "auto":
        mode, reason = requested_mode()
        if not mode:
            return ("online", "a key is configured") if has_key() else ("offline", "no key; `wandb login` adds one")
    if mode == "online" and not has_key():
        raise UserError(f"{reason}: no wandb key is configured; set WANDB_API_KEY, run `wandb login`, or go offline")
    return mode, reason


def describe_tracking(config: Config) -> str:
    """The mode and its reason, and what else is taken from wandb's environment and files, for the console."""
    mode, reason = tracking_mode(config.tracking)
    told = f"wandb {mode} ({reason})"
    if config.tracking.also:
        told += f", {', '.join(dict.fromkeys(config.tracking.also))}"
    if mode == "disabled":
        return told
    homeless = "" if has_home() else "no home folder: wandb keeps all its files in the run's folder"
    return "; ".join(filter(None, (told, describe_labels(resolve_labels(config.tracking)), homeless)))


def check_tracking(config: Config) -> None:
    """Check the tracking settings as wandb and its server would, before training and without a network.

    Raises:
        UserError: wandb would refuse a name or the key, or online was asked for without a key; or a package of
            tracking.also is not installed.
    """
    check_packages(config.tracking)
    labels = resolve_labels(config.tracking)

    def origin(name: str) -> str:
        return labels.sources.get(name) or f"tracking.{name}"

    if not is_valid_name(labels.project):
        raise UserError(f"{origin('project')}={labels.project!r}: must be {VALID_NAME}")
    if labels.entity and not is_valid_name(labels.entity):
        raise UserError(f"{origin('entity')}={labels.entity!r}: must be a user's or a team's name alone, {VALID_NAME}")
    for tag in labels.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(f"{origin('tags')}: {tag!r} must be 1 to 64 characters")
    for name, limit in (("group", 128), ("job_type", 64)):  # the server's limits
        if len(getattr(labels, name)) > limit:
            raise UserError(f"{origin(name)}={getattr(labels, name)!r}: must be {limit} characters at most")
    key, source = find_key()
    if tracking_mode(config.tracking)[0] == "online" and key and not WANDB_KEY.fullmatch(key):
        raise UserError(
            f"{source}: not a wandb key, which has 40 or more letters, digits, _ and -, and no space or line break;"
            " correct it, run `wandb login --relogin`, or go offline by --tracking.mode=offline"
        )


def is_valid_name(name: str) -> bool:
    """Whether wandb accepts the name of a project, a user or a team."""
    return 1 <= len(name) <= 128 and name.isprintable() and not set(name) & set("/\\#?%:")


# The key and its server


def has_key() -> bool:
    """Whether wandb would find a key for its server, or a token that it exchanges for one."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or find_key()[0])


def find_key() -> tuple[str, str]:
    """The key that wandb would use for its server, and its source: the environment, a settings file or netrc.

    Empty if there is none.
    """
    key, source = read_setting("api_key", "WANDB_API_KEY")
    if key:
        return key, f"{source} (environment)" if source == "WANDB_API_KEY" else source
    wanted = {host} if (host := wandb_host()) else WANDB_HOSTS
    for path in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):
            hosts = netrc.netrc(str(Path(path).expanduser())).hosts
            return next(((key, path) for host, (_, _, key) in hosts.items() if host in wanted and key), ("", ""))
    return "", ""


def wandb_host() -> str:
    """The host and port of the wandb server; empty for wandb's own."""
    address = wandb_address()
    with contextlib.suppress(ValueError):
        return "" if urlsplit(address).netloc in WANDB_HOSTS else urlsplit(address).netloc
    return address  # not a URL: no key is for it


def wandb_address() -> str:
    """The base URL of the wandb server: from WANDB_BASE_URL, wandb's settings files, or wandb's own server."""
    return read_setting("base_url", "WANDB_BASE_URL")[0].rstrip("/") or "https://api.wandb.ai"


# The key check


class WandbKeyCheck:
    """Asks wandb's server on a thread whether it accepts the key, if the run is to be online.

    Nobody waits for the thread: the network decides neither whether a run trains nor when it starts. The answer usually
    comes while torch is imported, so that a wrong key is reported before training. If it comes later, the tracker finds
    out by itself, and goes offline too.
    """

    def __init__(self, config: Config) -> None:
        self.refusal = ""
        """Which server refuses which key; empty unless the server did."""
        key, source = find_key()
        self._thread = threading.Thread(target=self._ask, args=(key, source), name="wandb key", daemon=True)
        with contextlib.suppress(UserError):  # `check_tracking` raises it
            if key and tracking_mode(config.tracking)[0] == "online":
                self._thread.start()

    def offline_if_refused(self, config: Config, warn: Callable[[str], None]) -> Config:
        """The configuration of the tracker: offline, with a warning, if the server has refused the key by now."""
        if not self.refusal:
            return config
        warn(f"{self.refusal}; this run is recorded offline (to replace the key, run `wandb login --relogin`)")
        return config.model_copy(update={"tracking": config.tracking.model_copy(update={"mode": "offline"})})

    def _ask(self, key: str, source: str) -> None:
        if refuses_key(wandb_address(), key):
            self.refusal = f"{wandb_address()} refuses the wandb key in {source}"


def refuses_key(address: str, key: str) -> bool:
    """Whether the wandb server at this base URL refuses the key. False if it does not answer, or answers otherwise.

    Written with the standard library, because `wandb.Api` raises the same error for a refused key and for a server that
    cannot be reached, and starts a wandb-core process that outlives the question; and requests does not trust the
    system's certificates (SSL_CERT_FILE, SSL_CERT_DIR), which a company's own wandb server may need.
    """
    import urllib.error
    import urllib.request

    try:
        query = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
        request = urllib.request.Request(f"{address}/graphql", query)
        request.add_header("Content-Type", "application/json")
        # "Unredirected": if the server redirects elsewhere, the key is not sent there.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            return json.load(response)["data"]["viewer"] is None
    except urllib.error.HTTPError as error:
        return error.code == 401
    except Exception:  # no connection, no JSON, or not wandb's answer
        return False

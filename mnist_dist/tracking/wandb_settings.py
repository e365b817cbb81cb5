"""Settings that a user gave to wandb itself, in its environment variables and files (`wandb init`, `wandb offline`).

wandb's precedence: settings of the run > environment > ./wandb/settings > ~/.config/wandb/settings. An empty variable
counts as unset. wandb's own code is not used, because importing it takes about 0.5 s; tests compare both.
"""

from __future__ import annotations

import configparser
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_dist.config.sections import TrackingConfig
from mnist_dist.utils.errors import UserError

WANDB_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
TRUE, FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
DEFAULTS = {
    "project": ("project", "WANDB_PROJECT"),
    "entity": ("entity", "WANDB_ENTITY"),
    "group": ("run_group", "WANDB_RUN_GROUP"),
    "job_type": ("run_job_type", "WANDB_JOB_TYPE"),
    "tags": ("run_tags", "WANDB_TAGS"),
    "notes": ("run_notes", "WANDB_NOTES"),
    "name": ("run_name", "WANDB_NAME"),
    "dir": ("root_dir", "WANDB_DIR"),
}
"""wandb's own name and variable of each label of a run. `name` and `dir` are no settings of `tracking`."""


def read_setting(key: str, variable: str) -> tuple[str, str]:
    """A setting that the user gave to wandb, and its source: the variable, or a settings file. Empty if there is none.

    Args:
        key: its name in wandb's settings files.
    """
    if value := os.environ.get(variable, ""):
        return value, variable
    return read_files().get(key, ("", ""))


def read_files() -> dict[str, tuple[str, str]]:
    """Each setting of wandb's settings files with the file's path; the folder's file overrides the user's.

    A file that cannot be read counts as empty, as in wandb.
    """
    found: dict[str, tuple[str, str]] = {}
    folder = ".wandb" if Path(".wandb").exists() else "wandb"
    for path in (Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"), Path(folder)):
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, ValueError, RuntimeError):
            file = path.expanduser() / "settings"
            parser.read(file)
            found |= {key: (value, str(file)) for key, value in parser.items("default") if value}
    return found


def requested_mode() -> tuple[str, str]:
    """The mode that the user gave to wandb, `online`, `offline` or `disabled`, and the reason; empty if there is none.

    Raises:
        UserError: WANDB_MODE, WANDB_DISABLED or the mode in a settings file has an unknown value.
    """
    disabled = os.environ.get("WANDB_DISABLED", "")
    if disabled.lower() in TRUE:
        return "disabled", f"WANDB_DISABLED={disabled}"
    if disabled.lower() not in FALSE:
        raise UserError(f"WANDB_DISABLED={disabled} (environment): must be true or false")
    mode, source = read_setting("mode", "WANDB_MODE")
    if not mode:
        return "", ""
    is_variable = source == "WANDB_MODE"
    if mode not in WANDB_MODES:
        where = f"WANDB_MODE={mode} (environment)" if is_variable else f"mode={mode} ({source})"
        raise UserError(f"{where}: must be online, offline or disabled")
    return WANDB_MODES[mode], f"WANDB_MODE={mode}" if is_variable else f"mode={mode} in {source}"


@dataclass(frozen=True)
class RunLabels:
    """How a run is named and filed in wandb. Empty: none, or wandb's default."""

    project: str
    entity: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    notes: str
    name: str
    """Empty: the name of the run's folder."""
    dir: str
    """The folder in which wandb creates its own. Empty: the run's folder."""
    sources: Mapping[str, str]
    """Variable or settings file of each label that came from one."""
    overridden: Mapping[str, str]
    """Variable or file of each other label that `tracking` overrides with another value."""


def resolve_labels(tracking: TrackingConfig) -> RunLabels:
    """The labels of a run: those set in `tracking`, otherwise those given to wandb, otherwise `tracking`'s defaults."""
    values: dict[str, Any] = {name: getattr(tracking, name, "") for name in DEFAULTS}
    sources: dict[str, str] = {}
    overridden: dict[str, str] = {}
    for name, (key, variable) in DEFAULTS.items():
        text, source = read_setting(key, variable)
        value: Any = tuple(text.split(",")) if name == "tags" else text
        if not text or value == values[name] or (name == "dir" and source != variable):
            continue  # wandb takes no folder from a file
        if name in tracking.model_fields_set:
            overridden[name] = source
        else:
            values[name], sources[name] = value, source
    return RunLabels(**values, sources=sources, overridden=overridden)


def describe_labels(labels: RunLabels) -> str:
    """What was taken from wandb's environment and files, and what was not, for the console; empty if there is none."""
    taken = [f"{name} {shown(getattr(labels, name))} by {source}" for name, source in labels.sources.items()]
    ignored = [f"tracking.{name} over {source}" for name, source in labels.overridden.items()]
    return ", ".join(taken + ignored)


def shown(value: str | tuple[str, ...]) -> str:
    """A label on one line, cut to 40 characters."""
    text = " ".join((value if isinstance(value, str) else ",".join(value)).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def has_home() -> bool:
    """Whether this user has a home folder: by HOME, or by the password database."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def wandb_environment(folder: Path) -> Iterator[None]:
    """Change the environment for wandb, and change it back.

    wandb refuses to start if a variable of its own is empty, or if WANDB_MODE is none of its modes, though the run
    gives the mode. It prints which settings files it reads, unless WANDB_SILENT is set. Artifacts that are not uploaded
    stay in the folder, not in the user's home; so do all of wandb's files if there is no home to write to.

    Args:
        folder: where wandb creates its folder `wandb`.
    """
    own = folder.resolve() / "wandb"
    wanted = {"WANDB_DATA_DIR": str(own), "WANDB_SILENT": "true"}
    if not has_home():
        wanted["HOME"] = str(own / "home")
    elif not os.access(Path.home(), os.W_OK):
        wanted["WANDB_CACHE_DIR"] = str(own / "cache")
    hidden = {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and (not v or k == "WANDB_MODE")}
    added = [name for name in wanted if not os.environ.get(name)]
    for name in hidden:
        del os.environ[name]
    for name in added:
        os.environ[name] = wanted[name]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        os.environ.update(hidden)

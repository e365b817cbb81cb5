"""wandb's service process (wandb-core) and files: starting and ending the one, reading and removing the others.

wandb has no call that ends its service without waiting for the network, so it is ended as a process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def force_teardown(wandb: Any) -> None:
    """End wandb's service without waiting for it, then remove wandb's exit hooks.

    Args:
        wandb: the module; None if it could not be imported.
    """
    kill_service()
    if wandb is not None:
        with contextlib.suppress(Exception):
            wandb.teardown()


def kill_service() -> None:
    """End the wandb-core processes that this process started, within about 1 s."""
    services = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.terminate()
                services.append(child)
    for child in psutil.wait_procs(services, timeout=1)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
            child.wait(timeout=1)


def set_up(wandb: Any, settings: Any, warn: Callable[[str], None]) -> None:
    """`wandb.setup`, which starts a service, or connects to the one that WANDB_SERVICE names.

    That variable is left in the environment of what another program with wandb started, and its service may be gone or
    of another version. Then this process starts its own, with a warning.
    """
    inherited = os.environ.get("WANDB_SERVICE")
    try:
        wandb.setup(settings=settings)
    except Exception:
        if not inherited or os.environ.pop("WANDB_SERVICE", None) != inherited:
            raise
        wandb.setup(settings=settings)
        warn(f"WANDB_SERVICE={inherited} (environment) does not answer; wandb started a service of its own")


def temporary_folders(wandb: Any) -> list[tempfile.TemporaryDirectory[str]]:
    """The folders, one a process, in which wandb keeps media and artifacts on their way; none if it moved them."""
    media = sys.modules.get(f"{wandb.__name__}.sdk.data_types._private")
    artifacts = getattr(sys.modules.get(f"{wandb.__name__}.sdk.artifacts.artifact"), "Artifact", None)
    found = getattr(media, "MEDIA_TMP", None), getattr(artifacts, "_TMP_DIR", None)  # neither name is public
    return [folder for folder in found if isinstance(folder, tempfile.TemporaryDirectory)]


def create_temporary_folders(wandb: Any) -> None:
    """Create wandb's temporary folders again, if an earlier run of this process removed them. Raises OSError."""
    for folder in temporary_folders(wandb):
        Path(folder.name).mkdir(mode=0o700, exist_ok=True)


def remove_temporary_folders(wandb: Any) -> None:
    """Remove wandb's temporary folders, those of the process and those of artifacts.

    wandb leaves that to exit hooks, which are skipped after a run of several processes.
    """
    # An artifact's folder is removed when the artifact is collected, unless wandb's cache has it.
    caches = sys.modules.get(f"{wandb.__name__}.sdk.artifacts.artifact_instance_cache")
    for name in ("artifact_instance_cache", "artifact_instance_cache_by_client_id"):
        getattr(caches, name, {}).clear()
    gc.collect()
    for folder in temporary_folders(wandb):
        with contextlib.suppress(OSError):
            folder.cleanup()


def upload_failed(files: Path | None) -> bool:
    """Whether wandb stopped uploading rows, for example because the key was revoked. Only its log says so.

    Args:
        files: wandb's folder of this segment of the run.
    """
    try:
        return files is not None and b"filestream: fatal error" in (files / "logs" / "debug-internal.log").read_bytes()
    except OSError:
        return False

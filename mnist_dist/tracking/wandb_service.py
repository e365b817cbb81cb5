"""wandb's service process (wandb-core) and files: ending the one, placing and reading the others.

wandb has no call that ends its service without waiting for the network, so it is ended as a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
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


@contextlib.contextmanager
def stage_artifacts_in(folder: Path) -> Iterator[None]:
    """Have wandb keep artifacts that it has not uploaded in the run's folder, not in the user's home."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb")
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)


def upload_failed(files: Path | None) -> bool:
    """Whether wandb stopped uploading rows, for example because the key was revoked. Only its log says so.

    Args:
        files: wandb's folder of this segment of the run.
    """
    try:
        return files is not None and b"filestream: fatal error" in (files / "logs" / "debug-internal.log").read_bytes()
    except OSError:
        return False

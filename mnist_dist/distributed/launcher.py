"""The launcher that started this process: torchrun, `accelerate launch`, or a program that called a launch function.

Environment variables do not tell: a shell may still have those of an earlier launcher. Imports no torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
from pathlib import PurePath
from types import FrameType
from typing import Any

import psutil

PROGRAMS = {
    *("torchrun", "torch.distributed.run", "torch.distributed.launch"),
    *("accelerate", "accelerate-launch", "accelerate.commands.launch", "accelerate.commands.accelerate_cli"),
}
"""Launchers as their command lines name them: a script, or a module after `python -m`."""
DEBUG_FILE = "ACCELERATE_DEBUG_RDV_FILE"
"""Set by accelerate.debug_launcher only."""
_kept_groups: list[Any] = []
"""Destroyed groups of debug_launcher: freeing the last one deletes the file that debug_launcher deletes itself."""
_debug_variables: dict[str, str] = {}
"""torch's variables in a process of debug_launcher, once it has left that group."""


def find_launcher() -> tuple[int, int]:
    """Process ids of the launcher that started this process, and of its worker; 0 and 0 if no ancestor is a launcher.

    The worker is the process that the launcher started: this one, or one in between, such as the shell of `accelerate
    launch --no_python script.sh`. A program that calls a launch function starts new processes for each call, so it
    counts as its own worker.
    """
    parent = multiprocessing.parent_process()  # notebook_launcher and debug_launcher start processes by multiprocessing
    worker = os.getpid()
    for ancestor in psutil.Process().parents():
        if parent and ancestor.pid == parent.pid:
            return ancestor.pid, ancestor.pid
        if is_launcher(ancestor):
            return ancestor.pid, worker
        worker = ancestor.pid
    return 0, 0


def is_launcher(process: psutil.Process) -> bool:
    """Whether a process runs torchrun or `accelerate launch`."""
    with contextlib.suppress(psutil.Error):
        return not PROGRAMS.isdisjoint(PurePath(word).name for word in process.cmdline()[:6])
    return False


def is_ancestor(pid: int) -> bool:
    """Whether a process is an ancestor of this one. It no longer is once it, or one in between, has ended."""
    ancestor = os.getppid()
    with contextlib.suppress(psutil.Error):
        while ancestor not in (0, 1, pid):  # hop by hop: each training step asks, and the launcher is near
            ancestor = psutil.Process(ancestor).ppid()
    return ancestor == pid


def is_called_by_launcher() -> bool:
    """Whether a launch function runs this program as a function in a process that it has started.

    notebook_launcher and debug_launcher ignore what the function returns.
    """
    marks = ("TORCHELASTIC_RUN_ID", DEBUG_FILE)
    return multiprocessing.parent_process() is not None and any(mark in os.environ for mark in marks)


def is_inside_launch_function() -> bool:
    """Whether this call came from notebook_launcher or debug_launcher, which also call a function in their own process.

    That is what notebook_launcher does for one process.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.launchers":
            return True
        frame = frame.f_back
    return False


def leave_debug_group() -> None:
    """Set torch's variables (RANK, ...) in a process of accelerate.debug_launcher, and leave its process group.

    That launcher gives ranks by the group only, and the group does not know run.timeout. The ranks agree on a free port
    for their own groups, because debug_launcher names the same port for every launch. A later run of the process has
    the same variables.
    """
    dist: Any = sys.modules.get("torch.distributed")
    if DEBUG_FILE in os.environ and dist is not None and dist.is_initialized():
        rank, world_size = str(dist.get_rank()), str(dist.get_world_size())
        with socket.create_server(("127.0.0.1", 0)) as free:
            box = [free.getsockname()[1]]
            dist.broadcast_object_list(box)
        _kept_groups.append(dist.group.WORLD)
        dist.destroy_process_group()
        _debug_variables.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, LOCAL_WORLD_SIZE=world_size)
        _debug_variables["MASTER_PORT"] = str(box[0])
    if DEBUG_FILE in os.environ:
        os.environ.update(_debug_variables)

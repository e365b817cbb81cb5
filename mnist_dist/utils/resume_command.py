"""The command by which a stopped run goes on, as the user would type it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

PROGRAM = ["python", "-m", "mnist_dist.train"]
ENTRIES = ("mnist_dist.train", "train", "train.py")
"""Last word of the ways to start training, before its arguments."""


def resume_command(arguments: Sequence[str], extra: Sequence[str], launcher_pid: int, by_other_launcher: bool) -> str:
    """The command that was given, with further arguments in place of earlier ones, quoted for the shell.

    Where it is not known (srun, mpirun, a launcher that has ended or starts a script), it says what to add to it.

    Args:
        arguments: those of the training program.
        extra: arguments to add, as `--key=value`.
        launcher_pid: process id of the launcher that is this process's parent; 0 without one.
        by_other_launcher: whether a launcher started this process that is not its parent.
    """
    given, count = list(arguments), len(arguments) + 1
    own = list(sys.orig_argv)
    if own[-count:][1:] != given or os.path.basename(own[-count]) not in ENTRIES:  # called from another program
        own = [*PROGRAM, *given]
    command = own
    if launcher_pid:
        command = command_line(launcher_pid)
        by_other_launcher |= command[-count:] != own[-count:]
    if by_other_launcher:
        return f"the same command with {shlex.join(extra)}" if extra else "the same command"
    kept = drop_options(given, {argument.partition("=")[0] for argument in extra})
    return shlex.join([*typed(command[: len(command) - len(given)]), *kept, *extra])


def drop_options(arguments: Sequence[str], options: Collection[str]) -> list[str]:
    """Arguments without these options, given as `--key=value` or as `--key value`."""
    kept: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument.partition("=")[0] not in options:
            kept.append(argument)
        elif "=" not in argument and queue and not queue[0].startswith("--"):
            queue.pop(0)
    return kept


def command_line(pid: int) -> list[str]:
    """The command line of a process; empty if it has ended or is another user's."""
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def typed(command: list[str]) -> list[str]:
    """A command line without what the shell adds: the folder of a program on PATH, and a script's interpreter."""
    if len(command) > 1 and is_on_path(command[1]):
        command = command[1:]
    return [os.path.basename(command[0]) if is_on_path(command[0]) else command[0], *command[1:]]


def is_on_path(program: str) -> bool:
    """Whether this is the file that the shell runs for the program's bare name."""
    found = shutil.which(os.path.basename(program))
    return bool(found) and os.path.isabs(program) and Path(str(found)).resolve() == Path(program).resolve()

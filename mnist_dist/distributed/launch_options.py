"""What `accelerate launch` was told, by its command line and its YAML file.

It does not pass all of it on: the environment of its processes does not say whether they were meant for GPUs, or how
many of them were asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import psutil
from accelerate.commands.config import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog.comm_errors import first_line

DEFAULT_FILE: str = default_config_file
"""The file that `accelerate config` writes, and `accelerate launch` reads if none is given."""
PROGRAMS = ("launch", "accelerate-launch", "accelerate.commands.launch")
"""The word of a command line after which the options of `accelerate launch` begin."""


@dataclass(frozen=True)
class LaunchOptions:
    """Options of `accelerate launch`. Those of the command line win over those of the file."""

    config_file: str = ""
    """The file that was given by `--config_file`; empty if none was."""
    num_processes: int = 0
    """Processes over all machines; 0 if not given."""
    use_cpu: bool = False


def find_launch_options(topology: Topology) -> LaunchOptions | None:
    """The options of the `accelerate launch` that started this process; None if none did, or they cannot be read."""
    if not topology.launcher_pid:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        launcher = psutil.Process(topology.launcher_pid)
        return read_launch_options(launcher.cmdline(), launcher.cwd())
    return None


def read_launch_options(command: Sequence[str], folder: str) -> LaunchOptions | None:
    """The options in a command line of `accelerate launch`; None if it is another program's, or cannot be read.

    Args:
        command: words of the command line.
        folder: working directory of the process.
    """
    names = [PurePath(word).name for word in command[:5]]
    start = next((names.index(program) + 1 for program in PROGRAMS if program in names), 0)
    if not start:
        return None
    try:
        options: Any = launch_command_parser().parse_args(command[start:])
    except SystemExit:
        return None
    told: Any = None
    path = options.config_file or DEFAULT_FILE
    if os.path.isfile(os.path.join(folder, path)):
        with contextlib.suppress(Exception):  # the launcher has read it, or ended
            told = load_config_from_file(os.path.join(folder, path))
    return LaunchOptions(
        config_file=options.config_file or "",
        num_processes=options.num_processes or getattr(told, "num_processes", 0),
        use_cpu=bool(options.cpu or getattr(told, "use_cpu", False)),
    )


def describe_missing_processes(topology: Topology) -> str:
    """A warning if `accelerate launch` started fewer processes than it was told to; empty if not.

    It starts a single one for MULTI_CPU and for --cpu, whatever --num_processes says (accelerate#2741).
    """
    options = find_launch_options(topology)
    if options is None or options.num_processes <= topology.world_size:
        return ""
    return (
        f"accelerate launch was told to start {options.num_processes} processes, and started {topology.world_size}; "
        "start several by a file that says distributed_type: MULTI_GPU, as launch/cpu_2.yaml for CPUs"
    )


def describe_config_file(path: str = DEFAULT_FILE) -> str:
    """What keeps `accelerate launch` from using a YAML file; empty if nothing does, or there is no such file."""
    if not os.path.isfile(path):
        return ""
    try:
        config = load_config_from_file(path)
    except Exception as error:  # of YAML, of its keys, of its values
        return f"{type(error).__name__}: {first_line(error)}"
    return 'mixed_precision: YAML reads an unquoted no as false; write "no"' if config.mixed_precision is False else ""

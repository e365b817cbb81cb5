"""Starts real programs as a user does, and checks that none of their processes is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
PYTHON = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SECONDS = 100.0
"""For a program to end."""


@dataclass(frozen=True)
class Ended:
    """Exit code of a program, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


class Program:
    """A program that was started in the folder `work`, with all processes that it starts in turn."""

    def __init__(self, command: Sequence[str], work: Path) -> None:
        self.mark = secrets.token_hex(8)  # inherited, as an environment variable, by all that it starts
        self.errors = work / f"stderr-{self.mark}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=work,
                env={**os.environ, "STARTED_BY_TEST": self.mark},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def wait_for_line(self, start: str) -> None:
        """Wait until it writes a line that starts with a text to standard output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return
        raise AssertionError(f"no line started with {start!r}\n{self.errors.read_text()}")

    def signal(self, number: int) -> None:
        """Send a signal to the started process only, as `kill` does."""
        self.process.send_signal(number)

    def family(self) -> list[psutil.Process]:
        """Its processes that are running, orphans included."""
        return [process for process in psutil.process_iter() if marked(process, self.mark)]

    def end(self) -> Ended:
        """Wait until it has ended, and all that write to its standard output. No dependency warns of our own calls."""
        out, _ = self.process.communicate(timeout=SECONDS)
        err = self.errors.read_text()
        assert not re.search(r"mnist_dist/\S+\.py:\d+: \w*Warning", err), err
        return Ended(self.process.returncode, out, err)

    def kill(self) -> None:
        """Kill it and all that it started."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()


def marked(process: psutil.Process, mark: str) -> bool:
    """Whether a process was started, directly or not, by the program with this mark."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("STARTED_BY_TEST") == mark
    except psutil.Error:
        return False


@contextlib.contextmanager
def started(*commands: Sequence[str], work: Path) -> Iterator[list[Program]]:
    """Programs that run at the same time; they are killed at the end of the block."""
    programs: list[Program] = []
    try:
        programs.extend(Program(command, work) for command in commands)
        yield programs
    finally:
        for program in programs:
            program.kill()


def run(*commands: Sequence[str], work: Path) -> list[Ended]:
    """Run programs at the same time until they end; asserts that they leave no process."""
    with started(*commands, work=work) as programs:
        ended = [program.end() for program in programs]
        assert [program.family() for program in programs] == [[] for _ in programs]
    return ended


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_digits(folder: Path, train: int, test: int) -> None:
    """Write four IDX files of noise with a brighter row whose place is the class: learnt quickly, but not at once."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", train), ("t10k", test)):
        labels = torch.randint(10, (count,), generator=generator)
        images = torch.randint(0, 200, (count, 28, 28), generator=generator)
        images[torch.arange(count), 4 + 2 * labels] += 55
        head = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.to(torch.uint8).numpy().tobytes())
        head = struct.pack(">HBB1I", 0, 8, 1, count)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.to(torch.uint8).numpy().tobytes())

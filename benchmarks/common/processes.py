"""Whole processes: the trainer, from its command line to its summary, and other Python programs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mnist_dist.utils.errors import TrainingError

REFERENCES = Path(__file__).parents[1] / "references"
GRACE = 20.0  # seconds that a process has to end after SIGTERM


def run_python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run `python ARGUMENTS` and return its standard output.

    It has a process group of its own: Ctrl-C reaches the benchmark alone, which then ends it.

    Args:
        environment: variables beside those of this process.

    Raises:
        TrainingError: its exit code is not 0; with the last line of its standard error.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment or {}),
        start_new_session=True,
    )
    try:
        out, errors = process.communicate()
    except BaseException:
        end_process(process)
        raise
    if process.returncode:
        lines = errors.strip().splitlines() or ["it printed nothing"]
        own = [line for line in lines if line.startswith("mnist_dist: ")]  # launchers print more after it
        raise TrainingError(f"exit code {process.returncode}: {(own or lines)[-1]}")
    return out


def end_process(process: subprocess.Popen[str]) -> None:
    """End a process and its children: by SIGTERM, which launchers pass on, and by SIGKILL after GRACE seconds."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also after a second Ctrl-C
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class TrainingRun:
    """What a run of the trainer left."""

    summary: dict[str, Any]
    """summary.json."""
    rows: list[dict[str, Any]]
    """The rows of metrics.jsonl about training steps; at least one."""
    seconds: float
    """Seconds of the whole process, from its start to its end."""

    @property
    def steps_per_second(self) -> float:
        """Steps per second from the first row to the last, with all that happens between steps but without the start.

        It needs two rows, of different steps.
        """
        first, last = self.rows[0], self.rows[-1]
        return float((last["step"] - first["step"]) / (last["time"] - first["time"]))


def train(options: Sequence[str], *, processes: int = 1, environment: Mapping[str, str] | None = None) -> TrainingRun:
    """Train in new processes, in a temporary run directory.

    Args:
        options: of `python -m mnist_dist.train`.
        processes: where there are several, torchrun starts them.

    Raises:
        TrainingError: the run failed.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = torchrun if processes > 1 else []
    with tempfile.TemporaryDirectory(prefix="mnist_dist-") as name:
        folder = Path(name, "run")
        start = time.perf_counter()
        fixed = ["--run.quiet=true", f"--run.dir={folder}"]
        run_python([*launcher, "-m", "mnist_dist.train", *options, *fixed], environment)
        seconds = time.perf_counter() - start
        summary = json.loads((folder / "summary.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return TrainingRun(summary, [row for row in rows if "images_per_second" in row], seconds)


def run_reference(script: str, options: Sequence[str]) -> dict[str, Any]:
    """Run one of the loops in references/ and return the JSON object of its last line.

    Raises:
        TrainingError: it failed.
    """
    out = run_python([str(REFERENCES / script), *options])
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found

"""Runs `mnist_dist.train` in a process that is forked from one that has imported torch, which saves two seconds a run.

Otherwise like `programs.run`: an environment, a working folder, output and exit hooks of its own, no process left.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
from harness import CONTEXT
from programs import SECONDS, Ended, marked

PLAIN = "from mnist_dist.train import main\nfrom mnist_dist.utils.exit import exit_with\nexit_with(main)\n"


def run_forked(arguments: Sequence[str], work: Path, source: str = PLAIN) -> Ended:
    """Run a program to its end; asserts that it leaves no process.

    Args:
        arguments: its command line.
        work: its working folder, the first in which it looks for modules.
        source: the program, which ends by `exit_with`.
    """
    mark = secrets.token_hex(8)
    out, err = work / f"stdout-{mark}", work / f"stderr-{mark}"
    environment = {**os.environ, "STARTED_BY_TEST": mark}
    process = CONTEXT.Process(target=run_program, args=(source, list(arguments), environment, str(work), out, err))
    process.start()
    try:
        process.join(SECONDS)
        code = process.exitcode
        assert code is not None, f"still runs after {SECONDS:g} s\n{err.read_text()}"
        left = [each for each in psutil.process_iter() if marked(each, mark)]
        assert left == []
    finally:
        process.kill()
        process.join()
    return Ended(code, out.read_text(), err.read_text())


def run_program(
    source: str, arguments: list[str], environment: dict[str, str], work: str, out: Path, err: Path
) -> None:
    """The main function of the forked process."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(work)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), 1 if stream is sys.stdout else 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["train", *arguments]
    sys.path.insert(0, work)
    try:
        exec(compile(source, "program", "exec"), {"__name__": "program"})
    finally:  # as the interpreter ends; multiprocessing would skip both
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()

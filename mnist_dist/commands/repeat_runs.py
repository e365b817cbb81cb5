"""The runs of `mnist-dist repeat`: one process for each seed, several at once, and what is known of each afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

import mnist_dist
from mnist_dist.checkpoint.run_paths import CONFIG, STATUS, SUMMARY
from mnist_dist.commands.sweep_runs import describe_failure, start_process, wait_until_free
from mnist_dist.config.digest import config_sha256
from mnist_dist.config.schema import Config
from mnist_dist.tracking.results import RESULTS, Machine, Result, Split
from mnist_dist.utils.errors import EXIT_DONE, UserError
from mnist_dist.utils.files import atomic_write, read_json_or_empty
from mnist_dist.utils.strict_json import dump_strict
from mnist_dist.utils.versions import code_digest

POLL_SECONDS = 0.1
DECISIVE = ("mnist_dist", "configs")
"""Folders of the repository whose files decide what a run gives."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained."""

    recipe: str
    """The name of a recipe, or the path of a YAML file."""
    settings: tuple[str, ...]
    """Further ones, as `--section.key=value`."""
    changes: dict[str, Any]
    """What they change, by key."""
    config: Config
    """Of the first seed."""
    seeds: range
    split: Split
    processes: int
    """Runs at once."""
    threads: int
    """Of each run."""
    folder: Path

    @property
    def name(self) -> str:
        """The recipe's name."""
        return Path(self.recipe).stem if self.recipe.endswith((".yaml", ".yml")) else self.recipe

    def run_folder(self, seed: int) -> Path:
        """The run directory of a seed; its log and its facts are beside it."""
        return self.folder / f"seed-{seed}"

    def command(self, seed: int) -> list[str]:
        """The command of one run."""
        own = {
            "run.seed": seed,
            "run.dir": self.run_folder(seed),
            "run.resume": "auto",
            "run.threads": self.threads,
            "run.quiet": "true",
            "tracking.mode": "disabled",
            "train.protocol": "honest",
        }
        words = [f"--{key}={value}" for key, value in own.items()]
        return [sys.executable, "-m", "mnist_dist.train", f"--config={self.recipe}", *self.settings, *words]


@dataclass
class Running:
    """A run that is under way."""

    seed: int
    process: subprocess.Popen[bytes]
    stack: contextlib.ExitStack
    """Ends the process when it is closed."""


class Repeater:
    """Trains the seeds of a plan that are not finished.

    Args:
        stop: set when no further run is to start, and those under way are to write a checkpoint and end.
        tell: takes the seeds that are done and those that failed after each change, and now and then; also the
            fractions of the runs that are under way, by seed.
    """

    def __init__(
        self,
        plan: Plan,
        stop: threading.Event,
        tell: Callable[[dict[int, Result], dict[int, str], dict[int, float]], None],
    ) -> None:
        self.plan, self.stop, self.tell = plan, stop, tell
        self.results = read_finished(plan)
        self.failed: dict[int, str] = {}

    def run_all(self) -> None:
        """Train all seeds that are left. Afterwards each is in `results` or in `failed`, unless `stop` is set."""
        left = [seed for seed in self.plan.seeds if seed not in self.results]
        running: list[Running] = []
        with contextlib.ExitStack() as every:
            while (left and not self.stop.is_set()) or running:
                while left and len(running) < self.plan.processes and not self.stop.is_set():
                    running.append(self.start(left.pop(0), every))
                self.tell(self.results, self.failed, {run.seed: read_fraction(self.plan, run.seed) for run in running})
                self.stop.wait(POLL_SECONDS)
                if self.stop.is_set():
                    for run in running:  # all of them, before the first is waited for
                        with contextlib.suppress(ProcessLookupError):
                            run.process.send_signal(signal.SIGTERM)
                ended = [run for run in running if self.stop.is_set() or run.process.poll() is not None]
                for run in ended:
                    self.finish(run)
                running = [run for run in running if run not in ended]
        self.tell(self.results, self.failed, {})

    def start(self, seed: int, every: contextlib.ExitStack) -> Running:
        """Start the run of a seed: anew, or from its checkpoint."""
        plan, folder = self.plan, self.plan.run_folder(seed)
        wait_until_free(folder, self.stop.is_set)
        facts, code = read_facts(plan, seed), code_digest()
        if facts.get("code") != code:  # new, or half-finished by other code
            if facts:
                shutil.rmtree(folder, ignore_errors=True)
            facts = {"code": code, "commit": find_commit(), "date": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"}
        facts |= {"recipe": plan.name, "changes": plan.changes, "concurrent": plan.processes}
        with atomic_write(facts_path(plan, seed)) as path:
            path.write_text(dump_strict(facts) + "\n")
        with log_path(plan, seed).open("ab") as output:
            stack = every.enter_context(contextlib.ExitStack())
            process = stack.enter_context(start_process(plan.command(seed), output))
        return Running(seed, process, stack)

    def finish(self, run: Running) -> None:
        """Wait for the end of a run, and take its result, or why it failed."""
        run.stack.close()
        code = run.process.returncode
        if code == EXIT_DONE:
            self.results[run.seed] = read_result(self.plan, run.seed)
        elif not self.stop.is_set():
            self.failed[run.seed] = describe_failure(log_path(self.plan, run.seed), code)


def facts_path(plan: Plan, seed: int) -> Path:
    """The file beside a run directory with what the run itself does not know: commit, date, runs at once."""
    return plan.run_folder(seed).with_suffix(".json")


def log_path(plan: Plan, seed: int) -> Path:
    """The file beside a run directory with what the run printed."""
    return plan.run_folder(seed).with_suffix(".log")


def read_facts(plan: Plan, seed: int) -> dict[str, Any]:
    """The content of the file of facts; empty if there is none."""
    return read_json_or_empty(facts_path(plan, seed))


def read_fraction(plan: Plan, seed: int) -> float:
    """How much of a run is done, by its status.json."""
    status = read_json_or_empty(plan.run_folder(seed) / STATUS)
    with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
        return float(min(status["step"] / status["last_step"], 1.0))
    return 0.0


def read_finished(plan: Plan) -> dict[int, Result]:
    """The results of the seeds that the folder has already.

    Raises:
        UserError: the folder has a run of other settings, finished or not.
    """
    results = {}
    for seed in plan.seeds:
        folder = plan.run_folder(seed)
        if not (folder / CONFIG).exists():
            continue
        if not read_facts(plan, seed):
            raise UserError(f"{folder}: is no run of mnist-dist repeat; choose another --out")
        config = Config.from_recipe(str(folder / CONFIG))
        if config_sha256(config) != config_sha256(plan.config) or config.train.protocol != "honest":
            raise UserError(f"{folder}: was trained with other settings; choose another --out, or remove it")
        if (folder / SUMMARY).exists():
            results[seed] = read_result(plan, seed)
    return results


def read_result(plan: Plan, seed: int) -> Result:
    """The result of a finished run.

    Raises:
        UserError: a file of it is damaged, or not of `mnist-dist repeat`.
    """
    folder, split = plan.run_folder(seed), plan.split
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_bytes())
        facts = json.loads(facts_path(plan, seed).read_bytes())
        return Result(
            recipe=plan.name,
            changes=plan.changes,
            config_sha256=config_sha256(plan.config),
            seed=seed,
            split=split,
            **{name: summary[f"{split}.{name}"] for name in ("accuracy", "loss", "count", "correct")},
            parameters=summary["model.parameters"],
            train_seconds=summary["train.seconds"],
            epochs=summary["train.epochs"],
            steps=summary["train.steps"],
            processes=summary["world_size"],
            threads=summary["threads"],
            precision=summary["precision"],
            weights_sha256=summary["weights_sha256"],
            train_sha256=summary["data.train_sha256"],
            test_sha256=summary["data.test_sha256"],
            versions={name: summary[f"versions.{name}"] for name in ("python", "torch", "accelerate", "mnist_dist")},
            machine=this_machine(),
            concurrent=facts["concurrent"],
            commit=facts["commit"],
            date=facts["date"],
            protocol=summary["train.protocol"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: is no finished run of mnist-dist repeat ({error}); remove it") from None


def this_machine() -> Machine:
    """The name of the CPU, the physical cores and the memory of this machine."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return Machine(name, cores, round(psutil.virtual_memory().total / 2**30, 1))


def check_results_folder() -> None:
    """Raise UserError unless the current folder is that of the repository, in which results are recorded."""
    if not RESULTS.parent.is_dir():
        raise UserError(f"--record: there is no {RESULTS.parent} here; start it in the folder of the repository")


def find_commit() -> str:
    """The commit of the repository that holds this package, with `+changes` if decisive files differ; else empty."""
    root = Path(mnist_dist.__file__).parents[1]
    if not shutil.which("git") or not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    return git("rev-parse", "HEAD") + "+changes" * bool(git("status", "--porcelain", "--", *DECISIVE))


def other_code(plan: Plan, seeds: Sequence[int]) -> list[int]:
    """The seeds that were trained by another version of this package's code."""
    code = code_digest()
    return [seed for seed in seeds if read_facts(plan, seed).get("code") != code]

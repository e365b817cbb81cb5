"""`mnist-dist sweep NAME|PATH`: wandb's sweeps without its server.

The same YAML file as for `wandb sweep` and `wandb agent`; Optuna chooses the parameters, and the runs take place one
after the other on this machine. Each run gets its parameters as command-line arguments, on every process.
"""

from __future__ import annotations

import shlex
import threading
from pathlib import Path
from typing import Any

from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.sweep_config import Sweep, read_sweep
from mnist_dist.commands.sweep_runs import (
    DONE,
    FAILED,
    RESULTS,
    RUNNING,
    Run,
    best_value,
    execute,
    lock_folder,
    write_results,
)
from mnist_dist.commands.sweep_search_space import import_optuna
from mnist_dist.commands.sweep_study import SweepStudy
from mnist_dist.config.yaml_files import find_sweep, list_sweeps
from mnist_dist.utils.errors import EXIT_DONE, Stopped, TrainingError, UserError
from mnist_dist.utils.signals import stop_on_signals
from mnist_dist.utils.stdio import ignore_output_errors

GROUP = "tracking.group"


def main(arguments: list[str]) -> int:
    """Run `mnist-dist sweep ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, Optuna is not installed, or anything wrong with the file.
        Stopped: on request; the same command goes on.
        TrainingError: no run finished.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    if options.count < 0:
        raise UserError(f"--count {options.count}: must be at least 1, or 0 for as many as the file says")
    import_optuna()
    path = find_sweep(options.sweep)
    sweep = read_sweep(path, options.count)
    folder = Path(options.dir or Path("sweeps") / path.stem)
    stop = threading.Event()
    ignore_output_errors("the sweep goes on without it")
    with lock_folder(folder), stop_on_signals(stop.set):
        runs = SweepRunner(sweep, folder, stop).run_all()
    show(sweep, runs)
    print(f"results: {folder / RESULTS}")
    if stop.is_set():
        raise Stopped(f"{count_done(runs)} runs are done; the same command goes on")
    if not any(run.state in DONE for run in runs):
        raise TrainingError(f"no run finished; {folder}/*.log say why")
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist sweep",
        description="Run a wandb sweep on this machine, without wandb's server. "
        "The same command continues a sweep that was stopped.",
        examples=[
            "mnist-dist sweep learning_rate",
            "mnist-dist sweep optimizer --count 20",
            "mnist-dist sweep configs/sweeps/optimizer.yaml --dir sweeps/second --count 3",
        ],
    )
    parser.add_argument("sweep", metavar="NAME|PATH", help=f"a YAML file, or one of {', '.join(list_sweeps())}")
    parser.add_argument("--dir", default="", help="folder of the runs and results (default: sweeps/<name of the file>)")
    parser.add_argument(
        "--count", type=int, default=0, metavar="N", help="maximum number of runs (default: run_cap of the file)"
    )
    return parser


class SweepRunner:
    """Executes the runs of a sweep one after the other.

    Args:
        folder: the sweep's, locked by this process; runs that are done there are not repeated.
        stop: set when the sweep is to stop.

    Raises:
        UserError: the folder holds another sweep.
    """

    def __init__(self, sweep: Sweep, folder: Path, stop: threading.Event) -> None:
        self.sweep, self.folder, self.stop = sweep, folder, stop
        self.study = SweepStudy(sweep, folder)
        self.runs = self.study.runs()

    def run_all(self) -> list[Run]:
        """All runs of the sweep, those of earlier calls too. Failed and interrupted runs are started again."""
        for run in self.runs:
            if run.state not in DONE:
                self.run_one(run)
        while not (self.stop.is_set() or 0 < self.sweep.run_cap <= len(self.runs) or self.is_target_reached()):
            drawn = self.study.next_run()
            if drawn is None:
                break
            self.runs.append(drawn)
            self.run_one(drawn)
        return self.runs

    def is_target_reached(self) -> bool:
        """Whether a run has reached metric.target of the file."""
        target = self.sweep.definition["metric"].get("target")
        for run in rank(self.sweep, self.runs)[:1]:
            value = best_value(run, self.sweep.goal)
            if target is not None and value is not None:
                return value >= target if self.sweep.goal == "maximize" else value <= target
        return False

    def run_one(self, run: Run) -> None:
        """Start one run and wait for its end; results.json is written before and after."""
        if self.stop.is_set():
            return
        run.state = RUNNING
        self.write()
        varied = [f"{name}={run.parameters[name]}" for name in self.sweep.varied]
        print(f"run {run.name}: {' '.join(varied)}", flush=True)
        folder = self.folder / run.name
        group = {} if GROUP in run.parameters else {GROUP: self.sweep.name}
        command = self.sweep.arguments(run.parameters | group | {"run.dir": folder})
        try:
            execute(run, command, folder, self.sweep.metric, self.stop.is_set, lambda: self.study.report(run))
        finally:
            self.study.record(run)
            self.write()
        value = best_value(run, self.sweep.goal)
        found = f", {self.sweep.metric} {value:g} at best" if value is not None else ""
        print(f"run {run.name}: {run.state}{found}, {run.seconds:.1f} s{f': {run.error}' if run.error else ''}")

    def write(self) -> None:
        """Write results.json."""
        facts = {
            "name": self.sweep.name,
            "metric": self.sweep.metric,
            "definition": self.sweep.definition,
            "best": next((run.name for run in rank(self.sweep, self.runs)), None),
        }
        write_results(self.folder, facts, self.runs)


def rank(sweep: Sweep, runs: list[Run]) -> list[Run]:
    """The runs that are done and logged the metric, the best one first."""
    done = [run for run in runs if run.state in DONE and run.values]
    return sorted(done, key=lambda run: best_value(run, sweep.goal) or 0.0, reverse=sweep.goal == "maximize")


def count_done(runs: list[Run]) -> str:
    """How many runs are done, as in `3 of 4`."""
    return f"{sum(run.state in DONE for run in runs)} of {len(runs)}"


def show(sweep: Sweep, runs: list[Run]) -> None:
    """Print a table of all runs, the best first, and the command that repeats the best one."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)  # error messages have brackets
    title = f"sweep {sweep.name}: {count_done(runs)} runs done"
    table = Table(title=title, title_justify="left")
    extreme = "highest" if sweep.goal == "maximize" else "lowest"
    for heading in ("run", *sweep.varied, f"{extreme} {sweep.metric}", "seconds", "state"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    order = rank(sweep, runs)
    for run in [*order, *(run for run in runs if run not in order)]:
        value = best_value(run, sweep.goal)
        varied = [format_value(run.parameters[name]) for name in sweep.varied]
        state = f"{run.state}: {run.error}" if run.state == FAILED else run.state
        table.add_row(run.name, *varied, "" if value is None else f"{value:.4f}", f"{run.seconds:.1f}", state)
    console.print(table)
    if order:
        command = sweep.arguments(order[0].parameters)
        console.print(f"repeat the best run: {shlex.join(command)}", soft_wrap=True)


def format_value(value: Any) -> str:
    """A parameter's value, short enough for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

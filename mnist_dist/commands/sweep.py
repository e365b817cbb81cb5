"""`mnist-dist sweep NAME|PATH`: wandb's sweeps without its server.

The same YAML file as for `wandb sweep` and `wandb agent`, and the same library chooses the parameters; here, one run
after the other on this machine. Each run gets its parameters as command-line arguments, on every process.
"""

from __future__ import annotations

import random
import shlex
import threading
import warnings
from pathlib import Path
from typing import Any

from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.sweep_config import Sweep, plain, read_sweep, sweeps_library
from mnist_dist.commands.sweep_runs import (
    DONE,
    FAILED,
    FINISHED,
    RESULTS,
    RUNNING,
    STOPPED_EARLY,
    Run,
    best,
    carry_out,
    held,
    read_results,
    write_results,
)
from mnist_dist.config.yaml_files import find_sweep, list_sweeps
from mnist_dist.utils.errors import EXIT_DONE, Stopped, TrainingError, UserError
from mnist_dist.utils.signals import stop_on_signals

GROUP = "tracking.group"


def main(arguments: list[str]) -> int:
    """Run `mnist-dist sweep ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or anything wrong with the file.
        Stopped: on request; the same command goes on.
        TrainingError: no run finished.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    if options.count < 0:
        raise UserError(f"--count {options.count}: must be at least 1, or 0 for as many as the file says")
    path = find_sweep(options.sweep)
    sweep = read_sweep(path, options.count)
    folder = Path(options.dir or Path("sweeps") / path.stem)
    stop = threading.Event()
    with held(folder), stop_on_signals(stop.set):
        runs = Runner(sweep, folder, stop).run_all()
    show(sweep, runs)
    print(f"{folder / RESULTS} has all of it")
    if stop.is_set():
        raise Stopped(f"{count_done(runs)} runs are done; the same command goes on")
    if not any(run.state in DONE for run in runs):
        raise TrainingError(f"no run finished; {folder}/*.log say why")
    return EXIT_DONE


def build_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="mnist-dist sweep", description="Run a wandb sweep on this machine, without a server.")
    parser.add_argument("sweep", metavar="NAME|PATH", help=f"a YAML file, or one of {', '.join(list_sweeps())}")
    parser.add_argument(
        "--dir", default="", help="folder of its runs (default: sweeps/<the file's name>); goes on if there"
    )
    parser.add_argument("--count", type=int, default=0, metavar="N", help="runs at most (default: the file's run_cap)")
    return parser


class Runner:
    """Carries out the runs of a sweep one after the other.

    Args:
        folder: held by this process; what was done there is not done again.
        stop: set when the sweep is to stop.
    """

    def __init__(self, sweep: Sweep, folder: Path, stop: threading.Event) -> None:
        self.sweep, self.folder, self.stop = sweep, folder, stop
        self.search = sweeps_library()
        self.runs = read_results(folder, sweep.definition)

    def run_all(self) -> list[Run]:
        """All runs of the sweep, those of earlier calls too. Runs that failed or were interrupted are started again."""
        again = [run for run in self.runs if run.state not in DONE]
        for run in again:
            self.run_one(run)
        while not self.stop.is_set() and not 0 < self.sweep.run_cap <= len(self.runs):
            parameters = self.choose()
            if parameters is None:
                break
            self.runs.append(Run(len(self.runs) + 1, parameters))
            self.run_one(self.runs[-1])
        return self.runs

    def choose(self) -> dict[str, Any] | None:
        """The parameters of the next run; None when the grid is done."""
        random.seed(len(self.runs))  # the library draws from this and from numpy's: the same sweep, the same runs
        import numpy as np

        np.random.seed(len(self.runs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, of a fit to few points
            chosen = self.search.next_run(self.sweep.definition, [self.described(run) for run in self.runs])
        if chosen is None:
            return None
        return {name: plain(entry["value"]) for name, entry in chosen.config.items()}

    def described(self, run: Run) -> Any:
        """A run as the library knows it. A run that was stopped early counts with the value it reached."""
        states = {FINISHED: "finished", STOPPED_EARLY: "finished", RUNNING: "running"}
        return self.search.SweepRun(
            name=run.name,
            state=states.get(run.state, "failed"),
            config={name: {"value": value} for name, value in run.parameters.items()},
            history=[{self.sweep.definition["metric"]["name"]: value} for value in run.values],
        )

    def is_hopeless(self, run: Run) -> bool:
        """Whether the sweep's early termination would end a run now."""
        if "early_terminate" not in self.sweep.definition:
            return False
        doomed = self.search.stop_runs(self.sweep.definition, [self.described(other) for other in self.runs])
        return any(other.name == run.name for other in doomed)

    def run_one(self, run: Run) -> None:
        """Start one run and wait for its end; results.json is written before and after."""
        if self.stop.is_set():
            return
        run.state = RUNNING
        self.write()
        varied = {name: run.parameters[name] for name in self.sweep.varied}
        print(f"run {run.name}: {' '.join(f'{name}={value}' for name, value in varied.items())}", flush=True)
        folder = self.folder / run.name
        group = {} if GROUP in run.parameters else {GROUP: self.sweep.name}
        command = self.sweep.arguments(run.parameters | group | {"run.dir": folder})
        try:
            carry_out(run, command, folder, self.sweep.metric, self.stop.is_set, lambda: self.is_hopeless(run))
        finally:
            self.write()
        value = best(run, self.sweep.maximize)
        found = f", {self.sweep.metric} {value:g} at best" if value is not None else ""
        print(f"run {run.name}: {run.state}{found}, {run.seconds:.1f} s{f': {run.error}' if run.error else ''}")

    def write(self) -> None:
        """Write results.json."""
        facts = {
            "name": self.sweep.name,
            "metric": self.sweep.metric,
            "definition": self.sweep.definition,
            "best": next((run.name for run in ranked(self.sweep, self.runs)), None),
        }
        write_results(self.folder, facts, self.runs)


def ranked(sweep: Sweep, runs: list[Run]) -> list[Run]:
    """The runs that are done and recorded the metric, the best one first."""
    done = [run for run in runs if run.state in DONE and run.values]
    return sorted(done, key=lambda run: best(run, sweep.maximize) or 0.0, reverse=sweep.maximize)


def count_done(runs: list[Run]) -> str:
    """How many runs are done, as in `3 of 4`."""
    return f"{sum(run.state in DONE for run in runs)} of {len(runs)}"


def show(sweep: Sweep, runs: list[Run]) -> None:
    """A table of all runs, the best first, and the command that trains as the best did."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    title = f"sweep {sweep.name}: {count_done(runs)} runs done"
    table = Table(title=title, title_justify="left")
    for heading in (
        "run",
        *sweep.varied,
        f"{'most' if sweep.maximize else 'least'} {sweep.metric}",
        "seconds",
        "state",
    ):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    order = ranked(sweep, runs)
    for run in [*order, *(run for run in runs if run not in order)]:
        value = best(run, sweep.maximize)
        varied = [number(run.parameters[name]) for name in sweep.varied]
        state = f"{run.state}: {run.error}" if run.state == FAILED else run.state
        table.add_row(run.name, *varied, "" if value is None else f"{value:.4f}", f"{run.seconds:.1f}", state)
    console.print(table)
    if order:
        command = sweep.arguments(order[0].parameters)
        console.print(f"the best again: {shlex.join(command)}", soft_wrap=True, markup=False)


def number(value: Any) -> str:
    """A parameter's value, short enough for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

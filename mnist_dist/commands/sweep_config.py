"""A sweep's YAML file, in wandb's own schema, checked before anything starts.

wandb's agent would find out run by run that a parameter is no setting, or that a value is out of its range.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from mnist_dist.commands.dashboard_panels import plotted
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.config.values import parse_value
from mnist_dist.config.yaml_files import Setting, check_key, compose, entries, shown
from mnist_dist.utils.errors import UserError

MODULE = "mnist_dist.train"
KEYS = (
    *("name", "description", "project", "entity", "program", "command", "method"),
    *("metric", "parameters", "early_terminate", "run_cap"),
)
DECIDES = ("method", "metric", "parameters", "early_terminate")  # what the runs will be
PER_RUN = ("run.dir", "run.resume")
PERCENTILES = [1e-9, *(step / 10 for step in range(1, 11))]  # 0 is below all whole numbers
INSTALL = "sweeps need the package `sweeps`: pip install 'mnist_dist[sweeps]'"


@dataclass(frozen=True)
class Sweep:
    """A checked sweep."""

    name: str
    definition: dict[str, Any]
    """What decides the runs, as the library takes it, with its defaults filled in."""
    command: tuple[str, ...]
    program: str
    metric: str
    """The key of the rows in metrics.jsonl, such as `val.accuracy`."""
    maximize: bool
    run_cap: int
    """Runs at most; 0: until the grid is done."""
    varied: tuple[str, ...]
    """Parameters that differ between runs."""

    def arguments(self, parameters: dict[str, Any]) -> list[str]:
        """The command that wandb's agent would start for these parameters; its macros replaced."""
        macros = {
            "${env}": [],
            "${interpreter}": ["python"],
            "${program}": [self.program],
            "${args}": [f"--{key}={value}" for key, value in parameters.items()],
            "${args_no_equals}": [word for key, value in parameters.items() for word in (f"--{key}", str(value))],
        }
        return [word for part in self.command for word in macros.get(part, [part])]


def sweeps_library() -> ModuleType:
    """The library that wandb's own controller uses. Raises UserError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydantic's, of names in the library that have changed
            import sweeps
    except ImportError:
        raise UserError(INSTALL) from None
    return sweeps


def read_sweep(path: Path, count: int = 0) -> Sweep:
    """Read a sweep and check all of it.

    Args:
        count: runs at most, instead of the file's run_cap; 0: as the file says.

    Raises:
        UserError: the first thing that is wrong, with its line.
    """
    root, content = compose(path, build=True)
    origins, parameters = outline(root, path)
    method = content.get("method")
    if method not in ("grid", "random", "bayes"):
        raise UserError(f"method={method} ({origins.get('method', path)}): must be one of grid, random, bayes")
    run_cap = content.get("run_cap", 0)
    if type(run_cap) is not int or run_cap < 0:
        raise UserError(f"run_cap={shown(str(run_cap))} ({origins['run_cap']}): must be a whole number, at least 1")
    definition = with_defaults(content, path, parameters)
    check_parameters(definition["parameters"], parameters)
    sweep = Sweep(
        name=str(content.get("name") or path.stem),
        definition=definition,
        command=tuple(str(part) for part in content.get("command", ())),
        program=str(content.get("program", MODULE)),
        metric=definition["metric"]["name"].replace("/", "."),
        maximize=definition["metric"]["goal"] == "maximize",
        run_cap=count or run_cap,
        varied=tuple(key for key, values in definition["parameters"].items() if "value" not in values),
    )
    if method != "grid" and not sweep.run_cap:
        raise UserError(f"method={method} ({origins['method']}): never ends; give run_cap, or --count N")
    config = check_command(sweep, origins.get("command", str(path)))
    check_metric(content["metric"]["name"], config, origins["metric"])
    return sweep


def outline(root: yaml.Node | None, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Where each key and each parameter of the file stands. Raises UserError for unknown and double ones."""
    if root is None:
        raise UserError(f"{path}: is empty; a sweep has method, metric, command and parameters")
    origins: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for key, origin, node in entries(root, path, "what makes a sweep (method, metric, command, parameters, ...)"):
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(KEYS)}"
            raise UserError(f"{key} ({origin}): no part of a sweep{hint}")
        once(key, origin, origins)
        if key == "parameters":
            for name, where, _ in entries(node, path, "settings and their values"):
                check_key(name, where)
                once(name, where, parameters)
                if name in PER_RUN:
                    raise UserError(f"{name} ({where}): is each run's own; leave it out")
    for key in ("method", "metric", "command", "parameters"):
        if key not in origins:
            raise UserError(f"{path}: has no {key}")
    return origins, parameters


def once(key: str, origin: str, origins: dict[str, str]) -> None:
    """Note where a key stands, unless it was there before."""
    if key in origins:
        raise UserError(f"{key} ({origin}): given twice, first in {origins[key]}")
    origins[key] = origin


def with_defaults(content: dict[str, Any], path: Path, parameters: dict[str, str]) -> dict[str, Any]:
    """What decides the runs, as the library takes it.

    Raises:
        UserError: the library would not take it.
    """
    library = sweeps_library()
    from sweeps.config import fill_parameter

    if not isinstance(content["metric"], dict) or not isinstance(content["metric"].get("name"), str):
        raise UserError(f"metric ({path}): must be as in {{name: val/accuracy, goal: maximize}}")
    for name, origin in parameters.items():
        values = content["parameters"][name]
        if isinstance(values, dict) and "parameters" in values:
            raise UserError(f"{name} ({origin}): cannot hold parameters; write each as section.key")
        try:
            known = isinstance(values, dict) and fill_parameter(name, values)
        except ValueError as error:
            raise UserError(f"{name} ({origin}): {error}") from None
        if not known:
            raise UserError(
                f"{name} ({origin}): {shown(str(values))} is no distribution; give value, values, or min and max "
                "as plain numbers (YAML takes 1e-4 for a text; write 0.0001)"
            )
    try:
        violations = library.schema_violations_from_proposed_config(content)
    except ValueError as error:
        violations = [str(error)]
    if violations:
        raise UserError(f"{path}: {violations[0]}")
    filled = library.SweepConfig({key: content[key] for key in DECIDES if key in content})
    filled["metric"] = {"goal": "minimize", "impute": "worst", **content["metric"]}
    return dict(filled)


def check_parameters(parameters: dict[str, Any], origins: dict[str, str]) -> None:
    """Raise UserError unless whatever a sweep may give a setting is within that setting's type and range."""
    for name, values in parameters.items():
        for value in possible(name, values):
            parse_value(Setting(name, str(value), origins[name]))


def possible(name: str, values: dict[str, Any]) -> Iterator[Any]:
    """All values that a parameter may have, or of a distribution its ends and what lies between them."""
    from sweeps.params import HyperParameter

    if "value" in values:
        yield values["value"]
    elif "values" in values:
        yield from values["values"]
    else:
        parameter = HyperParameter(name, values)
        yield from (plain(parameter.ppf(percentile)) for percentile in PERCENTILES)


def plain(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    return value.item() if hasattr(value, "item") else value


def check_command(sweep: Sweep, origin: str) -> Config:
    """The configuration of a run with the first of all values, as the command would give it to every process.

    Raises:
        UserError: the command would not start our program, or without the parameters, or so that it refuses them.
    """
    if not {"${args}", "${args_no_equals}"} & set(sweep.command):
        raise UserError(f"command ({origin}): has no ${{args}}, by which the parameters reach every process")
    first = {name: next(possible(name, values)) for name, values in sweep.definition["parameters"].items()}
    words = sweep.arguments(first)
    left = [word for word in words if word.startswith("${")]
    if left:
        raise UserError(f"command ({origin}): {shown(left[0])} is unknown here; use ${{args}}")
    if MODULE not in words:
        example = "[accelerate, launch, -m, ${program}, --config=debug, ${args}]"
        raise UserError(f"command ({origin}): does not start {MODULE}; write it as in {example}")
    return load(words[words.index(MODULE) + 1 :]).config


def check_metric(name: str, config: Config, origin: str) -> None:
    """Raise UserError unless a run of this configuration logs the metric as a number that changes."""
    known = plotted(config)
    if name not in known:
        near = difflib.get_close_matches(name.replace(".", "/"), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; they log {', '.join(known)}"
        raise UserError(f"metric {shown(name)} ({origin}): runs do not log it{hint}")

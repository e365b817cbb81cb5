"""A sweep's YAML file, in wandb's own schema, checked before anything starts.

wandb checks such a file on its server, and its agent would find out run by run that a parameter is no setting, or that
a value is out of its range.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnist_dist.commands.dashboard_panels import plotted
from mnist_dist.commands.sweep_search_space import example_values, grid_size, to_distribution
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.config.validation import check_key, shown
from mnist_dist.config.values import parse_value
from mnist_dist.config.yaml_files import Setting, compose, entries
from mnist_dist.utils.errors import UserError

MODULE = "mnist_dist.train"
KEYS = (
    *("name", "description", "project", "entity", "program", "command", "method"),
    *("metric", "parameters", "early_terminate", "run_cap"),
)
METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
PER_RUN = ("run.dir", "run.resume")
"""Settings that each run has a value of its own of."""


@dataclass(frozen=True)
class EarlyTermination:
    """wandb's hyperband: a run is compared with the others after min_iter, min_iter x eta, ... evaluations."""

    min_iter: int
    eta: int
    max_iter: float
    """Runs of so many evaluations are not compared any more; inf: there is no such limit."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep."""

    name: str
    definition: dict[str, Any]
    """method, metric (with its goal), parameters and early_terminate as in the file: what decides the runs."""
    command: tuple[str, ...]
    program: str
    run_cap: int = 0
    """Runs at most; 0: until the grid is done."""

    @property
    def metric(self) -> str:
        """The key of the rows in metrics.jsonl, such as `val.accuracy`."""
        return str(self.definition["metric"]["name"]).replace("/", ".")

    @property
    def goal(self) -> str:
        """`minimize` or `maximize`."""
        return str(self.definition["metric"]["goal"])

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that differ between runs."""
        return tuple(name for name, parameter in self.definition["parameters"].items() if "value" not in parameter)

    def search_space(self) -> dict[str, Any]:
        """Optuna's distribution of each parameter."""
        return {name: to_distribution(parameter) for name, parameter in self.definition["parameters"].items()}

    def early_terminate(self) -> EarlyTermination | None:
        """When runs are compared; None without early_terminate."""
        return (
            parse_early_terminate(self.definition["early_terminate"]) if "early_terminate" in self.definition else None
        )

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


def read_sweep(path: Path, count: int = 0) -> Sweep:
    """Read a sweep and check all of it.

    Args:
        count: runs at most, instead of the file's run_cap; 0: as the file says.

    Raises:
        UserError: the first thing that is wrong, with its line.
    """
    root, content = compose(path, build=True)
    origins, parameter_origins = find_origins(root, path)
    method = content["method"]
    if method not in METHODS:
        raise UserError(f"method={shown(str(method))} ({origins['method']}): must be one of {', '.join(METHODS)}")
    run_cap = content.get("run_cap", 0)
    if type(run_cap) is not int or run_cap < 0:
        raise UserError(f"run_cap={shown(str(run_cap))} ({origins['run_cap']}): must be a whole number, at least 1")
    if not isinstance(content["command"], list):
        raise UserError(f"command ({origins['command']}): must be a list of words")
    check_parameters(content["parameters"], parameter_origins, method)
    definition = {
        "method": method,
        "metric": parse_metric(content["metric"], origins["metric"]),
        "parameters": content["parameters"],
    }
    if "early_terminate" in content:
        definition["early_terminate"] = content["early_terminate"]
        try:
            parse_early_terminate(content["early_terminate"])
        except ValueError as error:
            raise UserError(f"early_terminate ({origins['early_terminate']}): {error}") from None
    sweep = Sweep(
        name=str(content.get("name") or path.stem),
        definition=definition,
        command=tuple(str(part) for part in content["command"]),
        program=str(content.get("program", MODULE)),
        run_cap=count or run_cap,
    )
    if method != "grid" and not sweep.run_cap:
        raise UserError(f"method={method} ({origins['method']}): never ends; give run_cap, or --count N")
    config = check_command(sweep, origins["command"])
    check_metric(definition["metric"]["name"], config, origins["metric"])
    return sweep


def find_origins(root: yaml.Node | None, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """File and line of each key, and of each parameter. Raises UserError for unknown, double and missing keys."""
    if root is None:
        raise UserError(f"{path}: is empty; a sweep has method, metric, command and parameters")
    origins: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for key, origin, node in entries(root, path, "what makes a sweep (method, metric, command, parameters, ...)"):
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; supported: {', '.join(KEYS)}"
            raise UserError(f"{key} ({origin}): no part of a sweep{hint}")
        add_origin(key, origin, origins)
        if key == "parameters":
            for name, where, _ in entries(node, path, "settings and their values"):
                check_key(name, where)
                add_origin(name, where, parameters)
                if name in PER_RUN:
                    raise UserError(f"{name} ({where}): each run has its own; leave it out")
    for key in ("method", "metric", "command", "parameters"):
        if key not in origins:
            raise UserError(f"{path}: has no {key}")
    if not parameters:
        raise UserError(f"parameters ({origins['parameters']}): is empty; give settings and their values")
    return origins, parameters


def add_origin(key: str, origin: str, origins: dict[str, str]) -> None:
    """Note the origin of a key. Raises UserError if the key has one already."""
    if key in origins:
        raise UserError(f"{key} ({origin}): given twice, first in {origins[key]}")
    origins[key] = origin


def parse_metric(metric: Any, origin: str) -> dict[str, Any]:
    """The metric with its goal.

    Raises:
        UserError: it is not one, or has a key that is not supported.
    """
    example = "must be as in {name: val/accuracy, goal: maximize}"
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"metric ({origin}): {example}")
    for key, value in metric.items():
        if key not in ("name", "goal", "target", "impute"):
            raise UserError(f"metric ({origin}): {shown(str(key))} is not supported; {example}")
        if key == "goal" and value not in GOALS:
            raise UserError(f"metric ({origin}): goal={shown(str(value))} must be one of {', '.join(GOALS)}")
        if key == "target" and type(value) not in (int, float):
            raise UserError(f"metric ({origin}): target={shown(str(value))} must be a number")
        if key == "impute" and value != "worst":
            raise UserError(f"metric ({origin}): impute={shown(str(value))} is not supported; use worst")
    return {"goal": "minimize", **metric}


def parse_early_terminate(early: Any) -> EarlyTermination:
    """When runs are compared, from early_terminate of the file.

    Raises:
        ValueError: what is wrong, or what Optuna's pruner cannot do.
    """
    if not isinstance(early, dict) or early.get("type") != "hyperband":
        raise ValueError("must be as in {type: hyperband, min_iter: 2, eta: 2}")
    numbers = {key: value for key, value in {"eta": 3, **early}.items() if key not in ("type", "strict")}
    if early.get("strict") not in (None, True):
        raise ValueError("strict=false is not supported; leave it out")
    for key, value in numbers.items():
        least = 2 if key == "eta" else 1
        if key not in ("min_iter", "max_iter", "s", "eta"):
            raise ValueError(f"{key!r:.40} is not supported; hyperband takes min_iter and eta, or max_iter, s and eta")
        if type(value) is not int or value < least:
            raise ValueError(f"{key}={value!r:.40} must be a whole number, at least {least}")
    if numbers.keys() == {"min_iter", "eta"}:
        return EarlyTermination(numbers["min_iter"], numbers["eta"], math.inf)
    if numbers.keys() != {"max_iter", "s", "eta"}:
        raise ValueError("give min_iter, or max_iter and s")
    min_iter, rest = divmod(numbers["max_iter"], numbers["eta"] ** min(numbers["s"], 64))
    if rest:
        raise ValueError(f"max_iter={numbers['max_iter']} must be a multiple of eta^s; or give min_iter")
    return EarlyTermination(min_iter, numbers["eta"], numbers["max_iter"])


def check_parameters(parameters: dict[str, Any], origins: dict[str, str], method: str) -> None:
    """Check that a sweep of this method can draw each parameter, and only values that its setting allows.

    Raises:
        UserError: the first one that is wrong.
    """
    for name, origin in origins.items():
        parameter = parameters[name]
        if not isinstance(parameter, dict):
            raise UserError(f"{name} ({origin}): must be as in {{values: [0.001, 0.01]}}, or {{min: 0.0, max: 0.5}}")
        if "parameters" in parameter:
            raise UserError(f"{name} ({origin}): cannot hold parameters; write each as section.key")
        try:
            distribution = to_distribution(parameter)
            for value in example_values(distribution):
                parse_value(Setting(name, str(value), origin))
            if method == "grid":
                grid_size(distribution)
        except ValueError as error:
            raise UserError(f"{name} ({origin}): {error}") from None


def check_command(sweep: Sweep, origin: str) -> Config:
    """The configuration of a run with the first of all values, as the command would give it to every process.

    Raises:
        UserError: the command would not start our program, or without the parameters, or so that it refuses them.
    """
    if not {"${args}", "${args_no_equals}"} & set(sweep.command):
        raise UserError(f"command ({origin}): has no ${{args}}, by which the parameters reach every process")
    first = {name: example_values(distribution)[0] for name, distribution in sweep.search_space().items()}
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
    if config.train.protocol == "honest" and name.startswith("test"):
        raise UserError(
            f"metric {shown(name)} ({origin}): not with train.protocol=honest: the sweep would choose by the test set; "
            "hold out images by data.val_size, and use val/accuracy"
        )

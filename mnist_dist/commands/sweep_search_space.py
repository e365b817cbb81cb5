"""The search space of a sweep: the distributions of wandb's sweep schema as Optuna's.

Every parameter becomes one Optuna distribution with the same values; what Optuna cannot draw is refused.
"""

from __future__ import annotations

import math
from fractions import Fraction
from types import ModuleType
from typing import Any

from mnist_dist.utils.errors import UserError

INSTALL = "sweeps need the package `optuna`: pip install 'mnist_dist[sweeps]'"
KEYS = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "q_log_uniform_values": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "inv_log_uniform": ("min", "max"),
}
"""The supported distributions with their keys. `q`, the step, is 1 unless given."""
SCALARS = (str, int, float, bool)
LIMIT = 1e15
"""Larger whole numbers are not exact for Optuna, which counts in floats."""


def import_optuna() -> ModuleType:
    """Optuna, which prints errors only from now on. Raises UserError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(INSTALL) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def to_distribution(parameter: dict[str, Any]) -> Any:
    """The Optuna distribution of one parameter of the YAML file; a constant is a categorical one of a single choice.

    Raises:
        ValueError: what is wrong, or what Optuna cannot draw and what can be used instead.
    """
    distributions = import_optuna().distributions
    kind = parameter.get("distribution") or infer_kind(parameter)
    if not isinstance(kind, str) or kind not in KEYS:
        raise ValueError(f"distribution {kind!r:.40} is not supported; supported: {', '.join(KEYS)}")
    wrong = [key for key in parameter if key not in (*KEYS[kind], "distribution")]
    missing = [key for key in KEYS[kind] if key not in parameter and key != "q"]
    if wrong or missing:
        reason = f"{wrong[0]!r:.40} is not supported" if wrong else f"{missing[0]} is missing"
        raise ValueError(f"{reason}; {kind} takes {', '.join(KEYS[kind])}")
    if kind in ("constant", "categorical"):
        values = [parameter["value"]] if kind == "constant" else parameter["values"]
        return distributions.CategoricalDistribution(to_choices(values))
    low, high, step = (to_number(key, parameter.get(key, 1)) for key in ("min", "max", "q"))
    if not low < high:
        raise ValueError(f"min {low} is not less than max {high}")
    whole = all(isinstance(number, int) for number in (low, high, step))
    if kind == "int_uniform":
        if not whole:
            raise ValueError("int_uniform takes whole numbers for min and max; use uniform for others")
        return distributions.IntDistribution(low, high)
    if kind == "uniform":
        return distributions.FloatDistribution(low, high)
    if kind == "q_uniform":
        if step <= 0 or (high - low) / step > LIMIT:
            raise ValueError(f"q {step} must be above 0, and not so small")
        if any(Fraction(str(number)) % Fraction(str(step)) for number in (low, high)):
            raise ValueError(f"min {low} and max {high} must be multiples of q {step}; or use values")
        distribution = distributions.IntDistribution if whole else distributions.FloatDistribution
        return distribution(low, high, step=step)
    low, high = to_log_bounds(kind, low, high)
    if kind == "q_log_uniform_values":
        if not (whole and step == 1):
            raise ValueError("q_log_uniform_values needs whole numbers and q 1; use values, or log_uniform_values")
        return distributions.IntDistribution(low, high, log=True)
    return distributions.FloatDistribution(low, high, log=True)


def infer_kind(parameter: dict[str, Any]) -> str:
    """The distribution that wandb assumes where a parameter names none. Raises ValueError if there is none."""
    if "value" in parameter or "values" in parameter:
        return "constant" if "value" in parameter else "categorical"
    if "min" not in parameter or "max" not in parameter:
        raise ValueError("has no distribution; give value, values, or min and max")
    return "int_uniform" if type(parameter["min"]) is type(parameter["max"]) is int else "uniform"


def to_choices(values: Any) -> list[Any]:
    """The choices of a categorical distribution; a list among them as the text that the command line takes.

    Raises:
        ValueError: there are none, one is there twice, or one is neither a plain value nor a flat list of them.
    """
    if not isinstance(values, list) or not values:
        raise ValueError("values must be a list of at least one value, as in {values: [0.001, 0.01]}")
    choices: list[Any] = []
    for value in values:
        parts = value if isinstance(value, list) else [value]
        if not all(type(part) in SCALARS for part in parts):
            raise ValueError("a value must be a number, a text, true, false, or a flat list of these")
        choice = str(value) if isinstance(value, list) else value
        if choice in choices:
            raise ValueError(f"{choice!s:.40} is there twice")
        choices.append(choice)
    return choices


def to_number(key: str, value: Any) -> float:
    """A number of at most LIMIT, an int where it is whole. Raises ValueError."""
    if type(value) not in (int, float):
        raise ValueError(f"{key} must be a plain number (YAML takes 1e-4 for a text; write 0.0001)")
    if not abs(value) <= LIMIT:
        raise ValueError(f"{key} must be between {-LIMIT:g} and {LIMIT:g}")
    return value


def to_log_bounds(kind: str, low: float, high: float) -> tuple[float, float]:
    """The smallest and the largest value on a log scale. log_uniform and inv_log_uniform give exponents of e.

    Raises:
        ValueError: not both are positive floats.
    """
    if not kind.endswith("_values"):
        exponents = (low, high) if kind == "log_uniform" else (-high, -low)
        try:
            low, high = (math.exp(exponent) for exponent in exponents)
        except OverflowError:
            low = 0.0
        if not 0 < low < high:
            raise ValueError(f"{kind} takes exponents of e for min and max; use log_uniform_values for the values")
    if low <= 0:
        raise ValueError(f"min {low} must be above 0 on a log scale; or use uniform")
    return low, high


def example_values(distribution: Any) -> list[Any]:
    """All choices of a categorical distribution; of a numeric one the smallest value, the middle and the largest."""
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    low, high = distribution.low, distribution.high
    return [low, (low + high) // 2 if isinstance(low, int) else (low + high) / 2, high]


def grid_size(distribution: Any) -> int:
    """The number of values of a distribution. Raises ValueError if they are not countable."""
    if hasattr(distribution, "choices"):
        return len(distribution.choices)
    if not distribution.step or distribution.log:
        raise ValueError("a grid takes value, values, int_uniform and q_uniform; or use method: random")
    low, high, step = (Fraction(str(number)) for number in (distribution.low, distribution.high, distribution.step))
    return int((high - low) / step) + 1


def grid_point(space: dict[str, Any], index: int) -> dict[str, Any] | None:
    """A point of the grid, in which the last parameter varies fastest; None beyond the last point."""
    point: dict[str, Any] = {}
    for name, distribution in reversed(space.items()):
        index, position = divmod(index, grid_size(distribution))
        if hasattr(distribution, "choices"):
            point[name] = distribution.choices[position]
        else:
            value = Fraction(str(distribution.low)) + position * Fraction(str(distribution.step))
            point[name] = type(distribution.low)(value)
    return None if index else {name: point[name] for name in space}

"""JSON as its standard has it: readers other than Python's refuse NaN and Infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dump_strict(value: Any) -> str:
    """A value of plain types as one line of JSON; nan and infinity become null.

    Raises:
        TypeError: it holds something else than plain types.
    """
    return json.dumps(without_nan(value), allow_nan=False)


def without_nan(value: Any) -> Any:
    """The value with what JSON has no number for replaced by None."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The base of the sections and of the configuration, and what a configuration knows of its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


@dataclass(frozen=True)
class Source:
    """Where a configuration came from. Any two are equal: configurations with the same settings are."""

    recipes: tuple[str, ...] = field(default=(), compare=False)
    """Names of the recipes, in order."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Setting to where it was given: `command line`, `argument`, or `FILE:LINE`. The others have their default."""


class FrozenModel(BaseModel):
    """Base of the configuration: immutable, no unknown keys, no conversion between types, finite numbers only.

    Raises:
        pydantic.ValidationError: on construction, for a value that is not allowed.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def check_printable(cls, value: Any) -> Any:
        """Refuse line breaks and control characters, which would break up error messages and tables."""
        for each in value.values() if isinstance(value, dict) else (value,):
            for text in each if isinstance(each, tuple) else (each,):
                if isinstance(text, str) and not text.isprintable():
                    raise ValueError("not printable")
        return value

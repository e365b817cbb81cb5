"""How `model.name` and the entries of `model.args` are spelled."""

from __future__ import annotations

from typing import Any, Union

MODELS = (
    "unshuffle",
    "compact",
    "cnn",
    "convnet",
    "basic",
    "deep_head",
    "deep_head_fixed",
    "allconv",
    "tiny",
    "tiny700",
)
"""The registered models, by name: known here, so that a typo is found before torch is imported."""
CODE_NAME = r"[^:\s][^:]*:[A-Za-z_][A-Za-z0-9_]*"
"""Spelling of a model by its code: FILE.py:FUNCTION or MODULE:FUNCTION."""
NAME_CHOICES: list[Any] = [{"enum": list(MODELS)}, {"pattern": f"^{CODE_NAME}$"}]
MODEL_NAME = rf"^({'|'.join(MODELS)}|{CODE_NAME})$"

Scalar = Union[bool, int, float, str]  # noqa: UP007  the spelling that pydantic and Python 3.10 share
Argument = Union[Scalar, tuple[Scalar, ...]]  # noqa: UP007
ARGUMENT_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
ARGUMENTS = "model.args"
"""The one setting that is a mapping; `model.args.width` is the key of one of its entries."""

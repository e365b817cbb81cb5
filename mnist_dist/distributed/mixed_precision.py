"""Mixed precision: autocast, the fp16 gradient scaler and the optimizer step that obeys it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper(NamedTuple):
    """An optimizer's steps as they are; as accelerate's wrapper, it says whether the last one was left out."""

    step: Callable[[], Any]
    step_was_skipped: bool = False

"""Learning rates as pure functions of the step: nothing to save, nothing to step in the right order."""

from __future__ import annotations

import math
from typing import Literal

from mnist_dist.config.schema import OptimConfig

ONECYCLE_START = 1 / 25  # of the peak, as in Smith & Topin 2018 (arXiv:1708.07120) and torch's OneCycleLR


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of the optimizer update number `step`, counted from 0, of `total_steps`.

    `warmup` is the fraction of steps that rise to the peak: linearly from near 0, or for onecycle along a cosine from
    1/25 of the peak. The rest falls to `final_lr` of the peak, which the last step reaches; constant stays.
    """
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        risen = (step + 1) / warmup_steps
        if config.schedule == "onecycle":
            return config.lr * (ONECYCLE_START + (1 - ONECYCLE_START) * half_cosine(risen))
        return config.lr * risen
    remaining = max(total_steps - 1 - warmup_steps, 1)
    fallen = min((step - warmup_steps) / remaining, 1.0)
    return config.lr * (1 - (1 - config.final_lr) * fall(fallen, config.schedule))


def fall(progress: float, schedule: Literal["constant", "linear", "cosine", "onecycle"]) -> float:
    """How far the rate has fallen, in [0, 1], after a fraction of the way down."""
    if schedule == "constant":
        return 0.0
    return progress if schedule == "linear" else half_cosine(progress)


def half_cosine(progress: float) -> float:
    """From 0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * progress)) / 2

"""Learning rate schedules as pure functions of the step.

Why not `torch.optim.lr_scheduler`: a scheduler has a state to save and must be stepped in step with the optimizer (one
prepared by accelerate steps once per process); a function of the step needs neither.
"""

from __future__ import annotations

import math
from typing import Literal

from mnist_dist.config.sections import OptimConfig

ONECYCLE_START = 1 / 25  # of the peak, as in Smith & Topin 2018 (arXiv:1708.07120) and torch's OneCycleLR


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of optimizer update `step`, counted from 0, of `total_steps`.

    Over the fraction `warmup` of the steps it rises to the peak `lr`: linearly from near 0, or with onecycle along a
    cosine from 1/25 of the peak. Then it falls to `final_lr` times the peak, reached at the last step; constant stays
    at the peak.
    """
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        progress = (step + 1) / warmup_steps
        if config.schedule == "onecycle":
            return config.lr * (ONECYCLE_START + (1 - ONECYCLE_START) * half_cosine(progress))
        return config.lr * progress
    decay_steps = max(total_steps - 1 - warmup_steps, 1)
    progress = min((step - warmup_steps) / decay_steps, 1.0)
    return config.lr * (1 - (1 - config.final_lr) * decay(progress, config.schedule))


def decay(progress: float, schedule: Literal["constant", "linear", "cosine", "onecycle"]) -> float:
    """How far the rate has fallen, from 0 (peak) to 1 (final), at a fraction `progress` of the steps after warm-up."""
    if schedule == "constant":
        return 0.0
    return progress if schedule == "linear" else half_cosine(progress)


def half_cosine(progress: float) -> float:
    """From 0 to 1 along half a period of a cosine."""
    return (1 - math.cos(math.pi * progress)) / 2

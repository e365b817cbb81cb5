"""A digest of what a configuration trains: equal for all seeds, folders, machines and trackers of one recipe."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mnist_dist.config.schema import Config, flat

NOT_DIGESTED = {
    *("run.dir", "run.seed", "run.resume", "run.device", "run.threads", "run.timeout", "run.quiet", "run.as_processes"),
    *("data.root", "data.source", "data.classes"),
    *("train.keep", "train.checkpoint_steps", "train.profile", "train.detect_anomaly", "train.protocol"),
}
"""Settings by which runs of one recipe may differ. Nor are those of `tracking` part of it."""


def config_sha256(config: Config) -> str:
    """SHA-256 of the settings that differ from their defaults, without those of NOT_DIGESTED.

    So a setting that a later version adds does not change it. Whoever changes a default changes recipes of one digest.
    """
    return hashlib.sha256(json.dumps(digested(config), sort_keys=True).encode()).hexdigest()


def digested(config: Config) -> dict[str, Any]:
    """The settings that the digest covers, by keys such as `optim.lr`."""
    defaults = flat(Config())
    return {
        key: value
        for key, value in flat(config).items()
        if key not in NOT_DIGESTED
        and not key.startswith("tracking.")
        and (key not in defaults or value != defaults[key])
    }

"""A trained network back from a run's folder, for the commands that use it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint import load_checkpoint, load_weights, newest_checkpoint, step_of
from mnist_dist.config import SECTIONS, Config
from mnist_dist.errors import UserError
from mnist_dist.models import ImageClassifier, create_model
from mnist_dist.run_folder import CHECKPOINTS


@dataclass(frozen=True)
class Restored:
    """A network in eval mode on the CPU (the moving average of the weights where the run had one), and its origin."""

    config: Config
    model: ImageClassifier
    step: int
    folder: Path


def restore(run: str, checkpoint: str = "latest") -> Restored:
    """Load a run's network.

    Args:
        run: the run's folder.
        checkpoint: `latest`, `best` (on the validation split), a step, or the path of a checkpoint's folder.

    Raises:
        UserError: no such run or checkpoint, or it is damaged.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"{run}: no such folder; give a run's folder, as the run printed it at its end")
    chosen = choose(folder, checkpoint)
    saved = load_checkpoint(chosen)
    config = read_config(saved.state, chosen)
    model = create_model(config.model.name)
    load_weights(model, saved.ema or saved.model, str(chosen))
    return Restored(config, model.eval(), step_of(chosen), folder)


def choose(folder: Path, checkpoint: str) -> Path:
    """The checkpoint's folder that is meant."""
    root = folder / CHECKPOINTS
    newest = newest_checkpoint(root, lambda text: print(f"mnist_dist: warning: {text}", file=sys.stderr))
    if checkpoint == "latest":
        if newest is None:
            raise UserError(f"{folder}: holds no whole checkpoint; give the folder of a run that wrote one")
        return newest
    if checkpoint == "best":
        best = load_checkpoint(newest).state["position"]["best"] if newest else {}
        if not best:
            raise UserError(f"{folder}: has no best checkpoint; that needs data.val_size above 0 and a whole epoch")
        return root / f"step-{best['step']:08d}"
    if checkpoint.isdigit():
        return root / f"step-{int(checkpoint):08d}"
    return Path(checkpoint).expanduser()


def read_config(state: dict[str, Any], source: Path) -> Config:
    """The configuration that a checkpoint's state holds."""
    try:
        sections = {
            section: kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in state["config"][section].items()})
            for section, kind in SECTIONS.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {source}: was written by another version of mnist_dist ({error})") from None
    return Config(**sections)

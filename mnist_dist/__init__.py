"""mnist_dist: train a CNN on MNIST from one CPU process to many machines, by configuration alone.

>>> from mnist_dist import Config, evaluate, load_model, train
>>> run = train(Config.from_recipe("debug", {"run.dir": "runs/first", "run.quiet": True}))
runs/first
>>> metrics, model = evaluate(run), load_model(run)
>>> metrics.accuracy == run.summary["test.accuracy"], model.weights_sha256 == run.summary["weights_sha256"]
(True, True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_dist.api import evaluate, load_model
    from mnist_dist.checkpoint.trained_model import TrainedModel
    from mnist_dist.config.schema import Config
    from mnist_dist.train import train
    from mnist_dist.training.metrics import Metrics
    from mnist_dist.training.run import Run
    from mnist_dist.utils.errors import Stopped, TrainingError, UserError

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Metrics",
    "Run",
    "Stopped",
    "TrainedModel",
    "TrainingError",
    "UserError",
    "evaluate",
    "load_model",
    "train",
]

MODULES = {
    "Config": "config.schema",
    "Metrics": "training.metrics",
    "Run": "training.run",
    "Stopped": "utils.errors",
    "TrainedModel": "checkpoint.trained_model",
    "TrainingError": "utils.errors",
    "UserError": "utils.errors",
    "evaluate": "api",
    "load_model": "api",
}
"""Public name to its module, which is imported when the name is used: `import mnist_dist` is cheap."""


def __getattr__(name: str) -> Any:
    if name == "train":  # the module is the function too: mnist_dist/train.py
        return import_module("mnist_dist.train")
    if name in MODULES:
        from mnist_dist.api import torch_importable

        with torch_importable():
            return getattr(import_module(f"mnist_dist.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

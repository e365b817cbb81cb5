"""Functions for Python programs, beside `mnist_dist.train`. torch is imported when one is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from mnist_dist.distributed.topology import resolve_topology, set_omp_wait_policy
from mnist_dist.utils.environment import restored_environment
from mnist_dist.utils.exit import library_function

if TYPE_CHECKING:
    from mnist_dist.checkpoint.trained_model import TrainedModel
    from mnist_dist.training.metrics import Metrics
    from mnist_dist.training.run import Run


@library_function
def load_model(
    run: Run | str | os.PathLike[str], checkpoint: str = "last", model: str | None = None, trust: bool = False
) -> TrainedModel:
    """Load the trained model of a run, on the CPU and in eval mode. With optim.ema, its weights are the average.

    Code that came with a run is not run unasked: a run whose model is not one of the package needs `model` or `trust`.

    Args:
        run: what `train` returned, or the folder of a run or of one of its checkpoints, or `last`: the newest run in
            runs/.
        checkpoint: `last`, `best` (on the validation split), a step (`430` or `step-00000430`), or the path of a
            checkpoint.
        model: the code that builds the model, `FILE.py:FUNCTION` or `MODULE:FUNCTION`.
        trust: whether to run the code that is in the run's folder, or that its configuration names.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or its model's code is not given or does not fit.

    >>> from mnist_dist import load_model
    >>> model = load_model("runs/digits")
    >>> model.config.model.name, model.step, model.training
    ('basic', 40, False)
    """
    with torch_importable():
        from mnist_dist.checkpoint.load_model import load_model
        from mnist_dist.checkpoint.trained_model import TrainedModel

    return TrainedModel(load_model(folder_of(run), checkpoint, model, trust))


@library_function
def evaluate(
    run: Run | str | os.PathLike[str],
    split: Literal["test", "val", "train"] = "test",
    checkpoint: str = "last",
    data_root: str | os.PathLike[str] | None = None,
    precision: Literal["no", "fp16", "bf16"] | None = None,
    model: str | None = None,
    trust: bool = False,
) -> Metrics:
    """Metrics of a run's model on a split, as `mnist-dist evaluate` computes them. Every process must call it.

    Args:
        run, checkpoint, model, trust: as in `load_model`.
        data_root: the folder of the run's data, if it was moved.
        precision: by default as in training.

    Raises:
        UserError: no such run or checkpoint, no data or not those of the run, or an empty split.
        TrainingError: another process of the run was lost.
        KeyboardInterrupt: also after another signal that asks to stop.

    >>> from mnist_dist import evaluate
    >>> metrics = evaluate("runs/digits", "val")
    >>> metrics.count, metrics.accuracy == metrics.correct / metrics.count
    (100, True)
    """
    topology = resolve_topology()
    with torch_importable():
        from mnist_dist.console.console import open_console
        from mnist_dist.training.run_evaluation import evaluate_run

    console = open_console(topology.is_main, quiet=False)
    root = None if data_root is None else os.fspath(data_root)
    return evaluate_run(topology, console, folder_of(run), split, checkpoint, root, precision, model, trust).metrics


@contextmanager
def torch_importable() -> Iterator[None]:
    """Within the block, torch may be imported for the first time, with OpenMP threads that sleep while they wait."""
    with restored_environment():
        set_omp_wait_policy()
        yield


def folder_of(run: Run | str | os.PathLike[str]) -> str:
    """The folder of a run."""
    return os.fspath(run if isinstance(run, (str, os.PathLike)) else run.folder)

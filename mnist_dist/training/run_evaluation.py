"""Evaluate the trained model of a run on one of its splits, on any number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from mnist_dist.checkpoint.load_model import load_model
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import read_splits
from mnist_dist.data.identity import check_split_data, short
from mnist_dist.data.prepare import is_default_root, provide_files, resolve_root
from mnist_dist.distributed.consistency import check_ranks_agree
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.training.evaluation import evaluate
from mnist_dist.training.metrics import Metrics
from mnist_dist.utils.errors import UserError

SPLITS = ("test", "val", "train")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a run's model on a split, the same on every rank, and what they are of."""

    metrics: Metrics
    step: int
    """Optimizer steps of the checkpoint."""
    classes: tuple[str, ...]
    """The name of each label."""
    digests: dict[str, str]
    """SHA-256 of the data: see `Splits`."""
    runtime_facts: dict[str, str]
    """Launcher, processes, device and precision."""


def evaluate_run(
    topology: Topology,
    console: Console,
    run: str,
    split: str,
    checkpoint: str,
    root: str | None,
    precision: str | None,
    model: str | None = None,
    trust: bool = False,
) -> Evaluation:
    """Evaluate the model of a run. Every rank must call it.

    Args:
        console: takes progress of a download, and warnings.
        run, checkpoint, model, trust: as in `load_model`.
        root: the folder of the run's data; None: the data.root of the run.
        precision: no, fp16 or bf16; None: as in training.

    Raises:
        UserError: no such run or checkpoint, no data or not those of the run, or an empty split.
        KeyboardInterrupt: a rank was asked to stop.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    if precision not in (None, *PRECISIONS):
        raise UserError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
    loaded = load_model(run, checkpoint, model, trust)
    config = loaded.config
    if config.run.device != "cpu":  # an accelerator that training insisted on is not needed here
        config = config.model_copy(update={"run": config.run.model_copy(update={"device": "auto"})})
    if precision:
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    name = config.data.name
    folder = resolve_root(config.data.root if root is None else root, name)
    if topology.is_local_main or not is_default_root(folder, name):
        provide_files(folder, config.data.source, console.print, name)
    with start_runtime(config, topology) as runtime:
        files = provide_files(folder, "local", console.print, name)
        splits = read_splits(files, config.data, config.run.seed, config.train_limit)
        network = runtime.to_device(loaded.model)
        mine: dict[str, dict[str, Any]] = {
            "the model's code": {name: short(digest) for name, digest in loaded.code.items()},
            "the checkpoint": {"step": loaded.step, "weights": short(weights_sha256(network))},
        }
        check_ranks_agree(runtime, mine | {"the data set": splits.shown_digests})
        check_split_data(split, loaded.digests, splits.digests, folder, console.warn)
        data = getattr(splits, split)
        if not len(data):
            raise UserError(f"split {split}: this run has none (data.val_size=0); use test or train")
        size, check_stop = config.train.eval_batch_size, partial(interrupt_if_asked, runtime)
        metrics = evaluate(network, data.to(runtime.device), config.data, runtime, size, check_stop)
        return Evaluation(metrics, loaded.step, config.data.class_names, splits.digests, runtime.describe())


def interrupt_if_asked(runtime: Runtime) -> None:
    """Raise KeyboardInterrupt if any rank was asked to stop: there is nothing to save. Every rank must call it."""
    if runtime.should_stop():
        raise KeyboardInterrupt

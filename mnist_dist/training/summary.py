"""summary.json: the results of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.data.dataset import Splits
from mnist_dist.data.identity import summary_keys as data_keys
from mnist_dist.distributed.device import peak_memory
from mnist_dist.models.summary import count_parameters
from mnist_dist.training.early_stopping import summary_keys
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.state import TrainingState
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.versions import versions


def summarize(trainer: Trainer, test: Metrics, resumed_from: Path | None) -> dict[str, Any]:
    """The content of summary.json: metrics, steps, times, hardware, versions and the SHA-256 of the weights; flat.

    Every rank must call it.

    Args:
        trainer: after training.
        test: metrics on the test set.
        resumed_from: the checkpoint that the run resumed from.
    """
    state, progress, runtime = trainer.state, trainer.progress, trainer.runtime
    images_per_second = progress.images / max(progress.seconds, 1e-9)
    held_out = trainer.held_out_metrics if trainer.held_out_split == "val" else None
    return (
        test.row("test")
        | (held_out.row("val") if held_out else {})
        | {
            "train.steps": progress.step,
            "train.epochs": progress.epoch,
            "train.images": progress.images,
            "train.seconds": round(progress.seconds, 3),
            "train.images_per_second": round(images_per_second, 1),
            "train.step_seconds": progress.seconds / max(progress.step, 1),
            "train.flops_per_second": round(state.flops_per_image * images_per_second),
            "train.skipped_steps": progress.scaler_skips + progress.nonfinite_skips,
            "train.rollbacks": progress.rollbacks,
            "train.protocol": state.config.train.protocol,
            **summary_keys(state),
            "memory.peak_bytes": max(runtime.all_gather_object(peak_memory(runtime.device))),
            **describe_resolved(state, trainer.data),
            "weights_sha256": weights_sha256(state.eval_model),
            "init_from": state.initial_weights.source or None,
            "init_sha256": state.initial_weights.sha256 or None,
            "resumed_from": str(resumed_from) if resumed_from else None,
            "run_id": trainer.run_id,
        }
        | versions()
        | test.details("test")
    )


def describe_resolved(state: TrainingState, data: Splits) -> dict[str, Any]:
    """What is resolved at run time: processes, machines, device, threads, shards, precision, parameters and data."""
    runtime = state.runtime
    return {
        "world_size": runtime.world_size,
        "machines": runtime.topology.machines,
        "device": runtime.device_name,
        "threads": runtime.threads,
        "shards": runtime.shards,
        "precision": runtime.precision,
        "model.name": state.config.model.name,
        "model.parameters": count_parameters(state.model),
        "data.name": data.name,
        "data.num_classes": len(data.class_names),
        **data_keys(data.digests),
    }

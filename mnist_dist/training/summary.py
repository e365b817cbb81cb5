"""What summary.json says of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.distributed.device import peak_memory
from mnist_dist.models.summary import count_parameters
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.versions import versions


def summarize(trainer: Trainer, test: Metrics, resumed_from: Path | None) -> dict[str, Any]:
    """The flat results of a run: test and validation metrics, work and time, machine, and the weights' digest.

    Every process must call it.
    """
    progress, runtime = trainer.progress, trainer.runtime
    images_per_second = progress.images / max(progress.seconds, 1e-9)
    held_out_metrics = (
        trainer.held_out_metrics.row("val") if trainer.held_out_metrics and trainer.held_out == "val" else {}
    )
    return (
        test.row("test")
        | held_out_metrics
        | {
            "train.steps": progress.step,
            "train.epochs": progress.epoch,
            "train.images": progress.images,
            "train.seconds": round(progress.seconds, 3),
            "train.images_per_second": round(images_per_second, 1),
            "train.step_seconds": progress.seconds / max(progress.step, 1),
            "train.flops_per_second": round(trainer.metric_logger.flops * images_per_second),
            "train.skipped_steps": progress.scaler_skips + progress.nonfinite_skips,
            "train.rollbacks": progress.rollbacks,
            "memory.peak_bytes": max(runtime.all_gather_object(peak_memory(runtime.device))),
            **resolved(trainer),
            "weights_sha256": weights_sha256(trainer.eval_model),
            "resumed_from": str(resumed_from) if resumed_from else None,
            "run_id": trainer.run_id,
        }
        | versions()
        | test.details("test")
    )


def resolved(trainer: Trainer) -> dict[str, Any]:
    """What the run's processes, machine and model turned out to be."""
    runtime = trainer.runtime
    return {
        "world_size": runtime.world_size,
        "machines": runtime.topology.machines,
        "device": runtime.device_name,
        "threads": runtime.threads,
        "shards": runtime.shards,
        "precision": runtime.precision,
        "model.name": trainer.config.model.name,
        "model.parameters": count_parameters(trainer.model),
    }

"""What summary.json says of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.distributed.device import peak_memory
from mnist_dist.models.summary import count_parameters
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.trainer import Loop
from mnist_dist.utils.versions import versions


def summarize(loop: Loop, test: Metrics, resumed_from: Path | None) -> dict[str, Any]:
    """The flat results of a run: test and validation metrics, work and time, machine, and the weights' digest.

    Every process must call it.
    """
    at, runtime = loop.at, loop.runtime
    images_per_second = at.images / max(at.seconds, 1e-9)
    watched = loop.watched.row("val") if loop.watched and loop.held_out == "val" else {}
    return (
        test.row("test")
        | watched
        | {
            "train.steps": at.step,
            "train.epochs": at.epoch,
            "train.images": at.images,
            "train.seconds": round(at.seconds, 3),
            "train.images_per_second": round(images_per_second, 1),
            "train.step_seconds": at.seconds / max(at.step, 1),
            "train.flops_per_second": round(loop.recorder.flops * images_per_second),
            "train.skipped_steps": at.skipped + at.left_out,
            "train.rollbacks": at.rollbacks,
            "memory.peak_bytes": max(runtime.gather(peak_memory(runtime.device))),
            **resolved(loop),
            "weights_sha256": weights_sha256(loop.network),
            "resumed_from": str(resumed_from) if resumed_from else None,
            "run_id": loop.run_id,
        }
        | versions()
        | test.details("test")
    )


def resolved(loop: Loop) -> dict[str, Any]:
    """What the run's processes, machine and model turned out to be."""
    runtime = loop.runtime
    return {
        "world_size": runtime.world_size,
        "machines": runtime.topology.machines,
        "device": runtime.device_name,
        "threads": runtime.threads,
        "shards": runtime.shards,
        "precision": runtime.precision,
        "model.name": loop.config.model.name,
        "model.parameters": count_parameters(loop.raw),
    }

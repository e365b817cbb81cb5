"""The model of a run as a wandb artifact: a run's folder with one checkpoint, which all commands accept.

    config.yaml
    checkpoints/step-00000215/...      complete, with its manifest

All versions belong to the artifact `model-<run id>`, over stops and resumes. Files are read without torch and without
the run's lock, so call this when training has ended: until then checkpoints are written and deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.tracking.media import wandb_key

Row = Mapping[str, Any]


def model_artifacts(
    wandb: Any, folder: Path, run_id: str, rows: Sequence[Row], summary: Row
) -> Iterator[tuple[Any, list[str]]]:
    """Artifacts of the newest checkpoint (alias `latest`) and of the best one (`best`), which may be the same.

    Their metadata are the run's id, step, epochs, the metrics of that step, and `weights_sha256` as in summary.json.

    Args:
        wandb: the module.
        folder: the run's folder.
        rows: the rows of its metrics.jsonl.
        summary: as in summary.json; empty if the run did not finish.

    Returns:
        artifacts with their aliases.

    Raises:
        OSError, ValueError, KeyError: a checkpoint cannot be read.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step-*"), key=step_of)
    if not checkpoints:
        return
    newest = checkpoints[-1]
    _, progress = read_state(newest)
    best = progress["best"].get("step")
    for checkpoint in checkpoints:  # the newest last, because wandb moves `latest` to each new version
        aliases = ["best"] * (step_of(checkpoint) == best) + ["latest"] * (checkpoint == newest)
        if aliases:
            tested = {key: value for key, value in summary.items() if key.startswith("test.")}
            facts = describe(checkpoint, rows) | (tested if checkpoint == newest else {})
            artifact = wandb.Artifact(f"model-{run_id}", "model", metadata={"run_id": run_id, **to_metadata(facts)})
            artifact.add_file(str(folder / "config.yaml"), skip_cache=True)
            artifact.add_dir(str(checkpoint), name=f"checkpoints/{checkpoint.name}", skip_cache=True)
            yield artifact, aliases


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(checkpoint.name.partition("-")[2])


def read_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's state.json, and its training progress, which version 0.1 called `position`."""
    state = json.loads((checkpoint / "state.json").read_bytes())
    return state, state["progress"] if "progress" in state else state["position"]


def describe(checkpoint: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """A checkpoint's step, epochs and model, the metrics of that step, and the digest of the evaluated weights."""
    state, progress = read_state(checkpoint)
    metrics: dict[str, Any] = {}
    for row in rows:
        if row["step"] == progress["step"]:
            metrics |= {key: value for key, value in row.items() if key.startswith(("val.", "test."))}
    averaged = checkpoint / "ema.safetensors"
    return {
        "step": progress["step"],
        "epochs": progress["epoch"],
        "model.name": state["config"]["model"]["name"],
        "weights_sha256": weights_sha256(averaged if averaged.exists() else checkpoint / "model.safetensors"),
        **metrics,
    }


def to_metadata(facts: Row) -> dict[str, Any]:
    """Facts without lists, and with wandb's keys."""
    return {wandb_key(key): value for key, value in facts.items() if not isinstance(value, list)}


def weights_sha256(path: Path) -> str:
    """The digest of `checkpoint.tensors.weights_sha256`, from the file: safetensors stores the bytes that it hashes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    result = hashlib.sha256()
    for name, tensor in sorted(json.loads(data[8:start]).items()):
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            result.update(name.encode() + data[start + first : start + last])
    return result.hexdigest()

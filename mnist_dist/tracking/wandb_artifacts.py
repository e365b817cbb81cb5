"""The model of a run as a wandb artifact: a run's folder with one checkpoint in it, which every command takes.

    config.yaml
    checkpoints/step-00000215/...      whole, with its manifest

All versions are of the artifact `model-<run id>`, over stops and resumes. Reads files only: no torch, no lock. Call it
when training has ended, because checkpoints come and go until then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_dist.tracking.media import wandb_key

Row = Mapping[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl; empty where it cannot be read."""
    try:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    except (OSError, ValueError):
        return []


def model_artifacts(
    wandb: Any, folder: Path, run_id: str, rows: Sequence[Row], summary: Row
) -> Iterator[tuple[Any, list[str]]]:
    """The artifacts of the newest checkpoint (alias `latest`) and of the best one (`best`), which may be the same.

    Their metadata say the run, the step and the epoch, the weights' digest as summary.json has it, and what was
    measured of them.

    Args:
        folder: the run's.
        rows: of its metrics.jsonl.
        summary: as in summary.json; empty where the run did not finish.

    Raises:
        OSError, ValueError, KeyError: a checkpoint is not what was written.
    """
    kept = sorted((folder / "checkpoints").glob("step-*"), key=step_of)
    if not kept:
        return
    newest = kept[-1]
    _, progress = read_state(newest)
    best = progress["best"].get("step")
    for checkpoint in kept:  # the newest last: wandb calls each one `latest`, until the next
        aliases = ["best"] * (step_of(checkpoint) == best) + ["latest"] * (checkpoint == newest)
        if aliases:
            final = summary if checkpoint == newest else {}
            facts = describe(checkpoint, rows) | {key: value for key, value in final.items() if key.startswith("test.")}
            artifact = wandb.Artifact(f"model-{run_id}", "model", metadata={"run_id": run_id, **plain(facts)})
            artifact.add_file(str(folder / "config.yaml"), skip_cache=True)
            artifact.add_dir(str(checkpoint), name=f"checkpoints/{checkpoint.name}", skip_cache=True)
            yield artifact, aliases


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(checkpoint.name.partition("-")[2])


def read_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's state.json, and its training progress, which version 0.1 called `position`."""
    state = json.loads((checkpoint / "state.json").read_bytes())
    return state, state["progress"] if "progress" in state else state["position"]


def describe(checkpoint: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """What is known of a checkpoint: its position, its evaluation, and the digest of what is evaluated of it."""
    state, progress = read_state(checkpoint)
    measured: dict[str, Any] = {}
    for row in rows:
        if row["step"] == progress["step"]:
            measured |= {key: value for key, value in row.items() if key.startswith(("val.", "test."))}
    averaged = checkpoint / "ema.safetensors"
    return {
        "step": progress["step"],
        "epochs": progress["epoch"],
        "model.name": state["config"]["model"]["name"],
        "weights_sha256": weights_sha256(averaged if averaged.exists() else checkpoint / "model.safetensors"),
        **measured,
    }


def plain(facts: Row) -> dict[str, Any]:
    """Facts without lists, which metadata are no place for."""
    return {wandb_key(key): value for key, value in facts.items() if not isinstance(value, list)}


def weights_sha256(path: Path) -> str:
    """The digest that `checkpoint.weights_sha256` gives for a model: its tensors lie in the file as they are hashed."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    result = hashlib.sha256()
    for name, tensor in sorted(json.loads(data[8:start]).items()):
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            result.update(name.encode() + data[start + first : start + last])
    return result.hexdigest()

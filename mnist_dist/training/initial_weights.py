"""model.init_from: the weights that a new run starts from are those of another run, or of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.checkpoint.format import MAX_TENSOR_BYTES, TENSOR_FILES
from mnist_dist.checkpoint.load_model import find_checkpoint
from mnist_dist.checkpoint.run_paths import newest_run
from mnist_dist.checkpoint.state import InitialWeights, TrainingImages
from mnist_dist.checkpoint.tensors import parse_tensors, tensors_sha256
from mnist_dist.config.schema import Config
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import Splits, split_indices
from mnist_dist.data.identity import short
from mnist_dist.distributed.runtime import Runtime
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home, read_bounded

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Source:
    """Weights as rank 0 read them. Plain values, so it can be sent to other processes."""

    path: str
    content: bytes
    """A safetensors file."""
    is_average: bool
    """Whether they are the run's average of weights (optim.ema)."""
    model: str
    """Options that name the run's model; empty for a file."""
    trained_on: tuple[TrainingImages, ...]


def load_initial_weights(
    model: nn.Module, config: Config, data: Splits, run_dir: Path, runtime: Runtime, console: Console
) -> InitialWeights:
    """Load the weights that model.init_from names into a new model, and print what was loaded. Every rank must call it.

    Only rank 0 reads the files, for all ranks.

    Args:
        model: on its device, not wrapped or sharded yet.
        data: the images of this run, to compare them with those that the weights were trained on.
        run_dir: folder of this run.

    Raises:
        UserError: there are no such weights, or they are of another model.
    """
    source = runtime.run_on_main(lambda: read_source(config, run_dir))
    try:
        tensors = parse_tensors(source.content, allow_metadata=True)
        new = find_new_tensors(model, tensors)
    except ValueError as error:
        other = source.model not in ("", describe_model(config.to_dict()["model"]))
        hint = f"; they are of {source.model}" if other else ""
        raise UserError(f"model.init_from={source.path}: {error}{hint}") from None
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in new}, strict=False)
    console.print(f"initial weights: {describe_loaded(model, source, new)}{describe_other_data(source, data)}")
    if leak := describe_leak(source, data, config):
        console.warn(leak)
    return InitialWeights(source.path, tensors_sha256(tensors), list(source.trained_on))


def read_source(config: Config, run_dir: Path) -> Source:
    """Read the weights that model.init_from names: a run's as `mnist-dist evaluate` takes them, or a file's.

    Args:
        run_dir: folder of this run, which may not be its own source.

    Raises:
        UserError: there are none, or they are damaged.
    """
    named = config.model.init_from
    try:
        path = newest_run(but=run_dir) if named == "last" else expand_home(named)
        if path.is_file() or path.suffix == SUFFIX:
            return Source(str(path), read_file(path), False, "", ())
        checkpoint = find_checkpoint(str(path), "last")
    except UserError as error:
        raise UserError(f"model.init_from={error}") from None
    if run_dir.resolve() in checkpoint.folder.resolve().parents:
        raise UserError(
            f"model.init_from={named}: is in run.dir={run_dir}, whose checkpoints run.resume={config.run.resume} "
            "deletes; choose another --run.dir"
        )
    saved = checkpoint.parse()
    settings = Config().to_dict()
    settings = {section: {**values, **saved.state["config"].get(section, {})} for section, values in settings.items()}
    train, data = settings["train"], settings["data"]
    limit = data["limit"] or train["overfit_batches"] * train["batch_size"]
    images = TrainingImages(saved.state["data"].get("train", ""), settings["run"]["seed"], data["val_size"], limit)
    earlier = InitialWeights.from_json(saved.state["initial_weights"]).trained_on
    content = checkpoint.files[TENSOR_FILES["ema" if saved.ema else "model"]]
    model = describe_model(settings["model"])
    return Source(str(checkpoint.folder), content, bool(saved.ema), model, (*earlier, images))


def describe_model(settings: Mapping[str, Any]) -> str:
    """The options that name a model, given the settings of `model`."""
    arguments = [f" --model.args.{name}={value}" for name, value in settings["args"].items()]
    return f"--model.name={settings['name']}{''.join(arguments)}"


def read_file(path: Path) -> bytes:
    """The content of a file that should be safetensors.

    Raises:
        UserError: it cannot be read, or has another suffix.
    """
    if path.suffix != SUFFIX:
        raise UserError(
            f"{path}: is not a {SUFFIX} file, and no other is loaded, since a pickled one may run code; convert "
            "it by safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
        )
    try:
        return read_bounded(path.resolve(), MAX_TENSOR_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def find_new_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors of a model that weights cannot be loaded into, because their head has another number of classes.

    Args:
        tensors: the weights; of the same names and, but for the head, shapes.

    Returns:
        The names of the head's tensors; empty if all shapes agree.

    Raises:
        ValueError: the weights are of another model, or not finite.
    """
    own = model.state_dict()
    if unmatched := sorted(own.keys() ^ tensors.keys()):
        name = unmatched[0]
        raise ValueError(f"{name} is {'missing' if name in own else 'not part of this model'}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}, the model's is {own[name].dtype}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    differing = [name for name in own if own[name].shape != tensors[name].shape]
    modules = {name.rpartition(".")[0] for name in differing}
    classes = {(tensors[name].shape[:1], own[name].shape[:1]) for name in differing}
    same_inputs = all(own[name].shape[1:] == tensors[name].shape[1:] for name in differing)
    if differing and not (len(modules) == len(classes) == 1 and same_inputs):
        name = differing[0]
        raise ValueError(f"{name} is {tuple(tensors[name].shape)}, the model's is {tuple(own[name].shape)}")
    return differing


def describe_loaded(model: nn.Module, source: Source, new: Sequence[str]) -> str:
    """Which tensors were loaded and which are new, on one line."""
    own = model.state_dict()
    average = " (the average of weights)" if source.is_average else ""
    if not new:
        return f"all {len(own)} tensors of {source.path}{average}"
    names = ", ".join(f"{name} {tuple(own[name].shape)}" for name in new)
    return f"{len(own) - len(new)} of {len(own)} tensors of {source.path}{average}; new, for other classes: {names}"


def describe_other_data(source: Source, data: Splits) -> str:
    """That the weights were trained on another training set, as a clause; empty if not, or if it is not known."""
    before, now = source.trained_on[-1].sha256 if source.trained_on else "", data.digests.get("train", "")
    if before in ("", now):
        return ""
    return f", trained on other data (sha256 {short(before)}, this run's is {short(now)})"


def describe_leak(source: Source, data: Splits, config: Config) -> str:
    """A warning if the weights were trained on images that this run holds out for validation; empty if not."""
    held_out = split_indices(data.total, config.data.val_size, config.run.seed)[1]
    for images in source.trained_on:
        if images.sha256 != data.digests.get("train"):
            continue
        trained_on = split_indices(data.total, images.val_size, images.seed, images.limit)[0]
        if seen := int(torch.isin(held_out, trained_on).sum()):
            return (
                f"model.init_from={source.path}: these weights were trained on {seen} of this run's {len(held_out)} "
                "validation images, so its val metrics, best checkpoint and early stopping are too good; "
                f"--run.seed={images.seed} --data.val_size={images.val_size} hold out the same images as before"
            )
    return ""

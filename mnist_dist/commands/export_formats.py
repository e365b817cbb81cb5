"""The formats of `mnist-dist export`: torch.export's archive, ONNX (also in 8 bits), and safetensors."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.checkpoint.tensors import dump_tensors, parse_tensors, weights_sha256
from mnist_dist.config.schema import Config, flat
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.loader import normalize
from mnist_dist.models import classifier
from mnist_dist.utils.strict_json import dump_strict

FACTS = "mnist_dist.json"
"""Name under which an exported file keeps what `facts_of` returns."""
CALIBRATION_IMAGES = 1000
BATCH = 1000
NOT_SHARED = (
    *("run.dir", "run.resume", "data.root", "model.init_from"),
    *("tracking.project", "tracking.entity", "tracking.notes", "tracking.group"),
)
"""Settings that say where the run was, or who made it."""


class ImageGraph(nn.Module):
    """A trained model with its normalisation: from images as they are to logits and probabilities.

    Args:
        loaded: the trained model.
        is_float: whether images are float32 from 0 to 1, not uint8.
    """

    def __init__(self, loaded: LoadedModel, is_float: bool) -> None:
        super().__init__()
        self.model, self.is_float = loaded.model, is_float
        self.config: DataConfig = loaded.config.data

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 (B, K), of images (B, 28, 28)."""
        pixels = images.unsqueeze(1)
        logits = self.model(normalize(pixels * 255 if self.is_float else pixels, self.config))
        return logits, classifier.probabilities(self.model, logits)


def facts_of(loaded: LoadedModel, images: str) -> dict[str, Any]:
    """What an exported file says about itself: input, class names, and where it comes from.

    Args:
        images: `uint8` or `float`.
    """
    config = loaded.config
    return {
        "input": images,
        "classes": list(config.data.class_names),
        "data.name": config.data.name,
        "model.name": config.model.name,
        "step": loaded.step,
        "weights_sha256": weights_sha256(loaded.model),
        **{f"data.{name}_sha256": digest for name, digest in loaded.digests.items()},
    }


@torch.inference_mode()
def reference_logits(loaded: LoadedModel, images: Tensor) -> Tensor:
    """Logits float32 (N, K) of images uint8 (N, 28, 28), as the trainer computes them without mixed precision."""
    parts = [loaded.model(normalize(part[:, None], loaded.config.data)) for part in images.split(BATCH)]
    return torch.cat(parts).float()


def write_graph(path: Path, loaded: LoadedModel, facts: dict[str, Any]) -> None:
    """Write the model's graph: as ONNX if the path ends in .onnx, else as torch.export's archive.

    Args:
        facts: as from `facts_of`.
    """
    is_float = facts["input"] == "float"
    example = torch.zeros(2, 28, 28, dtype=torch.float32 if is_float else torch.uint8)
    graph = ImageGraph(loaded, is_float).eval()
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own code
        program = torch.export.export(graph, (example,), dynamic_shapes=({0: batch},))
        if path.suffix == ".onnx":
            write_onnx(path, program, facts)
        else:
            archive = io.BytesIO()  # not the path: torch gives no OSError for one that cannot be written
            torch.export.save(program, archive, extra_files={FACTS: dump_strict(facts)})
            path.write_bytes(archive.getvalue())


def write_onnx(path: Path, program: Any, facts: dict[str, Any]) -> None:
    """Write a graph of torch.export's as ONNX, with the facts as metadata."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = ["logits", "probabilities"]
    onnx = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=names, verbose=False)
    assert onnx is not None
    onnx.model.metadata_props[FACTS] = dump_strict(facts)
    onnx.save(path)


def quantize(path: Path, images: Tensor, facts: dict[str, Any]) -> None:
    """Round an ONNX model to 8 bits, in place, with the ranges of activations that images show.

    Args:
        images: uint8 (N, 28, 28), of the training set.
        facts: as from `facts_of`.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pixels = images.numpy() if facts["input"] == "uint8" else (images.numpy() / 255).astype(np.float32)

    class Batches(CalibrationDataReader):
        """Images for the ranges of activations, a hundred at a time."""

        def __init__(self) -> None:
            self.batches = iter(np.array_split(pixels, max(len(pixels) // 100, 1)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    prepared, rounded = (path.with_name(f"{path.stem}.{name}{path.suffix}") for name in ("prepared", "int8"))
    logging.getLogger().setLevel(logging.ERROR)  # it advises what is done here already
    try:
        quant_pre_process(str(path), str(prepared))
        quantize_static(
            str(prepared),
            str(rounded),
            Batches(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(str(rounded))
        onnx.helper.set_model_props(model, {FACTS: dump_strict(facts | {"int8": True})})
        onnx.save(model, str(path))
    finally:
        for file in (prepared, rounded):
            file.unlink(missing_ok=True)


def write_safetensors(path: Path, loaded: LoadedModel, facts: dict[str, Any], images: Tensor) -> Tensor:
    """Write the weights with the facts and the settings as metadata; the logits (N, K) of the weights read back.

    Args:
        images: uint8 (N, 28, 28).
    """
    from safetensors.torch import load_file, save

    metadata = {FACTS: dump_strict(facts), "config": json.dumps(shared_settings(loaded.config)), "format": "pt"}
    tensors = parse_tensors(dump_tensors(loaded.model.state_dict()))  # copies, contiguous and on the CPU
    path.write_bytes(save(tensors, metadata))
    model = copy.deepcopy(loaded.model)
    model.load_state_dict(load_file(path))
    return reference_logits(replace(loaded, model=model), images)


def shared_settings(config: Config) -> dict[str, dict[str, Any]]:
    """The settings that may leave this machine, by section; those of NOT_SHARED have their default."""
    settings, defaults = config.to_dict(), flat(Config())
    for key in NOT_SHARED:
        section, _, name = key.partition(".")
        settings[section][name] = defaults[key]
    return settings

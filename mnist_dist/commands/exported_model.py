"""Read a model that `mnist-dist export` wrote, and run it: ONNX by ONNX Runtime, .pt2 by torch.export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_dist.commands.export_formats import FACTS
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.strict_json import parse_strict

SUFFIXES = (".onnx", ".pt2")
BATCH = 1000
Graph = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From images (B, 28, 28) to logits and probabilities (B, K)."""


class ExportedModel:
    """A model from a file: from images uint8 (N, 28, 28) to logits and probabilities, float32 (N, K).

    Args:
        graph: what computes a batch.
        facts: what the file says about itself, as `export_formats.facts_of` returns it.
    """

    def __init__(self, graph: Graph, facts: dict[str, Any]) -> None:
        self.graph, self.facts = graph, facts
        self.classes: tuple[str, ...] = tuple(facts["classes"])

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities of images uint8 (N, 28, 28)."""
        pixels = images.float() / 255 if self.facts["input"] == "float" else images
        logits, probabilities = zip(*(self.graph(part) for part in pixels.split(BATCH)), strict=True)
        return torch.cat(logits), torch.cat(probabilities)


def open_exported(path: Path) -> ExportedModel:
    """The model of a file ending in .onnx or .pt2.

    A .pt2 is code that torch runs: open only those of people you trust. An ONNX file needs onnxruntime.

    Raises:
        UserError: no such file, or not one that `mnist-dist export` wrote.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: must end in {' or '.join(SUFFIXES)}, as `mnist-dist export` writes them")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        to = "onnx" if path.suffix == ".onnx" else "torch-export"
        raise UserError(f"{path}: {what}; `mnist-dist export RUN --to {to}` writes one")
    try:
        graph, text = (open_onnx if path.suffix == ".onnx" else open_archive)(path)
        facts = parse_strict(text.encode())
        if not {"input", "classes"} <= facts.keys():
            raise ValueError("it lacks the names of the classes")
    except Exception as error:  # whatever onnxruntime and torch raise for a broken file
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: is not a model that `mnist-dist export` wrote ({reason})") from None
    return ExportedModel(graph, facts)


def open_onnx(path: Path) -> tuple[Graph, str]:
    """The graph of an ONNX file, and its facts as JSON."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return run, session.get_modelmeta().custom_metadata_map[FACTS]


def open_archive(path: Path) -> tuple[Graph, str]:
    """The graph of torch.export's archive, and its facts as JSON."""
    files = {FACTS: ""}
    program = torch.export.load(path, extra_files=files)
    return program.module(), files[FACTS]

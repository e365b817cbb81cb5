"""Tensors on disk and in memory: safetensors parsed with bounds, weights loaded by name, the digest of a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import MAX_JSON_BYTES
from mnist_dist.utils.strict_json import parse_strict, type_error


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors as safetensors stores them: contiguous, none sharing memory with another."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a model, which must have exactly these, of these shapes and types.

    Raises:
        UserError: names the first tensor that does not fit.
    """
    own = model.state_dict()
    odd = sorted(own.keys() ^ tensors.keys())
    if odd:
        raise UserError(f"{source}: {odd[0]} is {'missing' if odd[0] in own else 'not part of this model'}")
    for name, tensor in own.items():
        theirs = tensors[name]
        if theirs.shape != tensor.shape or theirs.dtype != tensor.dtype:
            raise UserError(
                f"{source}: {name} is {theirs.dtype} {tuple(theirs.shape)}, the model's {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    model.load_state_dict(dict(tensors))


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over a model's state: names sorted, each name then its tensor's contiguous little-endian bytes.

    Two runs are the same if and only if this is equal.
    """
    result = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        result.update(name.encode())
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        result.update(raw.numpy().tobytes())
    return result.hexdigest()


TENSOR_NAME = re.compile(r"[A-Za-z0-9_./-]{1,200}")


DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


MAX_DIMENSIONS = 8


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: it is none, or one that we do not write: a huge header, odd names, types or shapes, a name twice.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_JSON_BYTES, len(data) - 8):
        raise ValueError("its header is larger than the file or than any we write")
    for name, tensor in parse_strict(data[8 : 8 + length]).items():
        if not TENSOR_NAME.fullmatch(name):
            raise ValueError(f"{name!r:.40} is no tensor's name")
        if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
        if type_error(tensor["dtype"], str) or tensor["dtype"] not in DTYPES:
            raise ValueError(f"{name} has a type that no model has")
        if (
            type_error(tensor["shape"], list[int])
            or len(tensor["shape"]) > MAX_DIMENSIONS
            or min([0, *tensor["shape"]]) < 0
        ):
            raise ValueError(f"{name} has a shape that no tensor has")
    try:
        return load(data)
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError, AssertionError) as error:
        raise ValueError(f"is no safetensors file ({' '.join(str(error).split())[:100]})") from None

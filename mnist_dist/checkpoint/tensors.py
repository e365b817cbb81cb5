"""Named tensors: to and from safetensors bytes, into a model, and the SHA-256 of a model's weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import MAX_JSON_BYTES
from mnist_dist.utils.strict_json import parse_strict, type_error

TENSOR_NAME = re.compile(r"[A-Za-z0-9_./-]{1,200}")
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
MAX_DIMENSIONS = 8


def copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory with each other or with the originals."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def dump_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file with these tensors, of any device and memory format.

    Raises:
        ValueError: safetensors cannot store them.
    """
    try:
        return save(copy_to_cpu(tensors))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def parse_tensors(data: bytes, allow_metadata: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. The header is checked before memory is allocated for tensors.

    Args:
        allow_metadata: ignore the texts that other programs put into the header.

    Raises:
        ValueError: not a safetensors file, or a header that this program does not write: too large, or with odd or
            repeated names, dtypes or shapes.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_JSON_BYTES, len(data) - 8):
        raise ValueError("its header is larger than the file or than any we write")
    header = parse_strict(data[8 : 8 + length])
    if allow_metadata:
        header.pop("__metadata__", None)
    for name, tensor in header.items():
        check_header_entry(name, tensor)
    try:
        return load(data)
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError, AssertionError) as error:
        raise ValueError(f"is not a safetensors file ({' '.join(str(error).split())[:100]})") from None


def check_header_entry(name: str, entry: object) -> None:
    """Raise ValueError unless this is how a safetensors header describes a tensor of a model or an optimizer."""
    if not TENSOR_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.40} is not a tensor's name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
    if type_error(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has a dtype that no model uses")
    shape = entry["shape"]
    if type_error(shape, list[int]) or len(shape) > MAX_DIMENSIONS or min([0, *shape]) < 0:
        raise ValueError(f"{name} has an impossible shape")


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a model, which must have exactly these names, shapes and dtypes.

    Args:
        source: where the tensors come from, for the message.

    Raises:
        UserError: names the first tensor that does not fit; the model is unchanged.
    """
    own = model.state_dict()
    unmatched = sorted(own.keys() ^ tensors.keys())
    if unmatched:
        name = unmatched[0]
        raise UserError(f"{source}: {name} is {'missing' if name in own else 'not part of this model'}")
    for name, tensor in own.items():
        given = tensors[name]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise UserError(
                f"{source}: {name} is {given.dtype} {tuple(given.shape)}, the model's {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    model.load_state_dict(dict(tensors))


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's state dict. Two runs trained the same weights if and only if their digests are equal."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names sorted, each name then its tensor's contiguous little-endian bytes.

    The memory format does not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()

"""Small data sets of any layout and any number of classes, as the files of the known sets are: see `data.sets`."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_dist.data.sets import DATA_SETS, ROLES

TYPES = {"ubyte": (0x08, ">u1"), "byte": (0x09, ">i1"), "short": (0x0B, ">i2"), "int": (0x0C, ">i4")}
"""End of a file's name to the code of the element type in its header, and the type as numpy names it."""


def idx_bytes(tensor: Tensor, kind: str = "ubyte") -> bytes:
    """A raw IDX file."""
    code, dtype = TYPES[kind]
    return (
        struct.pack(f">HBB{tensor.ndim}I", 0, code, tensor.ndim, *tensor.shape)
        + tensor.numpy().astype(np.dtype(dtype)).tobytes()
    )


def draw_set(num_classes: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a bright row and a bright column that say the class.

    Each class occurs if there are enough images, the last one in any case.

    Returns:
        images uint8 (N, 28, 28), labels int64 (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=generator)
    labels[: min(num_classes, count)] = torch.arange(num_classes)[-count:]
    images = torch.randint(0, 100, (count, 28, 28), generator=generator)
    images[torch.arange(count), labels % 28] += 155
    images[torch.arange(count), :, labels // 28 % 28] += 100
    return images.clamp(max=255).to(torch.uint8), labels


def write_known_set(
    folder: Path, name: str, num_classes: int, train: int, test: int, kind: str = "", packed: bool = False
) -> None:
    """Write the four files of a set as its authors do: transposed, with other labels, as a table, packed.

    Args:
        folder: created with its parents.
        name: data.name.
        kind: type of the labels of `idx`, such as `short`.
    """
    data_set = DATA_SETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in enumerate((train, test)):
        images, labels = draw_set(num_classes, count, seed=split)
        labels = labels + data_set.first_label
        if data_set.label_columns:  # further columns hold what nobody should take for a label
            labels = torch.stack([labels, *[labels + 100] * (data_set.label_columns - 1)], 1)
        images_name, labels_name = (data_set.name_of(role) for role in ROLES[2 * split : 2 * split + 2])
        kind = kind or labels_name.rpartition("-")[2]
        contents = {
            images_name: idx_bytes(images.mT if data_set.transposed else images),
            f"{labels_name.rpartition('-')[0]}-{kind}": idx_bytes(labels, kind),
        }
        for file, content in contents.items():
            path = folder / (f"{file}.gz" if packed else file)
            path.write_bytes(gzip.compress(content, 1) if packed else content)

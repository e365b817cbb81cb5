"""A finished run that needs no training: the one of version 0.1.0 that is kept in `tests/checkpoint`, with its data."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from mnist_dist.data.idx import write_idx

KEPT = Path(__file__).parents[1] / "checkpoint" / "run_of_0_1_0"


def copy_kept_run(folder: Path) -> Path:
    """Put the run into `folder/run`, and its data into `folder/digits`, where it expects them; returns the folder."""
    shutil.copytree(KEPT, folder / "run")
    write_set(folder / "digits")
    return folder


def write_set(folder: Path) -> None:
    """The data of the kept run: a pattern that needs no random numbers, and a bright row whose place is the class."""
    folder.mkdir()
    for name, count in (("train", 200), ("t10k", 50)):
        index, row, column = torch.arange(count).view(-1, 1, 1), torch.arange(28).view(-1, 1), torch.arange(28)
        images, labels = (index * 7 + row * 13 + column * 29) % 60, torch.arange(count) % 10
        images[torch.arange(count), 4 + 2 * labels] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte", images.to(torch.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels.to(torch.uint8))

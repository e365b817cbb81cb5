"""The identity of a data set: the SHA-256 of its training set and of its test set, and what a difference means.

A path says nothing about what is in the files. The digests are in the summary and in each checkpoint, so that a run
goes on, and is evaluated, with the images that it was trained on. All functions take them as `{"train": ..., "test":
...}`, 64 hex digits each; checkpoints of version 0.1.0 have none, and then nothing is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mnist_dist.utils.errors import UserError

SHOWN_DIGITS = 12


def content_digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of images and labels in their order, as 64 hex digits; about 1 ms per megabyte.

    Args:
        images: uint8 (N, 28, 28) or (N, 1, 28, 28), on the CPU.
        labels: (N,) of any integer type, on the CPU.
    """
    sha256 = hashlib.sha256(f"{len(images)} images of {images.shape[-2]}x{images.shape[-1]} pixels\n".encode())
    sha256.update(images.contiguous().numpy().data)
    sha256.update(labels.to(torch.int64).contiguous().numpy().astype("<i8", copy=False).data)
    return sha256.hexdigest()


def short(digest: str) -> str:
    """The first digits of a digest, for people."""
    return digest[:SHOWN_DIGITS]


def summary_keys(digests: Mapping[str, str]) -> dict[str, str]:
    """The digests under the keys that summary.json and the tracker give them."""
    return {f"data.{name}_sha256": digest for name, digest in digests.items()}


def check_resumable_data(
    saved: Mapping[str, str],
    saved_root: str,
    found: Mapping[str, str],
    root: Path,
    checkpoint: Path,
    warn: Callable[[str], None],
) -> None:
    """Refuse to resume with another training set; warn of another test set.

    Args:
        saved: the digests in the checkpoint.
        saved_root: data.root in the checkpoint's configuration.
        found: the digests of the files in `root`.

    Raises:
        UserError: the training set is another one.
    """
    before = saved_root or "the default folder"
    if differs("train", saved, found):
        raise UserError(
            f"{checkpoint}: was trained on other data: sha256 {short(saved['train'])} in {before}, but "
            f"{short(found['train'])} in {root}; name the folder of the same data with --data.root=DIR, or start anew "
            "in another --run.dir"
        )
    if differs("test", saved, found):
        warn(
            f"the test set in {root} (sha256 {short(found['test'])}) is not the one that this run began with "
            f"({short(saved['test'])} in {before}): test metrics before and after this step are not of the same images"
        )


def check_split_data(
    split: str, saved: Mapping[str, str], found: Mapping[str, str], root: Path, warn: Callable[[str], None]
) -> None:
    """Refuse to evaluate a run on other images than its own; warn if those of the other set are not its own.

    Args:
        split: `train`, `val` or `test`, which is evaluated.
        saved: the digests in the run's checkpoint.
        found: those of the sets that were read, in `root`.

    Raises:
        UserError: the set that the split is taken from is another one.
    """
    used, other = ("test", "train") if split == "test" else ("train", "test")
    if differs(used, saved, found):
        raise UserError(
            f"{root}: its {used} set is not the one of this run: sha256 {short(found[used])} instead of "
            f"{short(saved[used])}; name the folder of the run's data with --data.root=DIR"
        )
    if differs(other, saved, found):
        warn(
            f"{root}: its {other} set is not the one of this run (sha256 {short(found[other])} instead of "
            f"{short(saved[other])}); the {used} set is"
        )


def differs(name: str, saved: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Whether both have a digest of this set, and they differ."""
    return name in saved and name in found and saved[name] != found[name]

"""Read and write IDX files, the format of MNIST and data sets like it, raw or gz.

The header is big-endian: two zero bytes, one byte for the element type, one for the number of dimensions, then each
dimension as a 32-bit integer. The reader reads no more than the header promises and allocates no more than the file can
hold, so a damaged or hostile file costs one line of error and no memory. torchvision's reader takes raw files only, and
answers damage with a bare assertion.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mnist_dist.config.data_sets import MAX_CLASSES
from mnist_dist.utils.errors import UserError

SIDE = 28
MAX_ITEMS = 1_000_000
UINT8 = 0x08
INTEGERS = {UINT8: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4"}
"""Code of an element type in the header to the type, as numpy names it."""
GZIP_MAGIC = b"\x1f\x8b"
MAX_GZIP_RATIO = 1040  # deflate reaches 1032:1 at most
CHUNK_BYTES = 1 << 20


def read_images(path: str | os.PathLike[str]) -> Tensor:
    """The images of an IDX file, raw or gz: uint8 (N, 28, 28), 1 <= N <= 1 000 000.

    Raises:
        UserError: the file is unreadable, damaged, or holds anything but 28x28 images.
    """
    return read_idx(Path(path), (SIDE, SIDE), "images")


@dataclass(frozen=True)
class LabelFormat:
    """What the labels of a data set look like in its files, and which are allowed."""

    num_classes: int = 10
    """0: any number up to MAX_CLASSES."""
    first: int = 0
    """The label of the first class."""
    columns: int = 0
    """Columns of a table, of which the first one is the label; 0: the file is a list of labels."""
    kinds: tuple[int, ...] = (UINT8,)
    """Element types of INTEGERS that are allowed."""
    hint: str = ""
    """What to do about another label, for the end of the error."""


def read_labels(path: str | os.PathLike[str], form: LabelFormat = LabelFormat()) -> Tensor:
    """The labels of an IDX file, raw or gz: (N,), each 0 to the number of classes - 1, 1 <= N <= 1 000 000.

    They are uint8 if only bytes are allowed, else int64.

    Raises:
        UserError: the file is unreadable, damaged, or holds anything but such labels.
    """
    labels = read_idx(Path(path), (form.columns,) if form.columns else (), "labels", form.kinds)
    labels = labels[:, 0] if form.columns else labels
    last = form.first + (form.num_classes or MAX_CLASSES) - 1
    wrong = (labels < form.first) | (labels > last)
    if wrong.any():
        position = int(wrong.nonzero()[0])
        raise UserError(
            f"{path}: label {position} is {int(labels[position])}; labels must be {form.first} to {last}{form.hint}"
        )
    return (labels - form.first).contiguous()


def read_pair(
    images_path: str | os.PathLike[str], labels_path: str | os.PathLike[str], form: LabelFormat = LabelFormat()
) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 28, 28) and their labels (N,), as `read_labels` gives them.

    Raises:
        UserError: as `read_images` and `read_labels`, or the two counts differ.
    """
    images, labels = read_images(images_path), read_labels(labels_path, form)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path}: {len(images)} images, but {labels_path}: {len(labels)} labels; "
            "bring two files that belong together"
        )
    return images, labels


def read_idx(path: Path, item: tuple[int, ...], what: str, kinds: tuple[int, ...] = (UINT8,)) -> Tensor:
    """The tensor (N, *item) of an IDX file that must hold items of this shape: uint8, or int64 of other integers.

    Args:
        what: "images" or "labels", for messages.
        kinds: element types of INTEGERS that are allowed.
    """
    with open_content(path) as (content, max_bytes):
        header = content.read(4 + 4 * (1 + len(item)))
        count, kind = check_header(path, header, item, what, kinds)
        promised = count * math.prod(item) * np.dtype(INTEGERS[kind]).itemsize
        if len(header) + promised > max_bytes:
            raise UserError(f"{path}: truncated: {count} {what} promised, fewer there; replace the file")
        data = bytearray(promised)
        if read_into(memoryview(data), content) < promised:
            raise UserError(f"{path}: truncated: {count} {what} promised, fewer there; replace the file")
        if content.read(1):
            raise UserError(f"{path}: goes on after the {count} {what} that its header promises; replace the file")
    if kinds == (UINT8,):
        return torch.frombuffer(data, dtype=torch.uint8).view(count, *item)
    return torch.from_numpy(np.frombuffer(data, INTEGERS[kind]).astype(np.int64)).view(count, *item)


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file's content, unpacked if it is gzip data, and an upper bound of its bytes.

    Raises:
        UserError: the file is missing, not regular, unreadable, or damaged gzip data; also while the content is read.
    """
    try:
        if not path.is_file():  # reading a pipe or a device might never end
            found = "is not a file" if path.exists() else "no such file"
            raise UserError(f"{path}: {found}; name an IDX file, raw or gz")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as content:
                    yield content, size * MAX_GZIP_RATIO  # type: ignore[misc]
            else:
                yield file, size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip data ({error}); replace the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


def check_header(
    path: Path, header: bytes, item: tuple[int, ...], what: str, kinds: tuple[int, ...]
) -> tuple[int, int]:
    """The number of items that the header promises, and their element type.

    Raises:
        UserError: it is not the header of such items.
    """
    if len(header) < 4 or header[:2] != b"\x00\x00":
        raise UserError(f"{path}: not an IDX file (begins with {header[:4].hex(' ') or 'nothing'}); replace the file")
    kind, dimensions = header[2], header[3]
    if kind not in kinds:
        wanted = f"bytes (0x{UINT8:02x})" if kinds == (UINT8,) else "whole numbers"
        raise UserError(f"{path}: IDX elements of type 0x{kind:02x}; only {wanted} are {what}")
    if dimensions != 1 + len(item):
        raise UserError(
            f"{path}: an IDX file of {dimensions} dimensions, but {what} have {1 + len(item)}; "
            "are images and labels swapped?"
        )
    if len(header) < 4 + 4 * dimensions:
        raise UserError(f"{path}: truncated within its header; replace the file")
    count, *rest = struct.unpack(f">{dimensions}I", header[4:])
    if tuple(rest) != item:
        size, wanted = "x".join(map(str, rest)), "x".join(map(str, item))
        unit = "pixels" if what == "images" else "columns"
        raise UserError(f"{path}: {what} of {size} {unit}; only {wanted} can be used")
    if not 1 <= count <= MAX_ITEMS:
        raise UserError(f"{path}: {count} {what}; a file must have 1 to {MAX_ITEMS}")
    return int(count), kind


def read_into(view: memoryview, content: BinaryIO) -> int:
    """Read into `view` until it is full or the content ends. Returns the number of bytes read."""
    done = 0
    while done < len(view):
        # In chunks, because a gzip stream copies what it is asked for.
        count = content.readinto(view[done : done + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def write_idx(path: str | os.PathLike[str], tensor: Tensor) -> None:
    """Write a uint8 tensor of any shape as a raw IDX file, atomically and fsynced.

    Raises:
        UserError: the file cannot be written.
        ValueError: the tensor is not uint8.
    """
    if tensor.dtype != torch.uint8:
        raise ValueError(f"IDX files of {tensor.dtype} are not written here, only of torch.uint8")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    data = bytearray(max(1, tensor.numel()))
    torch.frombuffer(data, dtype=torch.uint8)[: tensor.numel()] = tensor.detach().cpu().flatten()
    try:
        with open(temporary, "xb") as file:
            file.write(struct.pack(f">HBB{tensor.ndim}I", 0, UINT8, tensor.ndim, *tensor.shape))
            file.write(memoryview(data)[: tensor.numel()])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)

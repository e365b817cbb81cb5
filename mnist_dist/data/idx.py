"""Read and write IDX files, the format of MNIST and its like, raw or gz.

The header is big-endian: two zero bytes, one byte for the element type, one for the number of dimensions, then each
dimension as a 32-bit integer. Nothing is read beyond what the header promises, and nothing allocated beyond what the
file can hold: a damaged or hostile file costs one error message.
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
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mnist_dist.utils.errors import UserError

SIDE = 28
CLASSES = 10
MAX_ITEMS = 1_000_000
UINT8 = 0x08
GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_RATIO = 1040  # deflate reaches 1032:1 at most, so a shorter gz file cannot hold what its header promises
CHUNK = 1 << 20


def read_images(path: str | os.PathLike[str]) -> Tensor:
    """The images of an IDX file, raw or gz: uint8 (N, 28, 28), 1 <= N <= 1 000 000.

    Raises:
        UserError: unreadable, damaged, or not 28x28 images; names the file and what is wrong with it.
    """
    return read(Path(path), (SIDE, SIDE), "images")


def read_labels(path: str | os.PathLike[str]) -> Tensor:
    """The labels of an IDX file, raw or gz: uint8 (N,), each 0 to 9, 1 <= N <= 1 000 000.

    Raises:
        UserError: unreadable, damaged, not labels, or a label above 9; names the file and what is wrong with it.
    """
    labels = read(Path(path), (), "labels")
    wrong = labels >= CLASSES
    if wrong.any():
        position = int(wrong.nonzero()[0])
        raise UserError(f"{path}: label {position} is {int(labels[position])}; labels must be 0 to {CLASSES - 1}")
    return labels


def read_pair(images_path: str | os.PathLike[str], labels_path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 28, 28) and their labels uint8 (N,).

    Raises:
        UserError: as `read_images` and `read_labels`, or the two counts differ.
    """
    images, labels = read_images(images_path), read_labels(labels_path)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path}: {len(images)} images, but {labels_path}: {len(labels)} labels; "
            "bring two files that belong together"
        )
    return images, labels


def write_idx(path: str | os.PathLike[str], tensor: Tensor) -> None:
    """Write a uint8 tensor of any shape as a raw IDX file: whole and on disk, or not at all.

    Raises:
        UserError: the file cannot be written.
        ValueError: not uint8.
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


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file's content, unpacked if it begins as gzip does, and the most bytes that content can have.

    Raises:
        UserError: no such file, not a file, unreadable, or damaged gzip data, here or while it is read.
    """
    try:
        if not path.is_file():  # a pipe or a device would wait for ever, or never end
            found = "is not a file" if path.exists() else "no such file"
            raise UserError(f"{path}: {found}; name an IDX file, raw or gz")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as content:
                    yield content, size * DEFLATE_RATIO  # type: ignore[misc]
            else:
                yield file, size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip data ({error}); replace the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


def read(path: Path, item: tuple[int, ...], what: str) -> Tensor:
    """The uint8 tensor (N, *item) of an IDX file that must hold such `what` ("images" or "labels")."""
    with open_content(path) as (content, most):
        header = content.read(4 + 4 * (1 + len(item)))
        count = check_header(path, header, item, what)
        promised = count * math.prod(item)
        if len(header) + promised > most:
            raise UserError(f"{path}: truncated: {count} {what} promised, fewer there; replace the file")
        data = bytearray(promised)
        if fill(memoryview(data), content) < promised:
            raise UserError(f"{path}: truncated: {count} {what} promised, fewer there; replace the file")
        if content.read(1):
            raise UserError(f"{path}: goes on after the {count} {what} that its header promises; replace the file")
    return torch.frombuffer(data, dtype=torch.uint8).view(count, *item)


def check_header(path: Path, header: bytes, item: tuple[int, ...], what: str) -> int:
    """The number of items that a header of the right kind promises; UserError for any other header."""
    if len(header) < 4 or header[:2] != b"\x00\x00":
        raise UserError(f"{path}: not an IDX file (begins with {header[:4].hex(' ') or 'nothing'}); replace the file")
    kind, dimensions = header[2], header[3]
    if kind != UINT8:
        raise UserError(f"{path}: IDX elements of type 0x{kind:02x}; only bytes (0x{UINT8:02x}) are {what}")
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
        raise UserError(f"{path}: {what} of {size} pixels; only {wanted} can be used")
    if not 1 <= count <= MAX_ITEMS:
        raise UserError(f"{path}: {count} {what}; a file must have 1 to {MAX_ITEMS}")
    return int(count)


def fill(view: memoryview, content: BinaryIO) -> int:
    """Read into `view` until it is full or the content ends; the number of bytes read."""
    done = 0
    while done < len(view):
        # In chunks, since a gzip stream makes a copy of each.
        count = content.readinto(view[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done

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
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mnist_dist.utils.errors import UserError

SIDE = 28
NUM_CLASSES = 10
MAX_ITEMS = 1_000_000
UINT8 = 0x08
GZIP_MAGIC = b"\x1f\x8b"
MAX_GZIP_RATIO = 1040  # deflate reaches 1032:1 at most
CHUNK_BYTES = 1 << 20


def read_images(path: str | os.PathLike[str]) -> Tensor:
    """The images of an IDX file, raw or gz: uint8 (N, 28, 28), 1 <= N <= 1 000 000.

    Raises:
        UserError: the file is unreadable, damaged, or holds anything but 28x28 images.
    """
    return read_idx(Path(path), (SIDE, SIDE), "images")


def read_labels(path: str | os.PathLike[str]) -> Tensor:
    """The labels of an IDX file, raw or gz: uint8 (N,), each 0 to 9, 1 <= N <= 1 000 000.

    Raises:
        UserError: the file is unreadable, damaged, or holds anything but labels from 0 to 9.
    """
    labels = read_idx(Path(path), (), "labels")
    wrong = labels >= NUM_CLASSES
    if wrong.any():
        position = int(wrong.nonzero()[0])
        raise UserError(f"{path}: label {position} is {int(labels[position])}; labels must be 0 to {NUM_CLASSES - 1}")
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


def read_idx(path: Path, item: tuple[int, ...], what: str) -> Tensor:
    """The uint8 tensor (N, *item) of an IDX file that must hold items of this shape.

    Args:
        what: "images" or "labels", for messages.
    """
    with open_content(path) as (content, max_bytes):
        header = content.read(4 + 4 * (1 + len(item)))
        count = check_header(path, header, item, what)
        promised = count * math.prod(item)
        if len(header) + promised > max_bytes:
            raise UserError(f"{path}: truncated: {count} {what} promised, fewer there; replace the file")
        data = bytearray(promised)
        if read_into(memoryview(data), content) < promised:
            raise UserError(f"{path}: truncated: {count} {what} promised, fewer there; replace the file")
        if content.read(1):
            raise UserError(f"{path}: goes on after the {count} {what} that its header promises; replace the file")
    return torch.frombuffer(data, dtype=torch.uint8).view(count, *item)


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


def check_header(path: Path, header: bytes, item: tuple[int, ...], what: str) -> int:
    """The number of items that the header promises. Raises UserError unless it is the header of such items."""
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

"""The IDX reader: exact on good files, one line on bad ones, bounded on hostile ones."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnist_dist.data.idx import MAX_ITEMS, read_images, read_labels, read_pair, write_idx
from mnist_dist.utils.errors import UserError

MEGABYTE = 1 << 20


def header(*shape: int, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)


def image_bytes(count: int = 3) -> bytes:
    return header(count, 28, 28) + bytes(i % 251 for i in range(count * 784))


GOOD = image_bytes()


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_reads_raw_and_gz_whatever_the_name(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(GOOD) if packed else GOOD)
    images = read_images(path)
    assert images.shape == (3, 28, 28)
    assert images.dtype == torch.uint8
    assert images.flatten().tolist() == list(GOOD[16:])


def test_reads_gz_of_several_members(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(GOOD[:100]) + gzip.compress(GOOD[100:]))
    assert read_images(path).flatten().tolist() == list(GOOD[16:])


def test_written_files_are_read_back(tmp_path: Path) -> None:
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    labels = torch.tensor([0, 9, 4, 4, 1], dtype=torch.uint8)
    write_idx(tmp_path / "images", images.transpose(1, 2))  # not contiguous
    write_idx(tmp_path / "labels", labels)
    read = read_pair(tmp_path / "images", tmp_path / "labels")
    assert read[0].equal(images.transpose(1, 2))
    assert read[1].equal(labels)
    assert (tmp_path / "labels").read_bytes() == header(5) + bytes([0, 9, 4, 4, 1])
    assert sorted(os.listdir(tmp_path)) == ["images", "labels"]


def test_writing_fails_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_idx(tmp_path / "folder", torch.zeros(1, dtype=torch.uint8))
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(ValueError, match="uint8"):
        write_idx(tmp_path / "floats", torch.zeros(1))


BAD_IMAGES = {
    "empty file": (b"", "not an IDX file (begins with nothing)"),
    "other magic": (b"\x89PNG" + GOOD, "not an IDX file (begins with 89 50 4e 47)"),
    "three bytes": (GOOD[:3], "not an IDX file (begins with 00 00 08)"),
    "header only in part": (GOOD[:11], "truncated within its header"),
    "float elements": (header(1, 28, 28, kind=0x0D) + bytes(784 * 4), "type 0x0d"),
    "labels instead": (header(3) + bytes(3), "1 dimensions, but images have 3"),
    "32x32": (header(1, 32, 32) + bytes(1024), "images of 32x32 pixels; only 28x28"),
    "truncated": (GOOD[:-1], "truncated: 3 images promised"),
    "trailing byte": (GOOD + b"x", "goes on after the 3 images"),
    "no image": (header(0, 28, 28), "0 images; a file must have 1"),
    "too many": (header(MAX_ITEMS + 1, 28, 28), f"{MAX_ITEMS + 1} images"),
    "truncated gz": (gzip.compress(GOOD)[:-9], "damaged gzip data"),
    "gz with a wrong checksum": (gzip.compress(GOOD)[:-8] + bytes(8), "damaged gzip data"),
    "gz with trailing data": (gzip.compress(GOOD + b"x"), "goes on after the 3 images"),
    "gz with less": (gzip.compress(GOOD[:-1]), "truncated: 3 images promised"),
    "gz magic alone": (b"\x1f\x8b", "damaged gzip data"),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_bad_images_cost_one_line(tmp_path: Path, what: str) -> None:
    content, message = BAD_IMAGES[what]
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_images(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(header(4) + bytes([0, 9, 10, 11]))
    with pytest.raises(UserError, match="label 2 is 10; labels must be 0 to 9"):
        read_labels(tmp_path / "labels")


def test_counts_must_be_equal(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(GOOD)
    (tmp_path / "labels").write_bytes(header(2) + bytes(2))
    with pytest.raises(UserError, match=r"images: 3 images, but .*labels: 2 labels"):
        read_pair(tmp_path / "images", tmp_path / "labels")


def test_what_is_not_a_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("absent", "no such file"), ("", "is not a file"), ("pipe", "is not a file")):
        with pytest.raises(UserError, match=message):
            read_images(tmp_path / name)


@pytest.mark.skipif(not os.path.isfile("/proc/self/mem"), reason="needs Linux's /proc")
def test_a_file_whose_reading_fails() -> None:
    with pytest.raises(UserError, match=r"/proc/self/mem: cannot be read \(Input/output error\)"):
        read_images("/proc/self/mem")


@pytest.fixture
def peak() -> Iterator[None]:
    """Fails the test if Python ever holds more than 8 MB."""
    tracemalloc.start()
    yield
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < 8 * MEGABYTE


@pytest.mark.usefixtures("peak")
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "images", "wb", compresslevel=1) as file:
        file.write(header(1, 28, 28))
        for _ in range(64):
            file.write(bytes(MEGABYTE))
    with pytest.raises(UserError, match="goes on after the 1 images"):
        read_images(tmp_path / "images")


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_promises_much_allocates_nothing(tmp_path: Path, packed: bool) -> None:
    content = header(MAX_ITEMS, 28, 28) + bytes(100)
    (tmp_path / "images").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match="truncated"):
        read_images(tmp_path / "images")


@st.composite
def almost_idx(draw: st.DrawFn) -> bytes:
    """A valid file, then truncated, extended, with bytes changed, perhaps compressed, and changed again."""
    content = bytearray(draw(st.sampled_from([image_bytes(1), image_bytes(2), header(3) + bytes([1, 2, 3])])))

    def mutate(data: bytearray) -> None:
        for position, value in draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=3)):
            if position < len(data):
                data[position] = value
        cut = draw(st.none() | st.integers(0, len(data)))
        del data[len(data) if cut is None else cut :]
        data.extend(draw(st.binary(max_size=4)))

    mutate(content)
    if draw(st.booleans()):
        content = bytearray(gzip.compress(bytes(content), mtime=0))
        mutate(content)
    return bytes(content)


@settings(max_examples=400, deadline=None)
@given(content=st.binary(max_size=64) | almost_idx())
def test_any_bytes_give_tensors_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    for read, item in ((read_images, (28, 28)), (read_labels, ())):
        tensor, error = outcome(read, path)
        if tensor is None:
            assert "\n" not in str(error)
        else:
            assert tensor.dtype == torch.uint8
            assert tensor.shape == (len(tensor), *item)
            assert 1 <= len(tensor) <= 3


def outcome(read: Callable[[Path], Tensor], path: Path) -> tuple[Tensor | None, UserError | None]:
    try:
        return read(path), None
    except UserError as error:
        return None, error

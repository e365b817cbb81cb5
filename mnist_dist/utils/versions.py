"""Which code and which versions this process runs, to be compared between machines."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mnist_dist

CLOCK_SECONDS = 5.0
"""By which the clocks of machines may differ before it is worth a word."""


def software() -> dict[str, str]:
    """What must be the same on every process: versions, without the kind of build, and a digest of this package."""
    packages = {name: installed(name).partition("+")[0] for name in ("torch", "accelerate")}
    return {"mnist_dist": mnist_dist.__version__, **packages, "code": code_digest()}


def installed(package: str) -> str:
    """A package's version; `not installed` if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def code_digest(folder: Path = Path(mnist_dist.__file__).parent) -> str:
    """The first 12 digits of the SHA-256 over a package's modules: their names and their content. Takes 2 ms."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def describe_clocks(clocks: list[float]) -> str | None:
    """One line if clocks that were read at once, one a rank, are far apart."""
    first, last = min(clocks), max(clocks)
    if last - first <= CLOCK_SECONDS:
        return None
    ahead, behind = clocks.index(last), clocks.index(first)
    return (
        f"the clock of rank {ahead} is {last - first:.0f} s ahead of rank {behind}'s: times in logs and metrics "
        "of this run do not fit together; set the machines' clocks (NTP)"
    )

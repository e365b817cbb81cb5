"""Versions of the installed packages, and a digest of this package's code."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mnist_dist

RECORDED = ("torch", "torchvision", "accelerate", "wandb", "safetensors")
"""Packages whose versions a run records, because they decide its numbers and files."""


def installed(package: str) -> str:
    """The version of a package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions that a run records in its summary, by keys such as `versions.torch`."""
    found = {"mnist_dist": mnist_dist.__version__, "python": platform.python_version()}
    return {f"versions.{name}": text for name, text in (found | {name: installed(name) for name in RECORDED}).items()}


def software() -> dict[str, str]:
    """What must be equal on every rank: versions, without the build (`+cpu`, `+cu130`), and the digest of the code."""
    packages = {name: installed(name).partition("+")[0] for name in ("torch", "accelerate")}
    return {"mnist_dist": mnist_dist.__version__, **packages, "code": code_digest()}


def code_digest(folder: Path = Path(mnist_dist.__file__).parent) -> str:
    """The first 12 hex digits of the SHA-256 over the names and contents of a package's .py files. Takes 2 ms."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]

"""Which code and which versions this process runs, to be compared between machines."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mnist_dist


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


PACKAGES = ("torch", "torchvision", "accelerate", "wandb", "safetensors")


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what decides the numbers."""
    found = {"versions.mnist_dist": mnist_dist.__version__, "versions.python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[f"versions.{package}"] = version(package)
        except PackageNotFoundError:
            found[f"versions.{package}"] = "not installed"
    return found

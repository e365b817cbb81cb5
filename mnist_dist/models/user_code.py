"""Code of the user's own: importing FILE.py or a module, its source files, and its exceptions in one line.

A file is compiled from the bytes that its digest is taken of, never from a cache.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import mnist_dist
from mnist_dist.config.model_file import is_file_name, read_code
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home

PACKAGE, STANDARD_LIBRARY = Path(mnist_dist.__file__).parent, Path(os.__file__).parent
INSTALLED = {"site-packages", "dist-packages"}
MAX_MESSAGE = 300

_imported: set[str] = set()
"""Modules that the files of earlier runs in this process imported from their folders: imported anew each time."""


@dataclass(frozen=True)
class UserCode:
    """The code that a name such as `my_net.py:build` means."""

    name: str
    folder: Path
    """What it imports is looked for here first: the folder of the file, or the working folder."""
    value: Any = None
    """What the name after the colon stands for."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Source by relative path: the file, and what it imported from its folder; or the module's own file."""

    @contextmanager
    def running(self, doing: str = "") -> Iterator[None]:
        """Run code of the user's in this block.

        Args:
            doing: what a message says it was doing, as in `with an empty batch`.

        Raises:
            UserError: it raised an exception; one line with the user's own file and line.
        """
        sys.path.insert(0, str(self.folder))
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            clause = f" {doing}" if doing else ""
            raise UserError(f"model.name={self.name}:{clause} {describe_exception(error)}") from error
        finally:
            with suppress(ValueError):  # it may have changed the path itself
                sys.path.remove(str(self.folder))


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, in hex."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def load_code(name: str) -> UserCode:
    """Import `FILE.py:FUNCTION` or `MODULE:FUNCTION`.

    Raises:
        UserError: there is no such file, module or function, or importing it raised an exception.
    """
    source, _, attribute = name.rpartition(":")
    path = expand_home(source, "model.name=").absolute()
    code = UserCode(name, path.parent if is_file_name(source) else Path.cwd())
    with code.running():
        module, files = import_file(path) if is_file_name(source) else import_module(source)
    if not hasattr(module, attribute):
        raise UserError(f"model.name={name}: {source} does not define {attribute}")
    return UserCode(name, code.folder, getattr(module, attribute), files)


def import_file(path: Path) -> tuple[ModuleType, dict[str, bytes]]:
    """Run a file as a module, anew each time.

    Returns:
        The module; the source of the file, and of each module that it imported from its folder.
    """
    content = read_code(path, "model.name")
    module = ModuleType(f"mnist_dist_user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and torch.compile look it up
    for name in _imported:
        sys.modules.pop(name, None)
    _imported.clear()
    importlib.invalidate_caches()
    before = set(sys.modules)
    exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    files = {path.name: content}
    for name in sorted(sys.modules.keys() - before):
        imported = source_of(sys.modules[name])
        if imported and imported.is_relative_to(path.parent) and is_users(imported):
            _imported.add(name)
            files[imported.relative_to(path.parent).as_posix()] = imported.read_bytes()
    return module, files


def import_module(name: str) -> tuple[ModuleType, dict[str, bytes]]:
    """Import a module; with its source, if it has any."""
    importlib.invalidate_caches()
    module = importlib.import_module(name)
    path = source_of(module)
    return module, {f"{name}.py": path.read_bytes()} if path else {}


def source_of(module: ModuleType) -> Path | None:
    """The source file of a module; None if it has none."""
    path = Path(getattr(module, "__file__", None) or "")
    return path if path.suffix == ".py" and path.is_file() else None


def is_users(path: Path) -> bool:
    """Whether a source file is the user's own: neither Python's, nor an installed package's, nor this one's."""
    known = path.is_relative_to(PACKAGE) or path.is_relative_to(STANDARD_LIBRARY) or bool(INSTALLED & set(path.parts))
    return path.is_absolute() and not known


def describe_exception(error: BaseException) -> str:
    """The exception in one line, after file and line of the innermost frame that is the user's, if any is."""
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((Path(error.filename), error.lineno))
    own = [frame for frame in frames if is_users(frame[0])]
    place = f"{shown_path(own[-1][0])}:{own[-1][1]}: " if own else ""
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 3]}..."
    return f"{place}{type(error).__name__}{': ' if text else ''}{text}"


def shown_path(path: Path) -> str:
    """A path from the working folder, if it is in it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

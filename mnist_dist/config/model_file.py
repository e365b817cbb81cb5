"""The file of a model of the user's own, `FILE.py:FUNCTION`: checked without running it, and without torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mnist_dist.config.hints import suggest
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home

MAX_CODE_BYTES = 1 << 20


def split_name(name: str) -> tuple[str, str]:
    """File or module, and function, of a model's name; both empty if it is a registered one."""
    source, _, function = name.rpartition(":")
    return (source, function) if source else ("", "")


def is_file_name(source: str) -> bool:
    """Whether the part of a model's name before the colon is a file, not a module."""
    return source.endswith(".py")


def check_model_file(name: str, origin: str) -> None:
    """Check that the file of `FILE.py:FUNCTION` is there, is Python, and defines the function; of `MODULE:FUNCTION`
    only that it is spelled as a module. Nothing is imported.

    Args:
        name: model.name.
        origin: where it was given.

    Raises:
        UserError: what is wrong, with the line of a syntax error.
    """
    source, function = split_name(name)
    where = f"model.name={name} ({origin})"
    if not source:
        return
    if not is_file_name(source):
        if not all(part.isidentifier() for part in source.split(".")):
            raise UserError(f"{where}: {source} is neither a file that ends in .py nor a module")
        return
    check_defines(source, read_code(Path(source), where), function, where)


def read_code(path: Path, where: str) -> bytes:
    """The content of a file of Python code.

    Args:
        where: what an error begins with.

    Raises:
        UserError: it cannot be read, or is too large to be code.
    """
    path = expand_home(str(path), f"{where}: ")
    try:
        if path.is_dir():
            raise UserError(f"{where}: {path} is a folder, not a file")
        if path.exists() and path.stat().st_size > MAX_CODE_BYTES:
            raise UserError(f"{where}: {path} is larger than {MAX_CODE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {path}: {error.strerror}; the path counts from {Path.cwd()}") from None


def check_defines(source: str, code: bytes, function: str, where: str) -> None:
    """Raise UserError unless the code is valid Python, and one of its top-level statements gives the name a value."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise UserError(f"{where}: {source}:{error.lineno or 1}: {type(error).__name__}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, nested too deeply
        raise UserError(f"{where}: {source}: not Python code ({error})") from None
    names = set(defined_names(tree))
    if function not in names and "*" not in names:
        functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        listed = f"; it defines {', '.join(functions[:6])}" if functions else ""
        raise UserError(f"{where}: {source} does not define {function}{suggest(function, functions) or listed}")


def defined_names(tree: ast.Module) -> Iterator[str]:
    """The names that may have a value once the module is imported; `*` if any name may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]

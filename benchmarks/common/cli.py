"""Command lines of the benchmarks: help from the script's docstring, the options that several have, exit codes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mnist_dist.commands.arguments import Parser
from mnist_dist.utils.exit import exit_with, run_to_exit_code

EXAMPLES = "examples:\n"


def build_parser(script: str, doc: str | None) -> Parser:
    """A parser that raises UserError in one line.

    Args:
        script: the script's `__file__`.
        doc: its docstring, which is the help; from the line `examples:` on it stands below the options.
    """
    description, _, examples = (doc or "").partition(EXAMPLES)
    return Parser(
        prog=Path(script).name,
        description=description.strip(),
        epilog=EXAMPLES + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def at_least(minimum: int) -> Callable[[str], int]:
    """A type of arguments: integers from `minimum` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, not {text}") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, not {text}")
        return number

    return parse


def add_count(parser: Parser, name: str, default: int, meaning: str, minimum: int = 1) -> None:
    """Add the option --NAME, an integer from `minimum` on."""
    parser.add_argument(f"--{name}", type=at_least(minimum), default=default, help=f"{meaning} (default: %(default)s)")


def add_json(parser: Parser) -> None:
    """Add --json FILE; None where it is not given."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too, as JSON")


def add_only(parser: Parser) -> None:
    """Add --only TEXT; the empty string, which every name holds, where it is not given."""
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")


def write_json(path: Path | None, result: Any) -> None:
    """Write a result, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run_script(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call `main` with the command line and end the process.

    Exit codes: 0 done, 1 a run failed, 2 wrong arguments, 3 interrupted. An error is one line on standard error.
    """
    exit_with(lambda: run_to_exit_code(lambda: main(sys.argv[1:])))

"""The command line `mnist-dist COMMAND ...` or `python -m mnist_dist COMMAND ...`; imports only the command it runs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

try:
    from mnist_dist import __version__
    from mnist_dist.commands.command_list import COMMANDS
    from mnist_dist.console.waiting import waiting_line
    from mnist_dist.utils.errors import EXIT_DONE, UserError
    from mnist_dist.utils.exit import exit_with, run_to_exit_code
    from mnist_dist.utils.help_text import help_width, wrap, wrap_commands
except KeyboardInterrupt:  # later ones are caught by `run_to_exit_code`
    sys.exit("mnist_dist: error: interrupted")

EXAMPLES = """\
examples:
  mnist-dist train --config debug --run.dir=runs/debug
  mnist-dist status runs/debug
  mnist-dist evaluate runs/debug
  mnist-dist predict runs/debug --index 8 --maps
  mnist-dist doctor --config speed99
  mnist-dist COMMAND --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process."""
    return run_to_exit_code(lambda: dispatch(list(sys.argv[1:] if arguments is None else arguments)))


def dispatch(arguments: list[str]) -> int:
    """Run the command that the first argument names, and return its exit code.

    Raises:
        UserError: no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(format_help(help_width()), end="")
        return EXIT_DONE
    if arguments[0] == "--version":
        print(f"mnist_dist {__version__}")
        return EXIT_DONE
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{command}: no such command{hint}; commands: {', '.join(COMMANDS)}")
    with waiting_line(command):
        if command == "train":
            return import_module("mnist_dist.train").start(rest)
        return import_module(f"mnist_dist.commands.{command}").main(rest)


def format_help(width: int) -> str:
    """The commands, each with its meaning beside it, and examples."""
    lines = ["usage: mnist-dist COMMAND ...", "", "commands:"]
    for name, what in COMMANDS.items():
        lines.append(f"  {name:<11}" + wrap(what, width, 13).lstrip())
    return "\n".join([*lines, "", wrap_commands(EXAMPLES, width)])


def enter() -> None:
    """Entry point of the console script `mnist-dist`."""
    exit_with(main)


if __name__ == "__main__":
    enter()

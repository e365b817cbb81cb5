"""`mnist-dist COMMAND ...`, also as `python -m mnist_dist COMMAND ...`. Each command is imported when it is called."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from mnist_dist import __version__
from mnist_dist.utils.errors import EXIT_DONE, UserError
from mnist_dist.utils.exit import exit_with, run_to_exit_code

COMMANDS = {
    "train": "train a network; the same as python -m mnist_dist.train",
    "evaluate": "a run's metrics on a split, on any number of processes",
    "predict": "what a run's network makes of pictures, or of MNIST's images",
    "models": "the networks, their cost and the walk of shapes",
    "data": "fetch, check or show the data",
    "config": "the settings of a run as a JSON schema, for editors",
    "doctor": "whether a run would work here, on all its processes, and what to do",
    "sweep": "many runs that differ in some settings, as wandb's sweeps, without a server",
    "dashboard": "a wandb workspace and a report, as JSON or saved on a server",
    "benchmark": "the trainer's speed against other loops, as ratios",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and give the process's exit code."""
    return run_to_exit_code(lambda: dispatch(list(sys.argv[1:] if arguments is None else arguments)))


def dispatch(arguments: list[str]) -> int:
    """Call the command that the first argument names.

    Raises:
        UserError: no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: mnist-dist COMMAND ...\n")
        print("\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items()))
        print("\nmnist-dist COMMAND --help says more.")
        return EXIT_DONE
    if arguments[0] == "--version":
        print(f"mnist_dist {__version__}")
        return EXIT_DONE
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{command}: no such command{hint}; commands: {', '.join(COMMANDS)}")
    if command == "train":
        return import_module("mnist_dist.train").start(rest)
    return import_module(f"mnist_dist.commands.{command}").main(rest)


def enter() -> None:
    """The console script."""
    exit_with(main)


if __name__ == "__main__":
    enter()

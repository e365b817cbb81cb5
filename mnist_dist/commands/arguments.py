"""The argument parser of the commands, and options that several of them have. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from mnist_dist.config.sections import DataConfig
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.help_text import help_width, wrap_commands

DATA = DataConfig.model_fields


class Parser(argparse.ArgumentParser):
    """An argument parser, also of subcommands. It refuses abbreviated options, and raises UserError with one line.

    Args:
        examples: command lines with which the help ends. Tests parse all of them.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.examples = examples

    def format_help(self) -> str:
        """argparse's help, then the examples."""
        examples = "".join(f"  {example}\n" for example in self.examples)
        return super().format_help() + (f"\nexamples:\n{wrap_commands(examples, help_width())}" if examples else "")

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of exiting."""
        raise UserError(f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help")


def add_data_options(parser: argparse.ArgumentParser, source: str = DATA["source"].default) -> None:
    """Add the settings data.name, data.root and data.source, as `name`, `root` and `source` of the arguments."""
    parser.add_argument(
        "--data.name",
        "--name",
        dest="name",
        choices=get_args(DATA["name"].annotation),
        metavar="NAME",
        default=DATA["name"].default,
        help="the data set, one of %(choices)s (default: %(default)s)",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        default=DATA["root"].default,
        help="folder with the four IDX files, raw or gz (default: mnist_dist's folder in the user's cache)",
    )
    parser.add_argument(
        "--data.source",
        dest="source",
        choices=get_args(DATA["source"].annotation),
        default=source,
        help="where missing files come from (default: %(default)s)",
    )


def add_run_arguments(parser: argparse.ArgumentParser, exported: bool = False) -> None:
    """Add RUN, --checkpoint, --model and --trust, the arguments of `load_model`, and --data.root as `root`.

    Args:
        exported: whether --model may also be a file that `mnist-dist export` wrote, which needs no RUN.
    """
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?" if exported else None,
        help="folder of the run, or of one of its checkpoints; last: the newest run in runs/",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="last|best|STEP|PATH",
        default="last",
        help="checkpoint to load: the newest, the best on the validation split, that of a step (430 or step-00000430), "
        "or the one at a path (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="CODE|FILE" if exported else "FILE.py:FUNCTION|MODULE:FUNCTION",
        help="for a run whose network is not one of this package: the code to build it with, as in training"
        + "; or, without RUN, an exported model, FILE.onnx or FILE.pt2 (which is code, too: see --trust)" * exported,
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="for such a run: build the network by the code that its folder has or names. Code can do anything, so "
        "only for runs of people whom you trust",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        help="folder with the run's data, if it was moved (default: the data.root of the run)",
    )


def check_indices(indices: list[int], count: int, split: str) -> None:
    """Raise UserError if an index is outside a split of `count` images."""
    for index in indices:
        if not 0 <= index < count:
            raise UserError(f"index {index}: the {split} split has images 0 to {count - 1}")

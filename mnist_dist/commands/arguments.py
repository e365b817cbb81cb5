"""What the commands' argument parsers have in common. Imports no torch."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, get_args

from mnist_dist.config.schema import DataConfig
from mnist_dist.utils.errors import UserError

DATA = DataConfig.model_fields


class Parser(argparse.ArgumentParser):
    """An argument parser, also for subcommands, that refuses abbreviated options and raises UserError in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help")


def add_data_options(parser: argparse.ArgumentParser, source: str = DATA["source"].default) -> None:
    """Add the configuration's data.root and data.source, as `root` and `source` of the parsed arguments."""
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
        help="where absent files come from (default: %(default)s)",
    )


def check_indices(indices: list[int], count: int, split: str) -> None:
    """Raise UserError for an index that a split of `count` images does not have."""
    for index in indices:
        if not 0 <= index < count:
            raise UserError(f"index {index}: the {split} split has images 0 to {count - 1}")

"""`mnist-dist data`: fetch the data set, check it, show images of it."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, add_data_options, check_indices
from mnist_dist.utils.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

CHUNK = 1 << 18


def main(arguments: list[str]) -> int:
    """Run `mnist-dist data ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or a data set that cannot be brought, is damaged or lacks an index.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    options.run(options)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of the three subcommands."""
    parser = Parser(prog="mnist-dist data", description="Fetch the data set, check it, show images of it.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    fetch_parser = commands.add_parser("fetch", help="bring the original MNIST, unless a data set is there already")
    fetch_parser.set_defaults(run=fetch)
    add_data_options(fetch_parser)
    check_parser = commands.add_parser("check", help="read every file and tell what is in it")
    check_parser.set_defaults(run=check)
    add_data_options(check_parser, source="local")
    show_parser = commands.add_parser("show", help="draw images with their labels")
    show_parser.set_defaults(run=show)
    show_parser.add_argument("index", metavar="INDEX", type=int, nargs="+", help="position in the split, from 0")
    show_parser.add_argument("--split", choices=("train", "test"), default="train", help="default: %(default)s")
    add_data_options(show_parser)
    return parser


def find_files(options: argparse.Namespace) -> dict[str, Path]:
    """The data set's files; progress goes to standard error."""
    from mnist_dist.data.prepare import ensure_files, resolve_root

    return ensure_files(resolve_root(options.root), options.source, lambda line: print(line, file=sys.stderr))


def fetch(options: argparse.Namespace) -> None:
    """Print where each file is, fetched if need be."""
    for path in find_files(options).values():
        print(path)


def check(options: argparse.Namespace) -> None:
    """Print what the files hold; UserError if one of them is damaged."""
    from rich.console import Console

    from mnist_dist.data.idx import read_pair
    from mnist_dist.data.prepare import FILES, SPLITS

    files = find_files(options)
    splits = {split: read_pair(*(files[name] for name in names)) for split, names in SPLITS.items()}
    digests = {name: content_digest(path) for name, path in files.items()}
    console = Console(highlight=False)
    console.print(files_table(files, digests))
    for split, (images, labels) in splits.items():
        console.print(split_line(split, images, labels), markup=False, soft_wrap=True)
    originals = [name for name in FILES if digests[name] == FILES[name]]
    if originals and len(originals) < len(FILES):
        changed = ", ".join(str(files[name]) for name in FILES if name not in originals)
        raise UserError(
            f"{changed}: differs from the original MNIST, although other files are the original ones; if that is "
            "not on purpose, remove all four and run mnist-dist data fetch"
        )
    print("the original MNIST" if originals else "a whole data set, but not the original MNIST")


def content_digest(path: Path) -> str:
    """MD5 of a file's content, unpacked if it is gz."""
    from mnist_dist.data.idx import open_content

    md5 = hashlib.md5(usedforsecurity=False)
    with open_content(path) as (content, _):
        while chunk := content.read(CHUNK):
            md5.update(chunk)
    return md5.hexdigest()


def files_table(files: dict[str, Path], digests: dict[str, str]) -> Table:
    """A table of the files with their sizes, digests, and whether they are MNIST's own."""
    from rich.table import Table
    from rich.text import Text

    from mnist_dist.data.prepare import FILES

    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("MD5 of the content", no_wrap=True)
    table.add_column("original", no_wrap=True)
    for name, path in files.items():
        original = "yes" if digests[name] == FILES[name] else "no"
        table.add_row(Text(path.name), f"{path.stat().st_size}", digests[name], original)
    return table


def split_line(split: str, images: Tensor, labels: Tensor) -> str:
    """What a split holds: images, pixel mean and deviation in [0, 1], images of each class."""
    mean, std = pixel_statistics(images)
    classes = " ".join(f"{label}:{count}" for label, count in enumerate(labels.bincount(minlength=10).tolist()))
    return f"{split}: {len(images)} images, pixel mean {mean:.4f}, std {std:.4f}; of each class {classes}"


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels, as fractions of 255; exact, from integer sums."""
    total = squares = 0
    for part in images.split(4096):
        total += int(part.sum())
        squares += int(part.int().square().sum())
    mean = total / images.numel()
    return mean / 255, (squares / images.numel() - mean**2) ** 0.5 / 255


def show(options: argparse.Namespace) -> None:
    """Draw the images of the given indices."""
    from rich.console import Console

    from mnist_dist.commands.terminal_images import digit, is_plain
    from mnist_dist.data.idx import read_pair
    from mnist_dist.data.prepare import SPLITS

    files = find_files(options)
    images, labels = read_pair(*(files[name] for name in SPLITS[options.split]))
    check_indices(options.index, len(images), options.split)
    console = Console(highlight=False)
    for index in options.index:
        console.print(f"{options.split} image {index}: label {labels[index]}")
        console.print(digit(images[index], plain=is_plain(console)))

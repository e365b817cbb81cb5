"""`mnist-dist data`: fetch a data set, check its files, show images of it."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, add_data_options, check_indices
from mnist_dist.data.sets import TRAIN_LABELS
from mnist_dist.utils.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

CHUNK = 1 << 18
MAX_LISTED = 12
"""Classes whose numbers of images are listed one by one."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist data ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, an index outside the split, or a data set that is damaged or cannot be fetched.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    options.run(options)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command and its three subcommands."""
    parser = Parser(
        prog="mnist-dist data",
        description="Fetch a data set, check its files, show images of it.",
        examples=[
            "mnist-dist data fetch",
            "mnist-dist data check",
            "mnist-dist data show 0 1 2",
            "mnist-dist data check --data.name=fashion --data.root=data",
        ],
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    fetch_parser = commands.add_parser(
        "fetch",
        help="download a data set, the original MNIST by default, unless it is there already",
        description="Download a data set, the original MNIST by default, unless it is there already, and print the "
        "paths of its files. A folder that holds another one is not filled.",
        examples=[
            "mnist-dist data fetch",
            "mnist-dist data fetch --data.name=emnist-letters",
            "mnist-dist data fetch --data.root=data",
            "mnist-dist data fetch --data.root=data --data.source=mirrors",
        ],
    )
    fetch_parser.set_defaults(run=fetch)
    add_data_options(fetch_parser)
    check_parser = commands.add_parser(
        "check",
        help="read every file and say what is in it",
        description="Read every file; print size, MD5, pixel statistics, labels, and whether the data set is original.",
        examples=[
            "mnist-dist data check",
            "mnist-dist data check --data.name=idx --data.root=data",
            "mnist-dist data check --data.root=data",
            "mnist-dist data check --data.source=auto",
        ],
    )
    check_parser.set_defaults(run=check)
    add_data_options(check_parser, source="local")
    show_parser = commands.add_parser(
        "show",
        help="draw images with their labels",
        description="Draw images with their labels in the terminal.",
        examples=[
            "mnist-dist data show 0 1 2",
            "mnist-dist data show 7 --split test --data.name=fashion",
            "mnist-dist data show 7 --split test --data.root=data",
        ],
    )
    show_parser.set_defaults(run=show)
    show_parser.add_argument("index", metavar="INDEX", type=int, nargs="+", help="position in the split, from 0")
    show_parser.add_argument("--split", choices=("train", "test"), default="train", help="(default: %(default)s)")
    add_data_options(show_parser)
    return parser


def find_files(options: argparse.Namespace) -> dict[str, Path]:
    """The files of the data set by name; downloaded first if missing in the default folder."""
    from mnist_dist.data.prepare import provide_files, resolve_root

    return provide_files(resolve_root(options.root, options.name), options.source, say, options.name)


def fetch(options: argparse.Namespace) -> None:
    """Print the path of each file; downloaded first if missing, into the folder that the user names."""
    from mnist_dist.data.prepare import ensure_files, resolve_root

    for path in ensure_files(resolve_root(options.root, options.name), options.source, say, options.name).values():
        print(path)


def say(line: str) -> None:
    """Write a line of progress to standard error: standard output has the results."""
    print(line, file=sys.stderr)


def check(options: argparse.Namespace) -> None:
    """Print what is in the files. Raises UserError if one of them is damaged."""
    from rich.console import Console

    from mnist_dist.config.sections import DataConfig
    from mnist_dist.data.dataset import read_pair_of
    from mnist_dist.data.sets import DATA_SETS, SPLITS, identify

    files, title = find_files(options), DATA_SETS[options.name].title
    config = DataConfig(name=options.name)
    splits = {split: read_pair_of(files, split, config) for split in SPLITS}
    digests = {role: content_digest(path) for role, path in files.items()}
    original = {role: is_original(options.name, role, path, digests[role]) for role, path in files.items()}
    console = Console(highlight=False)
    console.print(files_table(files, digests, original))
    for split, (images, labels) in splits.items():
        console.print(split_line(split, images, labels), markup=False, soft_wrap=not console.is_terminal)
    others = [str(files[role]) for role in files if original[role] is False]
    if others and True in original.values():
        again = f"mnist-dist data fetch{'' if options.name == 'mnist' else f' --data.name={options.name}'}"
        raise UserError(
            f"{', '.join(others)}: not the original {title}, unlike the other files; if that is not intended, remove "
            f"all four and run {again}"
        )
    known = identify(files[TRAIN_LABELS])
    if all(original.values()):
        print(f"the original {title}")
    elif known and known != options.name:
        print(f"{DATA_SETS[known].title}: use it with --data.name={known}")
    elif options.name == "idx":
        print("a complete data set")
    elif others:
        print(f"a complete data set, but not the original {title}")
    else:
        print(f"a complete data set; of {title} only the packed files have a known MD5")


def is_original(name: str, role: str, path: Path, content_md5: str) -> bool | None:
    """Whether a file is that of the original data set; None if its MD5 is not known."""
    from mnist_dist.data.sets import DATA_SETS, GZIP_MAGIC, md5_of

    data_set = DATA_SETS[name]
    packed = path.read_bytes() if role in data_set.packed else b""
    if packed[:2] == GZIP_MAGIC and md5_of(packed) == data_set.packed[role]:
        return True
    if role in data_set.unpacked:
        return content_md5 == data_set.unpacked[role]
    return False if packed[:2] == GZIP_MAGIC else None


def content_digest(path: Path) -> str:
    """MD5 of a file's content as hex digits, after unpacking if it is gz."""
    from mnist_dist.data.idx import open_content

    md5 = hashlib.md5(usedforsecurity=False)
    with open_content(path) as (content, _):
        while chunk := content.read(CHUNK):
            md5.update(chunk)
    return md5.hexdigest()


def files_table(files: dict[str, Path], digests: dict[str, str], original: dict[str, bool | None]) -> Table:
    """A table of the files: sizes, MD5, and whether they are those of the original data set."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("MD5 of the content", overflow="fold")
    table.add_column("original", no_wrap=True)
    words = {True: "yes", False: "no", None: "unknown"}
    for role, path in files.items():
        table.add_row(Text(path.name), f"{path.stat().st_size}", digests[role], words[original[role]])
    return table


def split_line(split: str, images: Tensor, labels: Tensor) -> str:
    """One line about a split: images, mean and deviation of pixels in [0, 1], images per class, digest.

    Args:
        images: uint8 (N, 1, 28, 28).
        labels: int64 (N,).
    """
    from mnist_dist.data.identity import content_digest, short

    mean, std = pixel_statistics(images)
    counts = labels.bincount(minlength=10).tolist()
    classes = "per class " + " ".join(f"{label}:{count}" for label, count in enumerate(counts))
    if len(counts) > MAX_LISTED:
        classes = f"{len(counts)} classes of {min(counts)} to {max(counts)} images"
    digest = short(content_digest(images, labels))
    return f"{split}: {len(images)} images, pixel mean {mean:.4f}, std {std:.4f}; {classes}; sha256 {digest}"


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels, divided by 255. Exact: computed from integer sums."""
    total = squares = 0
    for part in images.split(4096):
        total += int(part.sum())
        squares += int(part.int().square().sum())
    mean = total / images.numel()
    return mean / 255, (squares / images.numel() - mean**2) ** 0.5 / 255


def show(options: argparse.Namespace) -> None:
    """Draw the images at the given indices with their labels."""
    from rich.console import Console

    from mnist_dist.commands.terminal_images import draw_digit, is_plain
    from mnist_dist.config.sections import DataConfig
    from mnist_dist.data.dataset import read_pair_of

    config = DataConfig(name=options.name)
    images, labels = read_pair_of(find_files(options), options.split, config)
    check_indices(options.index, len(images), options.split)
    console = Console(highlight=False)
    for index in options.index:
        label = int(labels[index])
        name = config.class_names[label] if config.class_names else str(label)
        called = "" if name == str(label) else f", {name}"
        console.print(f"{options.split} image {index}: label {label}{called}", markup=False)
        console.print(draw_digit(images[index, 0], plain=is_plain(console)))

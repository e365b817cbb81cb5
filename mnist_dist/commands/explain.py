"""`mnist-dist explain RUN`: one figure of how the network sees a digit, or a map of the features of the test set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, add_run_arguments, check_indices
from mnist_dist.console.formatting import format_percent
from mnist_dist.tracking.backend import is_installed
from mnist_dist.utils.errors import EXIT_DONE, UserError
from mnist_dist.utils.files import atomic_write, check_writable, expand_home

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_dist.checkpoint.load_model import LoadedModel

INSTALL = "figures need the package matplotlib: pip install 'mnist_dist[report]'"
FORMATS = (".svg", ".png", ".pdf")


def main(arguments: list[str]) -> int:
    """Run `mnist-dist explain ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, matplotlib is not installed, no such run or checkpoint, a picture that cannot be
            read, no data of the run, or an index outside the split.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    check_options(options)
    if not is_installed("matplotlib"):
        raise UserError(INSTALL)
    out = expand_home(options.out or ("embedding.png" if options.embedding else "explanation.svg"), "--out ")
    try:
        check_writable(out)
    except OSError as error:
        raise UserError(cannot_be_written(out, error)) from None

    from mnist_dist.checkpoint.load_model import load_model

    loaded = load_model(options.run, options.checkpoint, options.model, options.trust)
    if options.embedding:
        figure, line = draw_map(loaded, options)
    else:
        figure, line = draw_explanation(loaded, options)
    print(line)
    save(figure, out)
    print(f"written: {out}")
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist explain",
        description="Draw how the network of a run sees one digit: the output of every layer, and the pixels that "
        "decided. Or, with --embedding, draw the features of the test set in two dimensions, mistakes marked.",
        examples=[
            "mnist-dist explain runs/digits --index 8",
            "mnist-dist explain last --image seven.png --out seven.svg",
            "mnist-dist explain last --embedding pca --out features.png",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument("--index", metavar="I", type=int, help="explain this image of the split, from 0")
    parser.add_argument("--image", metavar="FILE", help="explain a picture file of one digit")
    parser.add_argument(
        "--embedding", choices=("pca", "umap"), help="map the features of the split instead; umap needs umap-learn"
    )
    parser.add_argument(
        "--split", choices=("train", "test"), default="test", help="of --index and --embedding (default: %(default)s)"
    )
    parser.add_argument(
        "--out", metavar="FILE", default="", help="a .svg, .png or .pdf (default: explanation.svg or embedding.png)"
    )
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError unless one thing is to be drawn, and the file's name says in which format."""
    wanted = [name for name in ("index", "image", "embedding") if getattr(options, name) is not None]
    if len(wanted) != 1:
        given = f"not {' and '.join(f'--{name}' for name in wanted)}" if wanted else "none is given"
        raise UserError(f"mnist-dist explain: give one of --index I, --image FILE and --embedding pca, {given}")
    if options.out and Path(options.out).suffix.lower() not in FORMATS:
        raise UserError(f"--out {options.out}: must end in {', '.join(FORMATS)}")
    if options.embedding == "umap" and not is_installed("umap"):
        raise UserError("--embedding umap: needs the package umap-learn: pip install 'mnist_dist[umap]'; or use pca")


def draw_explanation(loaded: LoadedModel, options: argparse.Namespace) -> tuple[Figure, str]:
    """The figure of one image, and the prediction in one line."""
    from mnist_dist.commands.explain_figures import explanation_figure
    from mnist_dist.commands.predictor import read_split
    from mnist_dist.data.photo import read_picture

    truth = None
    if options.image is not None:
        image, name = read_picture(options.image, lambda note: print(f"note: {note}")), options.image
    else:
        images, labels = read_split(loaded.config.data, loaded.digests, options.split, options.root)
        check_indices([options.index], len(images), options.split)
        image, name = images[options.index], f"{options.split} image {options.index}"
        truth = int(labels[options.index])
    return explanation_figure(loaded, image, name, truth)


def draw_map(loaded: LoadedModel, options: argparse.Namespace) -> tuple[Figure, str]:
    """The map of a split's features, and the accuracy in one line."""
    from mnist_dist.commands.explain_figures import embedding_figure
    from mnist_dist.commands.predictor import read_split

    images, labels = read_split(loaded.config.data, loaded.digests, options.split, options.root)
    takes = "about a minute" if options.embedding == "umap" else "some seconds"
    print(f"the features of {len(images)} images: {takes} ...", file=sys.stderr)
    figure, right = embedding_figure(loaded, images, labels, options.embedding)
    accuracy = format_percent(right / len(images))
    return figure, f"{options.split}: {len(images)} images, {right} right ({accuracy}); mistakes are crosses"


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all. Raises UserError if that fails."""
    try:
        with atomic_write(path) as aside:
            figure.savefig(aside, format=path.suffix[1:].lower(), dpi=150)
    except OSError as error:
        raise UserError(cannot_be_written(path, error)) from None


def cannot_be_written(path: Path, error: OSError) -> str:
    """The message of that error."""
    return f"--out {path}: cannot be written ({error.strerror}); choose another file"

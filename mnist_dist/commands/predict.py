"""`mnist-dist predict RUN`: the predictions of a trained model for picture files, or for images of its data set."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, add_run_arguments, check_indices
from mnist_dist.console.formatting import format_percent
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, UserError
from mnist_dist.utils.files import expand_home

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from mnist_dist.commands.predictor import Predictor

INSTALL = "needs the package onnxruntime: pip install 'mnist_dist[export]'"
MAX_NAMES = 12
"""Classes whose names are all listed below the rows of `--first`; of more, those that occur."""
ROW = 30
"""Predictions of one digit in one row of `--first`: they fit in 80 columns."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist predict ARGUMENTS`; the exit code, 1 if some of the pictures cannot be read.

    Raises:
        UserError: wrong arguments, a missing package, no such run or checkpoint, no readable picture, no data of the
            run, or an index outside the split.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_intermixed_args(arguments)
    if options.first is not None and options.first < 1:
        raise UserError(f"--first {options.first}: must be at least 1")
    if is_exported(options.model):
        options.pictures = [options.run, *options.pictures] if options.run else options.pictures
        if options.maps:
            raise UserError(f"--maps: {options.model} is a graph without layers; name the run instead")
        if options.model.endswith(".onnx") and find_spec("onnxruntime") is None:
            raise UserError(f"{options.model}: {INSTALL}")
    elif not options.run:
        raise UserError("mnist-dist predict: RUN is required, or an exported model by --model FILE.onnx or FILE.pt2")
    if not (options.pictures or options.index or options.first):
        raise UserError("mnist-dist predict: nothing to predict; give picture files, --index I or --first N")

    from rich.console import Console

    predictor = open_predictor(options)
    console = Console(highlight=False)
    bad = predict_pictures(console, predictor, options.pictures, options.maps) if options.pictures else []
    if options.index or options.first:
        predict_split(console, predictor, options)
    for error in bad:
        print(f"mnist_dist: error: {error}", file=sys.stderr)
    return EXIT_FAILED if bad else EXIT_DONE


def is_exported(model: str | None) -> bool:
    """Whether `--model` names a file that `mnist-dist export` wrote."""
    return bool(model) and Path(model or "").suffix in (".onnx", ".pt2")


def open_predictor(options: argparse.Namespace) -> Predictor:
    """The model of the run, or of the exported file. Raises UserError if it cannot be loaded."""
    from mnist_dist.commands.predictor import predictor_of_file, predictor_of_run

    if is_exported(options.model):
        return predictor_of_file(expand_home(options.model, "--model "))

    from mnist_dist.checkpoint.load_model import load_model

    return predictor_of_run(load_model(options.run, options.checkpoint, options.model, options.trust))


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist predict",
        description="Predict the classes of pictures, or of images of the data set, with the trained model of a run.",
        examples=[
            "mnist-dist predict runs/digits --first 30",
            "mnist-dist predict last --split train --index 3 8 --maps --checkpoint best",
            "mnist-dist predict runs/digits seven.png",
            "mnist-dist predict --model model.onnx --first 30",
            "mnist-dist predict runs/mine seven.png --model my_net.py:build",
        ],
    )
    add_run_arguments(parser, exported=True)
    parser.add_argument(
        "pictures",
        metavar="PICTURE",
        nargs="*",
        help="picture file of one digit, in any format and size, dark on light or light on dark",
    )
    parser.add_argument("--index", metavar="I", type=int, nargs="+", default=[], help="draw these images, from 0")
    parser.add_argument("--first", metavar="N", type=int, help="list the predictions and labels of the first N images")
    parser.add_argument("--maps", action="store_true", help="draw the feature maps of each convolution, too")
    parser.add_argument(
        "--split", choices=("train", "test"), default="test", help="of --index and --first (default: %(default)s)"
    )
    return parser


def predict_pictures(console: Console, predictor: Predictor, paths: list[str], maps: bool) -> list[UserError]:
    """Draw each picture as the model gets it, beside the probabilities of the classes.

    Returns:
        The errors of the pictures that cannot be read.

    Raises:
        UserError: none of the pictures can be read.
    """
    import torch

    from mnist_dist.data.photo import read_picture

    images: dict[str, Tensor] = {}
    notes: dict[str, list[str]] = {path: [] for path in paths}
    bad: list[UserError] = []
    for path in notes:
        try:
            images[path] = read_picture(path, notes[path].append)
        except UserError as error:
            bad.append(error)
    if not images:
        raise bad[0]
    rows = predictor.probabilities(torch.stack(list(images.values())))
    for (path, image), row in zip(images.items(), rows, strict=True):
        draw(console, path, image, row, predictor.data.class_names)
        for note in notes[path]:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        if maps:
            draw_maps(console, predictor, image)
    return bad


def predict_split(console: Console, predictor: Predictor, options: argparse.Namespace) -> None:
    """Draw the images of --index, then print the rows of --first."""
    from mnist_dist.commands.predictor import read_split

    images, labels = read_split(predictor.data, predictor.digests, options.split, options.root)
    check_indices(options.index, len(images), options.split)
    if options.first and options.first > len(images):
        raise UserError(f"--first {options.first}: the {options.split} split has {len(images)} images")
    classes = predictor.data.class_names
    if options.index:
        chosen = images[options.index]
        for index, image, row in zip(options.index, chosen, predictor.probabilities(chosen), strict=True):
            draw(console, f"{options.split} image {index}", image, row, classes, int(labels[index]))
            if options.maps:
                draw_maps(console, predictor, image)
    if options.first:
        predicted = predictor.probabilities(images[: options.first]).argmax(1)
        print_rows(console, predicted.tolist(), labels[: options.first].tolist(), classes)


def draw(
    console: Console, name: str, image: Tensor, row: Tensor, classes: tuple[str, ...], truth: int | None = None
) -> None:
    """Print the prediction for an image, then the image beside the probabilities.

    Args:
        name: what the line begins with.
        image: uint8 (28, 28).
        row: float32 (K,), the probabilities.
        truth: the label, if it is known.
    """
    from mnist_dist.commands.terminal_images import draw_bars, draw_digit, is_plain, side_by_side

    plain = is_plain(console)
    likeliest = int(row.argmax())
    verdict = "" if truth is None else ", right" if likeliest == truth else f", wrong: {classes[truth]}"
    console.print(
        f"{name}: {classes[likeliest]} ({format_percent(float(row[likeliest]))}){verdict}", markup=False, soft_wrap=True
    )
    console.print(side_by_side(draw_digit(image, plain), draw_bars(row, classes, truth, plain), console.width))


def draw_maps(console: Console, predictor: Predictor, image: Tensor) -> None:
    """Print the feature maps of each convolution for an image, uint8 (28, 28)."""
    from mnist_dist.commands.terminal_images import draw_digit, is_plain
    from mnist_dist.data.loader import normalize
    from mnist_dist.models.feature_maps import feature_maps, montage
    from mnist_dist.models.summary import describe_layer

    model, normalized = predictor.model, normalize(image.unsqueeze(0), predictor.data)
    assert model is not None, "--maps is refused for an exported model"
    for name, maps in feature_maps(model, normalized):
        layer = describe_layer(model.get_submodule(name))
        console.print(f"\n{layer}, {' x '.join(map(str, maps.shape))}, the first of them:", markup=False)
        console.print(draw_digit(montage(maps, console.width), is_plain(console)))


def print_rows(console: Console, predicted: list[int], truth: list[int], classes: tuple[str, ...]) -> None:
    """Print rows of predictions, of labels, and of mistakes (1: wrong), then the accuracy."""
    mistakes = [int(a != b) for a, b in zip(predicted, truth, strict=True)]
    width = len(str(len(classes) - 1))
    in_row = ROW * 2 // (width + 1)
    for start in range(0, len(predicted), in_row):
        for name, row in (("predicted", predicted), ("true", truth), ("mistake", mistakes)):
            numbers = " ".join(f"{number:>{width}}" for number in row[start : start + in_row])
            console.print(f"{name:<10}{numbers}", soft_wrap=True)
        console.print()
    if any(name != str(label) for label, name in enumerate(classes)):
        shown = sorted({*predicted, *truth}) if len(classes) > MAX_NAMES else range(len(classes))
        console.print(", ".join(f"{label} {classes[label]}" for label in shown), markup=False, soft_wrap=True)
    right = len(predicted) - sum(mistakes)
    console.print(
        f"{right} of {len(predicted)} right ({format_percent(right / len(predicted))}), mistakes: {sum(mistakes)}"
    )

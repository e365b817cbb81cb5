"""`mnist-dist predict`: what a run's network makes of pictures, or of images of its data set."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, check_indices
from mnist_dist.utils.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from mnist_dist.commands.load_model import Restored
    from mnist_dist.config.schema import DataConfig

BATCH = 1000
ROW = 30
"""ExampleCollector in one row of `--first`, so that it fits a terminal of 80 columns."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist predict ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, no such run or checkpoint, not a picture, or an index that the split lacks.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_intermixed_args(arguments)
    if options.first is not None and options.first < 1:
        raise UserError(f"--first {options.first}: must be at least 1")
    if not (options.pictures or options.index or options.first):
        raise UserError("mnist-dist predict: nothing to predict; give picture files, --index I or --first N")

    from rich.console import Console

    from mnist_dist.commands.load_model import restore

    restored = restore(options.run, options.checkpoint)
    console = Console(highlight=False)
    if options.pictures:
        predict_pictures(console, restored, options.pictures, options.maps)
    if options.index or options.first:
        predict_split(console, restored, options)
    return EXIT_DONE


def build_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="mnist-dist predict", description="What a run's network makes of pictures, or of MNIST's.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("pictures", metavar="PICTURE", nargs="*", help="file of any format, size and polarity")
    parser.add_argument("--index", metavar="I", type=int, nargs="+", default=[], help="positions in the split, from 0")
    parser.add_argument("--first", metavar="N", type=int, help="the split's first N predictions in rows with the truth")
    parser.add_argument("--maps", action="store_true", help="draw also what each convolution makes of the image")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="default: %(default)s")
    parser.add_argument(
        "--checkpoint",
        metavar="latest|best|STEP|PATH",
        default="latest",
        help="which of the run's checkpoints (default: %(default)s)",
    )
    return parser


def predict_pictures(console: Console, restored: Restored, paths: list[str], maps: bool) -> None:
    """Draw each picture as the network sees it, beside its probabilities."""
    import torch

    from mnist_dist.data.photo import read_picture

    images = torch.stack([read_picture(path) for path in paths])
    for path, image, row in zip(paths, images, probabilities(restored, images), strict=True):
        draw(console, path, image, row, restored.config.data.classes)
        if maps:
            draw_maps(console, restored, image)


def predict_split(console: Console, restored: Restored, options: argparse.Namespace) -> None:
    """Draw the images of --index, then print the rows of --first."""
    images, labels = read_split(restored.config.data, options.split)
    check_indices(options.index, len(images), options.split)
    if options.first and options.first > len(images):
        raise UserError(f"--first {options.first}: the {options.split} split has {len(images)} images")
    classes = restored.config.data.classes
    if options.index:
        chosen = images[options.index]
        for index, image, row in zip(options.index, chosen, probabilities(restored, chosen), strict=True):
            draw(console, f"{options.split} image {index}", image, row, classes, int(labels[index]))
            if options.maps:
                draw_maps(console, restored, image)
    if options.first:
        predicted = probabilities(restored, images[: options.first]).argmax(1)
        print_rows(console, predicted.tolist(), labels[: options.first].tolist(), classes)


def read_split(config: DataConfig, split: str) -> tuple[Tensor, Tensor]:
    """A split's images uint8 (N, 28, 28) and labels uint8 (N,), fetched if need be."""
    from mnist_dist.data.idx import read_pair
    from mnist_dist.data.prepare import SPLITS, ensure_files, resolve_root

    files = ensure_files(resolve_root(config.root), config.source, lambda line: print(line, file=sys.stderr))
    return read_pair(*(files[name] for name in SPLITS[split]))


def probabilities(restored: Restored, images: Tensor) -> Tensor:
    """The network's probabilities, float32 (N, 10), for images uint8 (N, 28, 28)."""
    import torch

    from mnist_dist.data.loader import normalize

    config = restored.config.data
    model = restored.model
    with torch.inference_mode():
        parts = [model(normalize(part.unsqueeze(1), config)) for part in images.split(BATCH)]
        return model.probabilities(torch.cat(parts))


def draw(
    console: Console, name: str, image: Tensor, row: Tensor, classes: tuple[str, ...], truth: int | None = None
) -> None:
    """Print one image beside its probabilities, under a line that says what was predicted."""
    from mnist_dist.commands.terminal_images import bars, beside, digit, is_plain

    plain = is_plain(console)
    likeliest = int(row.argmax())
    verdict = "" if truth is None else ", right" if likeliest == truth else f", wrong: {classes[truth]}"
    console.print(f"{name}: {classes[likeliest]} ({row[likeliest]:.2%}){verdict}", markup=False, soft_wrap=True)
    console.print(beside(digit(image, plain), bars(row, classes, truth, plain)))


def draw_maps(console: Console, restored: Restored, image: Tensor) -> None:
    """Print what each convolution of the network makes of an image."""
    from mnist_dist.commands.terminal_images import digit, is_plain
    from mnist_dist.data.loader import normalize
    from mnist_dist.models.feature_maps import feature_maps, montage
    from mnist_dist.models.summary import describe_layer

    normalized = normalize(image.unsqueeze(0), restored.config.data)
    for name, maps in feature_maps(restored.model, normalized):
        layer = describe_layer(restored.model.get_submodule(name))
        console.print(f"\n{layer}, {' x '.join(map(str, maps.shape))}, the first of them:", markup=False)
        console.print(digit(montage(maps, console.width), is_plain(console)))


def print_rows(console: Console, predicted: list[int], truth: list[int], classes: tuple[str, ...]) -> None:
    """Print predictions over truth over a row that marks mistakes with 1, then how many there were."""
    mistakes = [int(a != b) for a, b in zip(predicted, truth, strict=True)]
    for start in range(0, len(predicted), ROW):
        for name, row in (("predicted", predicted), ("true", truth), ("mistake", mistakes)):
            console.print(f"{name:<10}{' '.join(map(str, row[start : start + ROW]))}", soft_wrap=True)
        console.print()
    if any(name != str(label) for label, name in enumerate(classes)):
        console.print(", ".join(f"{label} {name}" for label, name in enumerate(classes)), markup=False, soft_wrap=True)
    right = len(predicted) - sum(mistakes)
    console.print(f"{right} of {len(predicted)} right ({right / len(predicted):.2%}), mistakes: {sum(mistakes)}")

"""`mnist-dist export RUN --to FORMAT`: a trained model as a file for other programs, checked on the whole test set."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, add_run_arguments
from mnist_dist.console.formatting import format_percent
from mnist_dist.utils.errors import EXIT_DONE, TrainingError, UserError
from mnist_dist.utils.files import check_writable, expand_home

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_dist.checkpoint.load_model import LoadedModel

FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2", "safetensors": "model.safetensors", "hub": "hub"}
"""Formats, and the file or folder that each one writes if --out does not name one."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "--to onnx: needs the packages onnx, onnxscript and onnxruntime: pip install 'mnist_dist[export]'"
MAX_DIFFERENCE = 1e-2
"""Largest difference of a logit that may be rounding: other programs add in another order."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist export ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, a missing package, no such run or checkpoint, no data of the run, or a file that is
            there already or cannot be written.
        TrainingError: the exported model does not classify as the run's model does. Nothing is written then.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    check_options(options)
    out = expand_home(options.out or FORMATS[options.to], "--out ")
    if out.exists():
        raise UserError(f"--out {out}: is there already; name another one, or remove it")
    try:
        check_writable(out)
    except OSError as error:
        raise UserError(cannot_be_written(out, error)) from None

    from mnist_dist.checkpoint.load_model import load_model
    from mnist_dist.commands.predictor import read_split

    loaded = load_model(options.run, options.checkpoint, options.model, options.trust)
    if options.to == "hub" and loaded.code:
        raise UserError(
            f"--to hub: the network {loaded.config.model.name} is not one of this package, and the folder would need "
            "its code; use --to onnx, torch-export or safetensors"
        )
    images, labels = read_split(loaded.config.data, loaded.digests, "test", options.root)
    print(f"to {options.to}, and compared on {len(images)} test images: some seconds ...", file=sys.stderr)
    aside = out.with_name(f".{out.name}.{os.getpid()}{out.suffix}")
    try:
        lines = write(loaded, options, images, labels, aside)
        os.replace(aside, out)
    except OSError as error:
        raise UserError(cannot_be_written(out, error)) from None
    finally:
        remove(aside)
    print("\n".join([*lines, f"written: {out}{os.sep if out.is_dir() else ''}"]))
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist export",
        description="Write the trained model of a run for other programs. Normalisation is part of the model: images "
        "go in as they are, and logits and probabilities come out, for any number of images. The file is read back and "
        "compared with the run's own model on the whole test set; if it classifies one image otherwise, it is refused.",
        examples=[
            "mnist-dist export last --to onnx",
            "mnist-dist export runs/digits --to onnx --int8 --out digits-int8.onnx",
            "mnist-dist export runs/digits --to torch-export --input float --out digits.pt2",
            "mnist-dist export runs/digits --to safetensors --checkpoint best",
            "mnist-dist export runs/digits --to hub --out digits",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--to",
        choices=tuple(FORMATS),
        required=True,
        help="onnx: for ONNX Runtime and others; torch-export: a graph for torch.export.load; safetensors: the weights "
        "and the settings; hub: a folder with a model card, ready for `hf upload`",
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="images (B, 28, 28) that an onnx or torch-export model takes: uint8 from 0 to 255, or float32 from 0 to 1 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--int8", action="store_true", help="onnx: round weights and activations to 8 bits, and print what that costs"
    )
    parser.add_argument(
        "--out", metavar="PATH", default="", help=f"file or folder to write (default: {', '.join(FORMATS.values())})"
    )
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError if options exclude each other, or a package is missing."""
    if options.int8 and options.to != "onnx":
        raise UserError(f"--int8: only with --to onnx, not --to {options.to}")
    suffix = Path(FORMATS[options.to]).suffix
    if options.out and Path(options.out).suffix != suffix and suffix:
        raise UserError(f"--out {options.out}: must end in {suffix} for --to {options.to}")
    if options.to == "onnx" and not all(map(find_spec, NEEDED)):
        raise UserError(INSTALL)


def write(loaded: LoadedModel, options: argparse.Namespace, images: Tensor, labels: Tensor, path: Path) -> list[str]:
    """Write the model to a path and compare it with the run's model.

    Args:
        images: the test set, uint8 (N, 28, 28).
        labels: (N,) of any integer type.

    Returns:
        What was found, one line each.

    Raises:
        TrainingError: the exported model classifies otherwise.
    """
    from mnist_dist.commands import export_formats as formats
    from mnist_dist.commands.exported_model import open_exported

    reference = formats.reference_logits(loaded, images)
    facts = formats.facts_of(loaded, options.input)
    if options.to == "hub":
        from mnist_dist.commands.hub_folder import write_hub_folder

        logits = write_hub_folder(path, loaded, facts, reference, images, labels)
    elif options.to == "safetensors":
        logits = formats.write_safetensors(path, loaded, facts, images)
    else:
        formats.write_graph(path, loaded, facts)
        logits = open_exported(path)(images)[0]
    lines = compare(reference, logits, labels)
    if options.int8:
        from mnist_dist.commands.predictor import read_split

        calibration, _ = read_split(loaded.config.data, loaded.digests, "train", options.root)
        formats.quantize(path, calibration[: formats.CALIBRATION_IMAGES], facts)
        lines.append(describe_cost(reference, open_exported(path)(images)[0], labels))
    return lines


def compare(reference: Tensor, logits: Tensor, labels: Tensor) -> list[str]:
    """The accuracy and the largest difference of a logit, in words.

    Raises:
        TrainingError: an image is classified otherwise, or a logit differs by more than rounding.
    """
    mine, theirs = reference.argmax(1), logits.argmax(1)
    difference = float((reference - logits).abs().max())
    if changed := int((mine != theirs).sum()):
        first = int((mine != theirs).nonzero()[0])
        raise TrainingError(
            f"export refused: {changed} of {len(labels)} test images are classified otherwise, image {first} first; "
            "nothing was written"
        )
    if not difference <= MAX_DIFFERENCE:
        raise TrainingError(f"export refused: logits differ by up to {difference:g}; nothing was written")
    right = int((theirs == labels).sum())
    accuracy = f"{format_percent(right / len(labels))} ({right} of {len(labels)})"
    return [
        f"test accuracy in float32: {accuracy}, the same prediction for each image",
        f"largest difference of a logit: {difference:.2g}",
    ]


def describe_cost(reference: Tensor, logits: Tensor, labels: Tensor) -> str:
    """What rounding to 8 bits costs in accuracy."""
    before, after = (int((found.argmax(1) == labels).sum()) for found in (reference, logits))
    changed = int((reference.argmax(1) != logits.argmax(1)).sum())
    return (
        f"int8: {format_percent(after / len(labels))} ({after} of {len(labels)}), {after - before:+d} images; "
        f"{changed} classified otherwise"
    )


def cannot_be_written(out: Path, error: OSError) -> str:
    """The message of that error."""
    return f"--out {out}: cannot be written ({error.strerror}); name another one with --out"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()

"""`mnist-dist report RUN...`: one HTML file about a run, or about several side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_dist.checkpoint.run_paths import REPORT, named_run
from mnist_dist.commands.arguments import Parser
from mnist_dist.tracking.report import INSTALL, ModelView, can_render, write_report
from mnist_dist.tracking.run_record import RunRecord, read_record
from mnist_dist.utils.errors import EXIT_DONE, UserError
from mnist_dist.utils.files import check_writable, expand_home

if TYPE_CHECKING:
    from mnist_dist.checkpoint.load_model import LoadedModel


def main(arguments: list[str]) -> int:
    """Run `mnist-dist report ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, matplotlib is not installed, a folder that holds no run, or a file that cannot be
            written.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    if not can_render():
        raise UserError(INSTALL)
    folders = [named_run(run) for run in options.runs]
    records = [read_record(folder) for folder in folders]
    out = expand_home(options.out, "--out ") if options.out else default_path(folders)
    try:
        check_writable(out)
        write_report(out, records, [view_of(record, options) for record in records])
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from None
    print(f"written: {out}")
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist report",
        description="Write one HTML file that shows runs: results, curves, confusion, the worst mistakes, filters, "
        "feature maps, layers, settings and how to repeat them. It needs no network and no other file. With several "
        "runs, curves lie over each other, and what differs comes first.",
        examples=[
            "mnist-dist report last",
            "mnist-dist report runs/digits --out digits.html",
            "mnist-dist report runs/one runs/two runs/three",
        ],
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; last: the newest run in runs/")
    parser.add_argument(
        "--out", metavar="FILE", default="", help=f"(default: {REPORT} in the run's folder; of several runs, here)"
    )
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="folder with the runs' data, if it was moved")
    parser.add_argument(
        "--trust", action="store_true", help="run the code in a run's folder that builds a network of its own"
    )
    return parser


def default_path(folders: list[Path]) -> Path:
    """Where the report is written without --out."""
    return folders[0] / REPORT if len(folders) == 1 else Path(REPORT)


def view_of(record: RunRecord, options: argparse.Namespace) -> ModelView:
    """What the report shows of a run's model; empty, with a line that says why, if it cannot be loaded and tested."""
    if not record.checkpoints:
        return ModelView()
    print(f"{record.folder}: testing the model ...", file=sys.stderr)

    from mnist_dist.checkpoint.load_model import load_model
    from mnist_dist.commands.predictor import read_split
    from mnist_dist.training.model_view import view_model

    try:
        loaded: LoadedModel = load_model(str(record.folder), trust=options.trust)
        images, labels = read_split(loaded.config.data, loaded.digests, "test", options.root)
    except UserError as error:
        print(f"mnist_dist: warning: {error}; the report has no pictures of this run's model", file=sys.stderr)
        return ModelView()
    tested = loaded.config.data.test_limit or len(images)  # as in the run, whose numbers the report shows
    return view_model(loaded.model, images[:tested], labels[:tested], loaded.config)

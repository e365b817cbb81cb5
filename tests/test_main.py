"""`mnist-dist --help`: fits a terminal, and its examples are commands that exist and take these arguments."""

from __future__ import annotations

import shlex

import pytest

from mnist_dist.__main__ import COMMANDS, EXAMPLES, main
from mnist_dist.commands.evaluate import build_parser as evaluate_parser
from mnist_dist.commands.predict import build_parser as predict_parser
from mnist_dist.commands.status import build_parser as status_parser
from mnist_dist.config.loader import load
from mnist_dist.utils.errors import EXIT_DONE

LINES = EXAMPLES.splitlines()[1:]
PARSERS = {
    "train": load,
    "doctor": load,
    "status": status_parser().parse_args,
    "evaluate": evaluate_parser().parse_args,
    "predict": predict_parser().parse_intermixed_args,
}


def test_help_fits_80_columns_and_ends_with_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert shown.endswith(EXAMPLES)
    assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("line", [line for line in LINES if "COMMAND" not in line])
def test_examples_parse(line: str) -> None:
    program, command, *arguments = shlex.split(line)
    assert program == "mnist-dist"
    assert command in COMMANDS
    PARSERS[command](arguments)

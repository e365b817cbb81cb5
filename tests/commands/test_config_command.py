"""`mnist-dist config`: the JSON schema on standard output; the examples of its help run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_dist.__main__ import main
from mnist_dist.commands.config import build_parser
from mnist_dist.config.json_schema import json_schema
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER


def test_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: what"),
        (["schem"], "invalid choice: 'schem' (choose from"),
        (["schema", "x"], "unrecognized arguments: x"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *arguments]) == EXIT_USER
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_examples_of_the_help_run_in_their_order(tmp_path: Path) -> None:
    examples = build_parser().examples
    assert len(examples) >= 3
    for example in examples:
        line = re.sub("^ *(python -m mnist_dist|mnist-dist)", f"{sys.executable} -m mnist_dist", example)
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()

"""How a command line is refused: exit code 2, nothing on standard output, and one line."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mnist_dist.__main__ import main
from mnist_dist.utils.errors import EXIT_USER


def refused_line(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which `mnist-dist ARGUMENTS` is refused."""
    assert main(list(arguments)) == EXIT_USER
    out, err = capsys.readouterr()
    assert out == ""
    (said,) = err.splitlines()
    return said

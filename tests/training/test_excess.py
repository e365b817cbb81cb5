"""A run that is asked for more images or threads than there are says so, and trains on what there is."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from harness import run_ranks
from programs import write_digits

from mnist_dist.train import main
from mnist_dist.utils.errors import EXIT_DONE

SETTINGS = [
    *("--data.root=.", "--data.source=local", "--data.val_size=50", "--run.threads=999", "--run.device=cpu"),
    *("--model.name=basic", "--train.epochs=1", "--train.batch_size=300", "--train.shards=1", "--data.limit=250"),
    *("--tracking.mode=disabled", "--run.dir=run"),
]


def train_and_capture(folder: Path) -> tuple[int, list[str]]:
    """The exit code, and the first words of each warning."""
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()) as captured, contextlib.redirect_stdout(io.StringIO()):
        code = main(SETTINGS)
    return code, [line.partition(" CPUs")[0].partition(";")[0] for line in captured.getvalue().splitlines()]


def test_a_run_warns_once_for_each_setting_that_asks_for_too_much(tmp_path: Path) -> None:
    write_digits(tmp_path, train=250, test=50)
    assert run_ranks(1, train_and_capture, tmp_path) == [
        (
            EXIT_DONE,
            [
                "warning: train.batch_size=300: there are 200 training images",
                "warning: data.limit=250: there are 200 training images",
                f"warning: run.threads=999: this machine has {os.cpu_count()}",
            ],
        )
    ]

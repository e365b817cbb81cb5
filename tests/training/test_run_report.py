"""tracking.report: what is written at the end of a run, that it changes nothing else, and that it fails no run."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from measured_keys import MEASURED_ROW_KEYS, MEASURED_SUMMARY_KEYS
from programs import write_digits

from mnist_dist.__main__ import main as command
from mnist_dist.train import main
from mnist_dist.training import run_report
from mnist_dist.training.metric_logger import MetricLogger
from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra `report`")
SMALL = (
    *("--data.source=local", "--run.device=cpu", "--model.name=basic", "--train.precision=no", "--train.epochs=2"),
    *("--train.batch_size=24", "--train.eval_batch_size=7", "--tracking.mode=disabled", "--tracking.log_steps=1"),
    "--data.val_size=24",
)
MATPLOTLIB = "has imported matplotlib"
Ended = tuple[int, str, str]
"""Exit code, standard output and standard error of a rank, or MATPLOTLIB in the last one's place."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data in `data`."""
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=72, test=30)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_on_rank(home: Path, arguments: tuple[str, ...], before: Callable[[], None] | None) -> Ended:
    os.chdir(home)
    if before:
        before()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*SMALL, "--data.root=data", *arguments])
    return code, out.getvalue(), err.getvalue() or MATPLOTLIB * bool(sys.modules.get("matplotlib"))


def train(
    home: Path, folder: str, *arguments: str, world_size: int = 1, before: Callable[[], None] | None = None
) -> list[Ended]:
    return run_ranks(world_size, train_on_rank, home, (f"--run.dir={folder}", *arguments), before)


def computed(folder: Path) -> tuple[Any, Any]:
    """Rows and summary of a run, without what was measured, and without where and when it ran."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    other = MEASURED_SUMMARY_KEYS | {"run_id", "resumed_from"}
    return (
        [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows],
        {key: value for key, value in summary.items() if key not in other},
    )


def mistakes(folder: Path) -> list[str]:
    return re.findall(r'alt="(Test image .*?)"', (folder / "report.html").read_text())


@needs_matplotlib
@pytest.mark.parametrize("val_size", [0, 24])
def test_it_changes_nothing_and_shows_the_same_on_two_ranks(home: Path, val_size: int) -> None:
    held_out = f"--data.val_size={val_size}"
    for world_size in (1, 2):
        for report in ("true", "false"):
            folder = f"{report}-{world_size}"
            ranks = train(home, folder, held_out, f"--tracking.report={report}", world_size=world_size)
            assert [code for code, *_ in ranks] == [EXIT_DONE] * world_size
            assert ranks[0][1].splitlines()[-1] == (
                f"report: {folder}/report.html" if report == "true" else f"run folder: {folder}"
            )
            assert [out + err for _, out, err in ranks[1:]] == [""] * (world_size - 1)  # and imports nothing
            assert (home / folder / "report.html").exists() == (report == "true")
        assert computed(home / f"true-{world_size}") == computed(home / f"false-{world_size}")
    text = (home / "true-2" / "report.html").read_text()
    summary = json.loads((home / "true-2" / "summary.json").read_text())
    assert summary["weights_sha256"] in text
    assert "Worst mistakes" in text
    assert mistakes(home / "true-1") == mistakes(home / "true-2")
    assert len(mistakes(home / "true-1")) == min(30 - summary["test.correct"], 24) > 0


@needs_matplotlib
def test_the_command_shows_the_mistakes_that_the_run_tested(home: Path) -> None:
    ((code, *_),) = train(home, "run", "--tracking.report=true", "--data.test_limit=12")
    at_the_end = mistakes(home / "run")
    assert (code, bool(at_the_end)) == (EXIT_DONE, True)
    assert command(["report", "run"]) == EXIT_DONE
    assert mistakes(home / "run") == at_the_end


def count_few_images_as_many() -> None:
    run_report.AUTO_IMAGES = 2 * 48


@needs_matplotlib
def test_auto_writes_it_after_many_images_only_and_imports_nothing_otherwise(home: Path) -> None:
    ((code, out, err),) = train(home, "few")
    assert (code, out.splitlines()[-1], err) == (EXIT_DONE, "run folder: few", "")
    assert not (home / "few" / "report.html").exists()
    ((code, out, err),) = train(home, "many", before=count_few_images_as_many)
    assert (code, out.splitlines()[-1], err) == (EXIT_DONE, "report: many/report.html", MATPLOTLIB)
    ((code, *_),) = train(home, "fewer", "--train.max_steps=3", before=count_few_images_as_many)
    assert (code, (home / "fewer" / "report.html").exists()) == (EXIT_DONE, False)
    ((code, out, _),) = train(home, "quiet", "--tracking.report=true", "--run.quiet=true")
    assert (code, out) == (EXIT_DONE, "quiet\n")


def hide_matplotlib() -> None:
    sys.modules["matplotlib"] = None  # type: ignore[assignment]


@pytest.mark.parametrize("world_size", [1, 2])
def test_true_without_matplotlib_is_one_line_and_auto_is_silent(home: Path, world_size: int) -> None:
    ranks = train(home, "run", "--tracking.report=true", world_size=world_size, before=hide_matplotlib)
    assert [code for code, *_ in ranks] == [EXIT_USER] * world_size
    lines = [line for _, _, err in ranks for line in err.splitlines()]
    assert set(lines) == {
        "mnist_dist: error: tracking.report=true: matplotlib is not installed; run: pip install 'mnist_dist[report]'"
    }
    assert not (home / "run").exists()
    ranks = train(home, "run", world_size=world_size, before=hide_matplotlib_after_many_images)
    assert [(code, err) for code, _, err in ranks] == [(EXIT_DONE, "")] * world_size


def hide_matplotlib_after_many_images() -> None:
    hide_matplotlib()
    count_few_images_as_many()


def raise_an_error() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no such colour\nand more")

    run_report.write_report = fail


def interrupt_twice() -> None:
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # only asks to stop, when there is nothing left to stop
        os.kill(os.getpid(), signal.SIGINT)

    run_report.write_report = interrupt


def fill_the_disk() -> None:
    """The report's first half fits, its second one does not."""
    write_text = Path.write_text

    def write_half(path: Path, text: str, **options: Any) -> int:
        if "report" not in path.name:
            return write_text(path, text, **options)
        write_text(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    Path.write_text = write_half  # type: ignore[assignment,method-assign]


@needs_matplotlib
@pytest.mark.parametrize(
    ("before", "why"),
    [
        (raise_an_error, "ValueError: no such colour"),
        (fill_the_disk, "OSError: [Errno 28] No space left on device"),
        (interrupt_twice, "inter"),
    ],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_error_or_an_interrupt_is_one_warning_of_a_finished_run(
    home: Path, before: Callable[[], None], why: str, world_size: int
) -> None:
    ranks = train(home, "run", "--tracking.report=true", world_size=world_size, before=before)
    assert [code for code, *_ in ranks] == [EXIT_DONE] * world_size
    (line,) = ranks[0][2].splitlines()
    assert line.startswith(f"warning: run/report.html was not written ({why}")
    assert line.endswith("; `mnist-dist report run` writes it")
    assert json.loads((home / "run" / "status.json").read_text())["state"] == "finished"
    assert not [path for path in (home / "run").iterdir() if "report" in path.name]
    assert (home / "run" / "summary.json").exists()


def stop_at(step: int) -> None:
    write = MetricLogger.write

    def write_and_stop(self: MetricLogger, row: dict[str, Any]) -> None:
        write(self, row)
        if self.state.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricLogger.write = write_and_stop  # type: ignore[method-assign]


@needs_matplotlib
def test_a_stopped_run_has_none_and_one_that_goes_on_has_one_of_all_its_steps(home: Path) -> None:
    always = ("--tracking.report=true", "--data.val_size=0", "--optim.schedule=constant", "--optim.warmup=0")
    ((code, *_),) = train(home, "run", *always, before=partial(stop_at, 4))
    assert (code, (home / "run" / "report.html").exists()) == (EXIT_STOPPED, False)
    for _ in range(2):  # the second time there is nothing left to train
        ((code, *_),) = train(home, "run", *always)
        assert code == EXIT_DONE
        assert mistakes(home / "run")
    ((code, *_),) = train(home, "undisturbed", *always)
    assert mistakes(home / "undisturbed") == mistakes(home / "run")
    assert ">finished<" in (home / "run" / "report.html").read_text()
    # More epochs: an old report would be wrong, until the run has ended again.
    ((code, *_),) = train(home, "run", *always, "--train.epochs=9", before=partial(stop_at, 8))
    assert (code, (home / "run" / "report.html").exists()) == (EXIT_STOPPED, False)

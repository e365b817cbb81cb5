"""The error file of torchrun: what its report quotes as the root cause."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mnist_dist.utils.errors import Stopped, TrainingError, UserError
from mnist_dist.utils.exit import run_to_exit_code


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (UserError("optim.lr=x: must be a number"), "traceback : optim.lr=x: must be a number\n"),
        (TrainingError("the loss is nan", everywhere=True), "traceback : the loss is nan\n"),
        (Stopped("at step 3, with a checkpoint"), "traceback : stopped: at step 3, with a checkpoint\n"),
        (ZeroDivisionError("what"), "ZeroDivisionError: what\n"),
    ],
)
def test_torchrun_quotes_the_error_of_each_rank(
    error: Exception, quoted: str, rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def action() -> int:
        raise error

    path = tmp_path / "error.json"
    for name, value in {"TORCHELASTIC_ERROR_FILE": str(path), "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mnist_dist.utils.exit.time.sleep", lambda seconds: None)
    code = run_to_exit_code(action)
    failure = ProcessFailure(local_rank=int(rank), pid=1, exitcode=code, error_file=str(path))
    report = ChildFailedError("mnist_dist.train", {int(rank): failure}).format_msg()
    assert quoted in report
    assert "To enable traceback" not in report


def test_a_folder_that_is_gone_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> int:
        raise UserError("x")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    assert run_to_exit_code(action) == 2
    assert capsys.readouterr().err == "mnist_dist: error: x\n"

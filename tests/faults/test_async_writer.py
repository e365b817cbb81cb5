"""The background writer: training does not wait for it, one write is in flight at most, failures become warnings."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoint import is_same, saved

from mnist_dist.checkpoint import async_writer, manager
from mnist_dist.checkpoint.async_writer import CheckpointWriter
from mnist_dist.checkpoint.manager import CheckpointData, list_checkpoints, load_verified, save_checkpoint, step_of
from mnist_dist.utils.errors import TrainingError

TIMEOUT = 20.0  # seconds


def steps(root: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(root)]


class Gate:
    """Replaces `save_checkpoint`: sets `reached` when it is called, and waits for `opened` before it writes."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.writing = 0
        self.most = 0

    def __call__(self, root: Path, step: int, saved: CheckpointData) -> Path:
        self.writing += 1
        self.most = max(self.most, self.writing)
        self.reached.set()
        assert self.opened.wait(TIMEOUT)
        path = save_checkpoint(root, step, saved)
        self.writing -= 1
        return path


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(async_writer, "save_checkpoint", gate)
    return gate


def test_it_writes_what_it_was_given_and_deletes_what_is_not_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints", 2, pytest.fail)
    for step in (2, 4, 6, 8):
        writer.submit(step, saved(step=step), best_step=2)
    writer.finish()
    assert steps(tmp_path / "checkpoints") == [2, 6, 8]
    assert is_same(load_verified(tmp_path / "checkpoints" / "step-00000006").parse(), saved(step=6))
    writer.finish()  # again: no effect


def test_training_may_change_the_tensors_while_their_copies_are_written(tmp_path: Path, gate: Gate) -> None:
    model = saved()
    writer = CheckpointWriter(tmp_path, 2, pytest.fail)
    writer.submit(7, model.to_host(), None)
    assert gate.reached.wait(TIMEOUT)
    assert steps(tmp_path) == []  # the write has begun, and `submit` has returned
    for tensor in model.model.values():
        tensor.zero_()
    gate.opened.set()
    writer.finish()
    assert is_same(load_verified(tmp_path / "step-00000007").parse(), saved())


def test_at_most_one_is_in_flight(tmp_path: Path, gate: Gate) -> None:
    writer = CheckpointWriter(tmp_path, 9, pytest.fail)
    writer.submit(1, saved(step=1), None)
    second = threading.Thread(target=writer.submit, args=(2, saved(step=2), None))
    second.start()
    assert gate.reached.wait(TIMEOUT)
    assert second.is_alive()  # it waits for the first
    gate.opened.set()
    second.join(TIMEOUT)
    writer.finish()
    assert gate.most == 1
    assert steps(tmp_path) == [1, 2]


def test_the_thread_does_not_keep_the_process_alive(tmp_path: Path, gate: Gate) -> None:
    writer = CheckpointWriter(tmp_path, 1, pytest.fail)
    writer.submit(1, saved(step=1), None)
    assert writer.thread is not None
    assert writer.thread.daemon
    gate.opened.set()
    writer.finish()


def vanish(root: Path) -> None:
    """Remove the run directory, as when its mount is gone."""
    shutil.move(root.parent, root.parent.with_name("elsewhere"))


def come_back(root: Path) -> None:
    shutil.move(root.parent.with_name("elsewhere"), root.parent)


def block(root: Path) -> None:
    """Let steps 2 and 3 fail: a file has the name of the temporary folder. Permissions would not stop root."""
    for step in (2, 3):
        (root / f".writing-step-{step:08d}").write_text("in the way")


def unblock(root: Path) -> None:
    for step in (2, 3):
        (root / f".writing-step-{step:08d}").unlink()


@pytest.mark.parametrize(("spoil", "mend"), [(vanish, come_back), (block, unblock)])
def test_a_failure_is_one_warning_and_an_error_only_for_the_last_checkpoint(
    spoil: Callable[[Path], None], mend: Callable[[Path], None], tmp_path: Path
) -> None:
    root = tmp_path / "run" / "checkpoints"
    root.parent.mkdir()
    warnings: list[str] = []
    writer = CheckpointWriter(root, 5, warnings.append)
    writer.submit(1, saved(step=1), None)
    writer.wait()
    spoil(root)
    for step in (2, 3):
        writer.submit(step, saved(step=step), None)
    with pytest.raises(TrainingError, match=r"^checkpoint .*step-00000003: cannot be written \(") as error:
        writer.finish()
    assert len(str(error.value).splitlines()) == 1
    assert [warning.split(":")[0] for warning in warnings] == [
        f"checkpoint {root / 'step-00000002'}",
        f"checkpoint {root / 'step-00000003'}",
    ]
    assert all(warning.endswith("; training goes on without it") for warning in warnings)
    assert not root.parent.exists() or steps(root) == [1]  # nothing was written where the mount was
    mend(root)
    assert is_same(load_verified(root / "step-00000001").parse(), saved(step=1))
    writer.submit(4, saved(step=4), None)
    writer.finish()
    assert steps(root) == [1, 4]
    assert len(warnings) == 2


def test_an_unexpected_exception_is_raised_by_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(async_writer, "save_checkpoint", fail)
    warnings: list[str] = []
    writer = CheckpointWriter(tmp_path, 1, warnings.append)
    writer.submit(1, saved(step=1), None)
    with pytest.raises(MemoryError, match="no memory left"):
        writer.finish()
    assert len(warnings) == 1


def test_pruning_waits_for_the_new_one_to_be_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If fsync of the folder fails, every earlier checkpoint is kept."""

    root = tmp_path / "checkpoints"
    writer = CheckpointWriter(root, 1, lambda text: None)
    writer.submit(1, saved(step=1), None)
    writer.wait()
    sync = manager.sync

    def lost(path: Path) -> None:
        if path == root:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(manager, "sync", lost)
    writer.submit(2, saved(step=2), None)
    with pytest.raises(TrainingError, match="Input/output error"):
        writer.finish()
    assert 1 in steps(root)

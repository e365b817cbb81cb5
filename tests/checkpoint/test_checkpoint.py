"""Checkpoints: read back as written, damage detected and named, nothing incomplete left, the right ones pruned."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoint import FILES, corruption, is_same, replace_file, saved, state_of
from torch import Tensor, nn

from mnist_dist.checkpoint import manager
from mnist_dist.checkpoint.format import MAX_STATE_BYTES
from mnist_dist.checkpoint.manager import (
    CheckpointData,
    list_checkpoints,
    load_verified,
    newest_verified,
    prune_checkpoints,
    recover,
    save_checkpoint,
)
from mnist_dist.checkpoint.tensors import load_weights, weights_sha256
from mnist_dist.models import create_model
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.files import MAX_JSON_BYTES, atomic_write, read_json


def assert_same(found: CheckpointData, expected: CheckpointData) -> None:
    assert is_same(found, expected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of step 7."""
    return save_checkpoint(tmp_path / "checkpoints", 7, saved())


# Whole


def test_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 7, saved())
    assert path == tmp_path / "checkpoints" / "step-00000007"
    assert corruption(path) is None
    assert_same(load_verified(path).parse(), saved())
    assert os.listdir(path.parent) == [path.name]
    assert sorted(os.listdir(path)) == sorted([*FILES, "manifest.json"])


def test_empty_parts_are_read_back_empty(tmp_path: Path) -> None:
    """SGD without momentum has no state, and most runs have no EMA."""
    plain = replace(saved(step=0), optimizer={}, ema={})
    path = save_checkpoint(tmp_path, 0, plain)
    assert not (path / "ema.safetensors").exists()
    assert_same(load_verified(path).parse(), plain)


def test_the_manifest_describes_every_file(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (1, 7)
    assert manifest["files"] == {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in FILES
    }


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tied = CheckpointData({"a": shared, "b": shared, "c": shared.T}, {}, {}, state_of(1))
    assert_same(load_verified(save_checkpoint(tmp_path, 1, tied)).parse(), tied)


def test_the_same_step_again_replaces_the_first(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, saved(1))
    path = save_checkpoint(tmp_path, 7, saved(2))
    assert_same(load_verified(path).parse(), saved(2))
    assert os.listdir(tmp_path) == [path.name]


def test_incomplete_folders_of_a_killed_process_are_ignored_and_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    first = save_checkpoint(tmp_path, 7, saved(1))
    with monkeypatch.context() as patched:  # while it writes, and while it deletes the one it replaced
        patched.setattr(manager, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 7, saved(2))
    for name in (f".replaced-{first.name}", ".deleting-step-00000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half deleted")
    assert (tmp_path / f".writing-{first.name}").exists()
    assert list_checkpoints(tmp_path) == [first]
    assert newest_verified(tmp_path, pytest.fail).folder == first
    assert_same(load_verified(first).parse(), saved(1))

    assert_same(load_verified(save_checkpoint(tmp_path, 7, saved(3))).parse(), saved(3))
    assert os.listdir(tmp_path) == [first.name]


@pytest.mark.parametrize("settle", [recover, lambda root: save_checkpoint(root, 9, saved(step=9))])
def test_a_checkpoint_moved_aside_for_a_new_one_that_is_not_there_gets_its_name_back(
    tmp_path: Path, settle: Callable[[Path], Any]
) -> None:
    """As after a kill between the two renames, when a step is saved again."""
    path = save_checkpoint(tmp_path, 7, saved())
    path.rename(tmp_path / f".replaced-{path.name}")
    settle(tmp_path)
    assert_same(load_verified(path).parse(), saved())
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_nothing_to_recover_is_no_error(tmp_path: Path) -> None:
    recover(tmp_path / "absent")
    path = save_checkpoint(tmp_path, 7, saved())
    recover(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_copies_on_the_host_are_private(tmp_path: Path) -> None:
    original = saved()
    copies = original.to_host()
    for tensors in (original.model, original.optimizer, original.ema):
        for tensor in tensors.values():
            tensor.zero_()
    assert_same(copies, saved())
    assert all(tensor.is_contiguous() for tensor in copies.model.values())


def test_everything_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = manager.sync, Path.rename
    monkeypatch.setattr(manager, "sync", lambda path: (events.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (events.append("rename"), rename(path, to))[1])
    save_checkpoint(tmp_path, 7, saved())
    assert events[:5] == [*FILES, "manifest.json"]
    assert events[5:] == [".writing-step-00000007", "rename", tmp_path.name]


# Failed writes


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Like a full disk: no file can grow beyond this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("limit", "fits"), [(100, 0), (1000, 1), (3000, 2), (7000, 3)])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, fits: int
) -> None:
    """Each file is larger than the one before, so that the limit lets some of them be written."""
    big = CheckpointData(
        {"a": torch.zeros(100)}, {"a/b": torch.zeros(500)}, {"a": torch.zeros(1000)}, {"text": "x" * 9000}
    )
    first, second = (save_checkpoint(tmp_path, step, saved(1)) for step in (6, 7))
    written: list[int] = []
    remove = shutil.rmtree
    monkeypatch.setattr(
        shutil,
        "rmtree",
        lambda path, **options: (
            written.extend(file.stat().st_size for file in path.glob("*")),
            remove(path, **options),
        ),
    )
    with files_up_to(limit), pytest.raises(TrainingError) as error:
        save_checkpoint(tmp_path, 7, big)
    assert sum(size < limit for size in written) == fits
    assert str(error.value).startswith(f"checkpoint {second}: cannot be written (")
    assert len(str(error.value).splitlines()) == 1
    assert list_checkpoints(tmp_path) == sorted(tmp_path.iterdir()) == [first, second]
    assert_same(load_verified(second).parse(), saved(1))


def test_a_failed_last_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(TrainingError, match="Permission denied"):
        save_checkpoint(tmp_path, 7, saved())
    assert os.listdir(tmp_path) == []


def test_a_run_directory_that_vanished_is_not_created_again(tmp_path: Path) -> None:
    """If its mount is gone, the disk below must not be filled."""
    with pytest.raises(TrainingError, match="No such file or directory"):
        save_checkpoint(tmp_path / "run" / "checkpoints", 7, saved())
    assert list(tmp_path.iterdir()) == []


def test_what_the_reader_would_refuse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state, said in ({"loss": math.nan}, "not JSON compliant"), ({"text": "x" * MAX_STATE_BYTES}, "no more than"):
        with pytest.raises(TrainingError, match=f"cannot be written .*{said}"):
            save_checkpoint(tmp_path, 7, replace(saved(), state=state))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="step-00000007: cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 7, saved())


# Damage


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change keys of the manifest."""

    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes, indent=1))

    return change


def describe_as(name: str, **description: Any) -> Callable[[Path], None]:
    """Add an entry to the manifest, or replace one."""

    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = description
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def flip(name: str, place: int) -> Callable[[Path], None]:
    """Flip one bit of the byte at `place`, counted from the end if negative."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return change


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def turn_into_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def turn_into_link(name: str) -> Callable[[Path], None]:
    """Replace a file by a link to the same content."""

    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def turn_into_pipe(name: str) -> Callable[[Path], None]:
    """Replace a file by a named pipe without a writer: an ordinary open would never return."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def add_a_space(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


ANYTHING = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"{name} missing": ((lambda folder, name=name: (folder / name).unlink()), rf"{name}: No such") for name in FILES
    },
    **{f"{name} truncated": (truncate(name, 40), rf"{name}: 40 bytes instead of \d+") for name in FILES},
    **{f"{name} empty": (truncate(name, 0), rf"{name}: 0 bytes instead of") for name in FILES},
    **{f"{name} grown": (truncate(name, 100_000), rf"{name}: 100000 bytes instead of") for name in FILES},
    **{f"{name} flipped": (flip(name, -2), rf"{name}: does not match its SHA-256 in the manifest") for name in FILES},
    "header flipped": (flip("model.safetensors", 0), "model.safetensors: does not match its SHA-256"),
    "a folder for a file": (turn_into_folder("state.json"), r"state\.json: "),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: No such file"),
    "manifest a folder": (turn_into_folder("manifest.json"), r"manifest\.json: Is a directory"),
    "manifest empty": (truncate("manifest.json", 0), r"manifest\.json: Expecting value"),
    "manifest truncated": (truncate("manifest.json", 100), r"manifest\.json: "),
    "manifest not text": (write("manifest.json", b"\xff\xfe{}"), r"manifest\.json: .*decode"),
    "manifest no object": (write("manifest.json", b"[1]"), r"manifest\.json: does not hold an object"),
    "manifest huge": (write("manifest.json", b" " * MAX_JSON_BYTES + b"{}"), r"manifest\.json: is larger than"),
    "manifest deep": (write("manifest.json", b"[" * 500_000), r"manifest\.json: is nested too deeply"),
    "manifest huge number": (write("manifest.json", b'{"format": ' + b"1" * 9000 + b"}"), r"manifest\.json: "),
    "other format": (edit(format=2), r"manifest\.json: format 2, this version reads 1"),
    "files a list": (edit(files=["state.json"]), r"manifest\.json: "),
    "no files": (edit(files={}), r"manifest\.json: does not list state\.json"),
    "no description": (describe_as("state.json"), r"manifest\.json: "),
    "description no object": (lambda folder: edit(files=dict.fromkeys(FILES, 3))(folder), r"manifest\.json: "),
    "wrong digest": (describe_as("state.json", sha256="0" * 64, bytes=89), r"state\.json: "),
    "size a text": (
        describe_as("state.json", sha256="", bytes="89"),
        r"manifest\.json: does not list state\.json with",
    ),
    "name above": (
        describe_as("../elsewhere", **ANYTHING),
        r"manifest\.json: '\.\./elsewhere' is not a file of a checkpoint",
    ),
    "name absolute": (
        describe_as("/etc/passwd", **ANYTHING),
        r"manifest\.json: '/etc/passwd' is not a file of a checkpoint",
    ),
    "name below": (describe_as("a/b", **ANYTHING), r"manifest\.json: 'a/b' is not a file of a checkpoint"),
    "name of the folder": (describe_as(".", **ANYTHING), r"manifest\.json: '\.' is not a file of a checkpoint"),
    "name of the folder above": (
        describe_as("..", **ANYTHING),
        r"manifest\.json: '\.\.' is not a file of a checkpoint",
    ),
    "name empty": (describe_as("", **ANYTHING), r"manifest\.json: '' is not a file of a checkpoint"),
    "name with a null": (describe_as("a\0b", **ANYTHING), r"manifest\.json: 'a\\x00b' is not"),
    "name unknown": (describe_as("run.py", **ANYTHING), r"manifest\.json: 'run.py' is not a file of a checkpoint"),
    "format true": (edit(format=True), r"manifest\.json: format True"),
    "step of another": (edit(step=8), r"manifest\.json: step 8 is not the step in the folder's name"),
    "step true": (edit(step=True), r"manifest\.json: step True is not"),
    "step negative": (edit(step=-7), r"manifest\.json: step -7 is not"),
    "step a fraction": (edit(step=7.0), r"manifest\.json: step 7\.0 is not"),
    "step nan": (edit(step=math.nan), r"manifest\.json: holds NaN, which is not a JSON number"),
    "step infinite": (write("manifest.json", b'{"step": 1e999}'), r"manifest\.json: holds a number that is too large"),
    "another key": (edit(code="x"), r"manifest\.json: has other keys than"),
    "one more space": (
        lambda folder: add_a_space(folder / "manifest.json"),
        r"manifest\.json: is not formatted as it was",
    ),
    "a key twice": (write("manifest.json", b'{"step": 1, "step": 7}'), r"manifest\.json: names a key twice"),
    "size true": (describe_as("state.json", sha256="", bytes=True), r"manifest\.json: does not list state\.json with"),
    "size huge": (describe_as("state.json", sha256="", bytes=2**62), r"state\.json: \d+ bytes instead of"),
    "one more word": (
        describe_as("state.json", sha256="", bytes=1, mode="x"),
        r"manifest\.json: does not list state\.json with",
    ),
    "a link": (turn_into_link("model.safetensors"), r"model\.safetensors: is a link, not a file"),
    "manifest a link": (turn_into_link("manifest.json"), r"manifest\.json: is a link, not a file"),
    "a pipe": (turn_into_pipe("model.safetensors"), r"model\.safetensors: is not a regular file"),
    "manifest a pipe": (turn_into_pipe("manifest.json"), r"manifest\.json: is not a regular file"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_detected_and_named(folder: Path, case: str) -> None:
    inflict, reason = DAMAGES[case]
    (folder.parent / "elsewhere").write_bytes(b"")  # as the manifest describes it, if it were read
    inflict(folder)
    assert corruption(folder) is not None
    with pytest.raises(UserError, match=rf"^checkpoint .*step-00000007: .*{reason}.*; choose another one$") as error:
        load_verified(folder).parse()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    folders = [save_checkpoint(tmp_path, step, saved(step=step)) for step in (5, 20_000_000, 100_000_000)]
    assert list_checkpoints(tmp_path) == folders
    (tmp_path / "step-5").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-00000300").write_text("a file")
    flip("model.safetensors", -1)(folders[2])
    (folders[1] / "state.json").unlink()
    warnings: list[str] = []
    assert newest_verified(tmp_path, warnings.append).folder == folders[0]
    assert [warning.split(" ")[1] for warning in warnings] == [
        str(folders[2]),
        str(folders[1]),
        str(tmp_path / "step-00000300"),
    ]
    assert "(state.json: No such file or directory) and passed over" in warnings[1]
    (folders[0] / "manifest.json").unlink()
    assert newest_verified(tmp_path, warnings.append) is None
    assert newest_verified(tmp_path / "absent", pytest.fail) is None


def test_a_file_that_the_manifest_does_not_name_is_not_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, replace(saved(), ema={}))
    (path / "ema.safetensors").write_bytes(b"not checked")
    (path / "notes.txt").write_text("mine")
    assert load_verified(path).parse().ema == {}


def test_a_renamed_checkpoint_is_refused(folder: Path) -> None:
    other = folder.rename(folder.with_name("step-00000008"))
    assert corruption(other) == "manifest.json: step 7 is not the step in the folder's name"
    assert corruption(other.rename(folder.with_name("good"))) == "the folder's name is not step- and eight digits"


def test_nothing_that_is_read_can_execute(folder: Path, tmp_path: Path) -> None:
    """A pickle whose digest is in the manifest is refused, not executed."""
    pickle = tmp_path / "pickle"
    torch.save({"a": torch.zeros(1)}, pickle)
    replace_file(folder, "model.safetensors", pickle.read_bytes())
    assert corruption(folder) == "model.safetensors: its header is larger than the file or than any we write"


# Deleting


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (2, 1, [1, 4, 5]),
        (2, 5, [4, 5]),
        (2, 99, [4, 5]),
        (5, None, [1, 2, 3, 4, 5]),
        (9, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    for step in (1, 2, 3, 4, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "notes").mkdir()
    prune_checkpoints(tmp_path, keep, best, newest_step=5)
    assert [manager.step_of(path) for path in list_checkpoints(tmp_path)] == left
    assert (tmp_path / "notes").exists()


def test_a_damaged_checkpoint_of_a_later_step_is_not_kept_instead_of_a_whole_one(tmp_path: Path) -> None:
    """The run resumed from step 1, because step 9 was damaged, and is now at step 5."""
    for step in (1, 5, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
    prune_checkpoints(tmp_path, keep=1, best_step=None, newest_step=5)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


# Weights


def plain_sha256(model: nn.Module) -> str:
    """The digest by its definition, number by number."""
    letters = {torch.float32: "f", torch.int64: "q", torch.bool: "?"}
    data = b""
    for name in sorted(model.state_dict()):
        tensor = model.state_dict()[name]
        data += name.encode()
        data += b"".join(struct.pack(f"<{letters[tensor.dtype]}", number) for number in tensor.flatten().tolist())
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", ["basic", "convnet"])
def test_weights_sha256_is_as_defined_in_any_memory_format(name: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = create_model(name)
    digest = weights_sha256(model)
    assert digest == plain_sha256(model)
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == digest  # type: ignore[call-overload]
    next(model.parameters()).data[0, 0, 0, 0] += 1e-6
    assert weights_sha256(model) != digest


def test_weights_sha256_counts_buffers_and_names() -> None:
    model = nn.BatchNorm2d(3)
    model.num_batches_tracked.fill_(5)
    digest = weights_sha256(model)
    assert digest == plain_sha256(model)
    model.num_batches_tracked.fill_(6)
    assert weights_sha256(model) != digest
    assert weights_sha256(nn.Sequential(nn.Linear(2, 2))) != weights_sha256(nn.Linear(2, 2))


def test_weights_are_copied_into_the_model_and_keep_its_layout() -> None:
    source = create_model("convnet")
    target: nn.Module = create_model("convnet")
    target.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strides = [p.stride() for p in target.parameters()]
    load_weights(target, source.state_dict(), "here")
    assert weights_sha256(target) == weights_sha256(source)
    assert [p.stride() for p in target.parameters()] == strides
    assert not {p.data_ptr() for p in target.parameters()} & {p.data_ptr() for p in source.parameters()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "here: head.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "here: extra is not part of this model"),
        (
            lambda t: t.update({"head.bias": torch.zeros(11)}),
            r"here: head.bias is torch.float32 \(11,\), the model's torch.float32 \(10,\)",
        ),
        (lambda t: t.update({"head.bias": torch.zeros(10).double()}), r"here: head.bias is torch.float64 \(10,\)"),
    ],
)
def test_weights_of_another_model_are_refused(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    model = create_model("basic")
    before = weights_sha256(model)
    tensors = {name: torch.full_like(tensor, 3) for name, tensor in model.state_dict().items()}
    change(tensors)
    with pytest.raises(UserError, match=f"^{message}"):
        load_weights(model, tensors, "here")
    assert weights_sha256(model) == before


# Atomic writes


def test_atomic_write_replaces_a_file_or_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with atomic_write(path) as file:
        file.write_text('{"a": 1}')
        assert not path.exists()

    def fail() -> None:
        with atomic_write(path) as file:
            file.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == ["file.json"]
    assert read_json(path) == {"a": 1}

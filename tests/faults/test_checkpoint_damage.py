"""Property tests and fuzzing of the reader: all damage is detected, and forged files are refused in one line."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_checkpoint import FILES, corruption, is_same, replace_file, saved, state_of

from mnist_dist.checkpoint import state as checkpoint_state
from mnist_dist.checkpoint.format import MAX_BYTES
from mnist_dist.checkpoint.manager import load_verified, newest_verified, save_checkpoint, serialize
from mnist_dist.checkpoint.state import TrainProgress, check_state
from mnist_dist.checkpoint.tensors import parse_tensors
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import MAX_JSON_BYTES

EACH = (*FILES, "manifest.json")
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def content() -> dict[str, bytes]:
    """The files of a small checkpoint of step 7."""
    return serialize(7, saved())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of step 7, with an older one of step 3 beside it."""
    save_checkpoint(tmp_path, 3, saved(step=3))
    return save_checkpoint(tmp_path, 7, saved())


def restore(folder: Path) -> None:
    """Write every file of the checkpoint anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in content().items():
        (folder / name).write_bytes(data)


# Damage


def flip(folder: Path, name: str, place: float, bit: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    (folder / name).write_bytes(data)


def truncate(folder: Path, name: str, place: float, bit: int) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(place * len(data))])


def add(folder: Path, name: str, place: float, bit: int) -> None:
    data = (folder / name).read_bytes()
    where = int(place * (len(data) + 1))
    (folder / name).write_bytes(data[:where] + bytes([1 << bit]) + data[where:])


def remove(folder: Path, name: str, place: float, bit: int) -> None:
    (folder / name).unlink()


def swap(folder: Path, name: str, place: float, bit: int) -> None:
    other = [each for each in EACH if each != name][int(place * (len(EACH) - 1))]
    (folder / name).rename(folder / "between")
    (folder / other).rename(folder / name)
    (folder / "between").rename(folder / other)


def zero(folder: Path, name: str, place: float, bit: int) -> None:
    """A block that was never written: zeros up to the end."""
    data = (folder / name).read_bytes()
    where = int(place * len(data) * 0.9)
    (folder / name).write_bytes(data[:where] + bytes(len(data) - where))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inflict=st.sampled_from([flip, truncate, add, remove, swap, zero]),
    name=st.sampled_from(EACH),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_damage_is_named_and_the_one_before_is_used(
    folder: Path, inflict: Callable[..., None], name: str, place: float, bit: int
) -> None:
    restore(folder)
    inflict(folder, name, place, bit)
    warnings: list[str] = []
    newest = newest_verified(folder.parent, warnings.append)
    assert newest is not None
    assert is_same(newest.parse(), saved(step=3))
    (warning,) = warnings
    assert warning.startswith(f"checkpoint {folder} is damaged (")
    # If the manifest itself was changed, the message may name either file.
    assert any(
        f"({each}: " in warning for each in ([name] if inflict is not swap and name != "manifest.json" else EACH)
    )
    with pytest.raises(UserError) as error:
        load_verified(folder).parse()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.faults
@pytest.mark.parametrize("name", EACH)
def test_every_flipped_bit_is_detected(folder: Path, name: str) -> None:
    for place in range(len(content()[name])):
        for bit in range(8):
            data = bytearray(content()[name])
            data[place] ^= 1 << bit
            (folder / name).write_bytes(data)
            assert corruption(folder) is not None, (place, bit)


# Forgery: digests and sizes match the manifest


@contextlib.contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """Assert that memory, of Python and of the process, grows by less than `limit` bytes."""
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < limit
    finally:
        tracemalloc.stop()


def header(**tensors: Any) -> bytes:
    """A safetensors file of four bytes of data."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def tensor(shape: Any = (1,), dtype: Any = "F32", offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


ONE = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = b"{" + ONE + b", " + ONE + b"}"
TENSORS: dict[str, bytes] = {
    "empty": b"",
    "shorter than its length": b"\x01",
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "all ones": b"\xff" * 64,
    "header beyond the end": struct.pack("<Q", 100) + b"{}",
    "header larger than we write": struct.pack("<Q", MAX_JSON_BYTES + 1) + b" " * (MAX_JSON_BYTES + 1),
    "header no object": struct.pack("<Q", 2) + b"[]",
    "header deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "header a pickle": b"\x80\x04\x95" + b"x" * 100,
    "a tensor twice": struct.pack("<Q", len(TWICE)) + TWICE + bytes(4),
    "two tensors in one place": header(a=tensor(), b=tensor()),
    "data that is no tensor's": header(a=tensor([0], offsets=[0, 0])),
    "data beyond the end": header(a=tensor([100], offsets=[0, 400])),
    "data before the start": header(a=tensor(offsets=[-4, 0])),
    "offsets backward": header(a=tensor(offsets=[4, 0])),
    "offsets huge": header(a=tensor(offsets=[0, 2**64 - 1])),
    "offsets not numbers": header(a=tensor(offsets=["0", "4"])),
    "shape and size differ": header(a=tensor([2])),
    "shape huge": header(a=tensor([2**62, 2**62])),
    "shape wraps around": header(a=tensor([2**63, 2])),
    "shape negative": header(a=tensor([-1])),
    "shape true": header(a=tensor([True])),
    "shape a fraction": header(a=tensor([1.0])),
    "shape a number": header(a=tensor(1)),
    "shape of many dimensions": header(a=tensor([1] * 100)),
    "type unknown": header(a=tensor(dtype="F33")),
    "type complex": header(a=tensor(dtype="C64")),
    "type no text": header(a=tensor(dtype=["F32"])),
    "no type": header(a={"shape": [1], "data_offsets": [0, 4]}),
    "one more key": header(a=tensor(code="x")),
    "no object": header(a=3),
    "metadata": header(a=tensor(), __metadata__={"a": "b"}),
    "name with an escape": header(**{"a\x1b[2J": tensor()}),
    "name empty": header(**{"": tensor()}),
    "name long": header(**{"a" * 10_000: tensor()}),
}


@pytest.mark.parametrize("case", TENSORS)
def test_forged_tensors_are_refused_in_one_line(folder: Path, case: str) -> None:
    replace_file(folder, "optimizer.safetensors", TENSORS[case])
    with bounded_memory(64 << 20):
        reason = corruption(folder)
    assert reason is not None
    assert reason.startswith("optimizer.safetensors: ")
    assert len(reason) < 300
    assert reason.isprintable()


def test_a_valid_file_is_accepted() -> None:
    assert parse_tensors(header(a=tensor()))["a"].tolist() == [0.0]


@pytest.mark.parametrize("name", EACH)
def test_a_huge_file_is_not_read(folder: Path, name: str) -> None:
    """A sparse file: it takes no space on the disk, but would in memory."""
    size = (1 << 40) + 1
    (folder / name).open("r+b").truncate(size)
    if name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name]["bytes"] = size
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    limit = MAX_BYTES.get(name, MAX_JSON_BYTES)
    with bounded_memory(64 << 20):
        assert corruption(folder) == f"{name}: is larger than {limit} bytes"


def changed(**changes: Any) -> bytes:
    return json.dumps(state_of(7) | changes).encode()


def moved(**changes: Any) -> bytes:
    """A state with other progress."""
    return changed(progress=state_of(7)["progress"] | changes)


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in state_of(7).items() if k != key}).encode()


LATER_KEYS = ("norms", "data", "code", "initial_weights")
"""Keys that the first versions did not write."""
INITIAL = state_of(7)["initial_weights"]
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}
NORMS = state_of(7)["norms"]
BEST = {"step": 5, "accuracy": 0.5, "loss": 1.5}
STATES: dict[str, tuple[bytes, str]] = {
    **{f"no {key}": (without(key), f"the state lacks '{key}'") for key in state_of(7) if key not in LATER_KEYS},
    **{f"{key} null": (changed(**{key: None}), f"{key} is not ") for key in state_of(7)},
    **{
        f"progress without {key}": (
            changed(progress={k: v for k, v in state_of(7)["progress"].items() if k != key}),
            f"progress lacks '{key}'",
        )
        for key in state_of(7)["progress"]
    },
    **{f"progress.{key} a text": (moved(**{key: "7"}), f"{key} is not ") for key in state_of(7)["progress"]},
    **{
        f"progress.{key} too small": (moved(**{key: -2}), f"{key} holds a number that is too small")
        for key, value in state_of(7)["progress"].items()
        if isinstance(value, (int, float)) and key != "step"
    },
    "unknown": (changed(sources="x"), "the state holds 'sources'"),
    "progress of another step": (moved(step=8), "progress.step is 8 in the checkpoint of step 7"),
    "progress negative": (moved(step=-7), "progress.step is -7"),
    "progress true": (moved(step_in_epoch=True), "step_in_epoch is not a whole number"),
    "progress a fraction": (moved(step_in_epoch=1.0), "step_in_epoch is not a whole number"),
    "progress unknown": (moved(code=1), "progress holds 'code'"),
    "progress later": (moved(epoch=8), "progress.epoch is 8 at step 7"),
    "progress huge": (moved(images=2**63), "holds a number that is too large"),
    "progress longer": (b'{"progress": ' + b"9" * 9000 + b"}", "holds a number that is too large"),
    "progress infinite": (changed(progress=[1]).replace(b"[1]", b"1e999"), "holds a number that is too large"),
    "seconds nan": (moved(seconds=float("nan")), "holds NaN"),
    "best of another step": (moved(best=BEST | {"step": 8}), "progress.best does not name a checkpoint"),
    "best of half a step": (moved(best=BEST | {"step": 1.5}), "progress.best does not name"),
    "best of none": (moved(best={"accuracy": 1.0}), "progress.best does not name"),
    "best a text": (moved(best=BEST | {"loss": "low"}), "best.'loss' is not a number"),
    "best of the held-out set": (moved(held_out_best={"loss": 1.0}), "progress.held_out_best does not hold accuracy"),
    "stopped for nothing": (moved(stop_reason="boredom"), "progress.stop_reason is not a setting"),
    "evaluations later": (moved(evaluations_since_best=8), "progress.evaluations_since_best is 8 at step 7"),
    "initial weights of nowhere": (
        changed(initial_weights=INITIAL | {"source": ""}),
        "initial_weights does not hold a",
    ),
    "initial weights half": (changed(initial_weights={"source": "a"}), "initial_weights lacks"),
    "initial weights of a bad digest": (changed(initial_weights=INITIAL | {"sha256": "x"}), "initial_weights does not"),
    "images half": (changed(initial_weights=INITIAL | {"trained_on": [{"seed": 1}]}), "trained_on[0] lacks"),
    "images negative": (
        changed(initial_weights=INITIAL | {"trained_on": [INITIAL["trained_on"][0] | {"seed": -1}]}),
        "initial_weights holds a number that is too small",
    ),
    "run_id a path": (changed(run_id="../../x"), "run_id is not an id"),
    "run_id an escape": (changed(run_id="\x1b[2J"), "run_id is not printable text"),
    "run_id long": (changed(run_id="a" * 100), "run_id is not an id"),
    "counts too few": (changed(window=[1] * 102), "window holds 102 counts, epoch_counts 103"),
    "counts too many": (changed(epoch_counts=[1] * 9999), "window holds 103 counts, epoch_counts 9999"),
    "counts negative": (changed(window=[-1] * 103), "window holds a number that is too small"),
    "counts nested": (changed(window=[[1]] * 103), "window[0] is not a whole number"),
    "norms negative": (changed(norms=NORMS | {"total": -0.5}), "norms holds a number that is too small"),
    "norms half": (changed(norms={"count": 3}), "norms lacks"),
    "scaler half": (changed(scaler={"scale": 1.0}), "scaler is not the state of a gradient scaler"),
    "scaler of nothing": (changed(scaler=SCALER | {"scale": 0.0}), "scaler is not the state"),
    "scaler a text": (changed(scaler=SCALER | {"scale": "1"}), "scaler.'scale' is not a number"),
    "updates negative": (changed(ema_updates=-1), "ema_updates holds a number that is too small"),
    "digest of one set": (changed(data={"train": "0" * 64}), "data does not hold the SHA-256 of train and test"),
    "digest too short": (changed(data={"train": "0" * 64, "test": "0" * 63}), "data does not hold the SHA-256"),
    "digest a number": (changed(data={"train": 1, "test": 2}), "data.'train' is not printable text"),
    "config flat": (changed(config={"lr": 1}), "config.'lr' is not an object"),
    "deep": (b'{"config": ' + b"[" * 500_000, "is nested too deeply"),
    "a key twice": (b'{"run_id": "a", "run_id": "b"}', "names a key twice"),
    "no text": (b"\xff\xfe{}", "can't decode"),
    "no object": (b"[]", "does not hold an object"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_forged_state_is_refused_in_one_line(folder: Path, case: str) -> None:
    """And counts as damage: the checkpoint before is used."""
    forged, reason = STATES[case]
    replace_file(folder, "state.json", forged)
    with bounded_memory(64 << 20):
        found = corruption(folder)
    assert found is not None
    assert found.startswith("state.json: ")
    assert reason in found
    assert len(found) < 300
    warnings: list[str] = []
    newest = newest_verified(folder.parent, warnings.append)
    assert newest is not None
    assert newest.folder.name == "step-00000003"
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "state", [state_of(7), state_of(7) | {"scaler": SCALER}, json.loads(moved(best=BEST, evaluated=-1, scaler_skips=7))]
)
def test_a_valid_state_is_accepted(state: dict[str, Any]) -> None:
    check_state(state, 7)


def test_a_checkpoint_without_norms_or_digests_is_read_with_empty_ones(folder: Path) -> None:
    replace_file(folder, "state.json", without("norms"))
    assert load_verified(folder).parse().state["norms"] == {"count": 0, "nonfinite": 0, "total": 0.0, "most": 0.0}
    replace_file(folder, "state.json", without("data"))
    assert load_verified(folder).parse().state["data"] == {}


@dataclass
class Longer(TrainProgress):
    """TrainProgress with two more fields."""

    turns: int = 0
    places: list[int] = field(default_factory=list)


def test_a_new_field_of_the_progress_is_checked_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_state, "TrainProgress", Longer)

    def state(**more: Any) -> dict[str, Any]:
        return json.loads(moved(**({"turns": 1, "places": [3, 5]} | more)))

    check_state(state(), 7)
    for more, said in (
        ({"places": ["3"]}, r"places\[0\] is not a whole number"),
        ({"places": 3}, "places is not a list"),
        ({"places": [-3]}, "places holds a number that is too small"),
        ({"turns": True}, "turns is not a whole number"),
        ({"another": 1}, "progress holds 'another'"),
    ):
        with pytest.raises(ValueError, match=said):
            check_state(state(**more), 7)
    with pytest.raises(ValueError, match="progress lacks 'places'"):
        check_state(state_of(7), 7)


# Fuzzing


@FUZZ
@given(
    name=st.sampled_from(EACH),
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=12), st.integers(0, 12)), max_size=4
    ),
)
def test_mutated_bytes_are_refused_or_accepted_and_nothing_else(
    folder: Path, name: str, edits: list[tuple[float, bytes, int]]
) -> None:
    restore(folder)
    data = content()[name]
    for place, new, gone in edits:
        where = int(place * len(data))
        data = data[:where] + new + data[where + gone :]
    if name == "manifest.json":
        (folder / name).write_bytes(data)
    else:
        replace_file(folder, name, data)
    check_reader(folder)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(
    path=st.sampled_from([(a,) for a in state_of(7)] + [("progress", b) for b in state_of(7)["progress"]]), value=plain
)
def test_any_value_in_the_state_is_refused_or_accepted_and_nothing_else(
    folder: Path, path: tuple[str, ...], value: Any
) -> None:
    restore(folder)
    state = state_of(7)
    inner = state if len(path) == 1 else state[path[0]]
    inner[path[-1]] = value
    replace_file(folder, "state.json", json.dumps(state).encode())
    check_reader(folder)


@FUZZ
@given(
    st.dictionaries(
        st.text("abc.", max_size=3),
        st.fixed_dictionaries({"dtype": plain | st.just("F32"), "shape": plain | st.just([1]), "data_offsets": plain}),
        max_size=3,
    )
)
def test_any_header_is_refused_or_accepted_and_nothing_else(folder: Path, tensors: dict[str, Any]) -> None:
    restore(folder)
    replace_file(folder, "model.safetensors", header(**tensors))
    check_reader(folder)


def check_reader(folder: Path) -> None:
    """Assert that the reader accepts a checkpoint, or refuses it in one short line."""
    reason = corruption(folder)
    if reason is None:
        found = load_verified(folder).parse()
        check_state(found.state, 7)
        assert all(isinstance(value, torch.Tensor) for value in (found.model | found.optimizer | found.ema).values())
    else:
        assert len(reason) < 500
        assert len(reason.splitlines()) == 1

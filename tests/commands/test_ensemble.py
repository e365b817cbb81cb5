"""`mnist-dist ensemble`: the mean of the members' probabilities, recomputed here; what it refuses; what it records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from kept_run import copy_kept_run
from programs import PYTHON, run, write_digits
from refusals import refused_line

from mnist_dist import load_model
from mnist_dist.__main__ import main
from mnist_dist.tracking.results import ENSEMBLES, RESULTS, read_ensembles, read_results

TINY = (
    *("--config=debug", "--data.root=data", "--data.test_limit=0", "--data.limit=0", "--data.val_size=0"),
    *("--train.batch_size=16", "--train.epochs=3"),
)
"""Settings of a run of two seconds that learns something."""
RUNS = ("runs/three/seed-0", "runs/three/seed-1", "runs/three/seed-2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and three recorded seeds of `repeat` in runs/three."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    write_digits(home / "data", train=640, test=100)
    (home / RESULTS.parent).mkdir(parents=True)
    repeat = [*PYTHON, "-m", "mnist_dist", "repeat", *TINY, "--seeds=3", "--out=runs/three", "--record"]
    [ended] = run(repeat, work=home)
    assert ended.code == 0, ended.err
    return home


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, as the working directory."""
    monkeypatch.chdir(trained)
    return trained


def copy_run(source: Path, target: Path) -> Path:
    """A copy of a run, and of what `repeat` says of it."""
    shutil.copytree(source, target)
    shutil.copy(source.with_suffix(".json"), target.with_suffix(".json"))
    return target


def content(path: Path, header: int) -> torch.Tensor:
    """The bytes of an IDX file after its header."""
    return torch.frombuffer(bytearray(path.read_bytes()[header:]), dtype=torch.uint8)


def test_the_probabilities_are_averaged_and_all_members_count(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", *RUNS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    images = content(home / "data" / "t10k-images-idx3-ubyte", 16).view(100, 1, 28, 28)
    labels = content(home / "data" / "t10k-labels-idx1-ubyte", 8).long()
    total, right = torch.zeros(100, 10, dtype=torch.float64), []
    for name in RUNS:
        loaded = load_model(name)
        inputs = (images / 255 - loaded.config.data.mean) / loaded.config.data.std
        with torch.no_grad():
            probabilities = loaded.model(inputs).double().softmax(1)
        right.append(int((probabilities.argmax(1) == labels).sum()))
        total += probabilities
    expected = total / 3
    assert [member["correct"] for member in found["members"]] == right
    assert [member["seed"] for member in found["members"]] == [0, 1, 2]
    assert found["test.accuracy"] == int((expected.argmax(1) == labels).sum()) / 100
    loss = -expected[torch.arange(100), labels].log().mean()
    assert found["test.loss"] == pytest.approx(float(loss), rel=1e-5)


def test_members_alone_are_what_their_runs_were(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", *RUNS, "--json"]) == 0
    for member in json.loads(capsys.readouterr().out)["members"]:
        summary = json.loads((home / member["run"] / "summary.json").read_text())
        assert member["weights_sha256"] == summary["weights_sha256"]
        assert (member["accuracy"], member["step"]) == (summary["test.accuracy"], summary["train.steps"])


def test_a_table_for_people_has_each_member_and_the_accuracy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", *RUNS]) == 0
    out = capsys.readouterr().out
    assert "3 members, each alone, in float32" in out
    assert all(name in out for name in RUNS)
    assert "of 100)" in out


def test_one_line_is_recorded_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", *RUNS, "--record", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["ensemble", *RUNS, "--record"]) == 0
    assert "has this ensemble already" in capsys.readouterr().err
    [line] = read_ensembles(home / RESULTS / ENSEMBLES)
    results = read_results(home / RESULTS / "debug.jsonl")
    assert line.recipes == ["debug"] * 3
    assert line.weights_sha256 == [result.weights_sha256 for result in results]
    assert line.config_sha256 == [result.config_sha256 for result in results]
    assert (line.seeds, line.count, line.accuracy) == ([0, 1, 2], 100, found["test.accuracy"])


def test_a_seed_may_not_be_left_out_of_a_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused_line(["ensemble", RUNS[0], RUNS[2], "--record"], capsys)
    assert "seed 1 is missing; members may not be chosen, so give all seeds from 0 to 2" in line


def test_a_run_of_another_protocol_is_not_recorded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [ended] = run([*PYTHON, "-m", "mnist_dist.train", *TINY, "--run.seed=1", "--run.dir=runs/free"], work=home)
    assert ended.code == 0, ended.err
    shutil.copy(home / f"{RUNS[1]}.json", home / "runs" / "free.json")
    assert "free was not trained with train.protocol=honest" in refused_line(
        ["ensemble", RUNS[0], "runs/free", "--record"], capsys
    )


def test_a_run_that_repeat_did_not_start_is_not_recorded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy_run(home / RUNS[1], home / "runs" / "other")
    other.with_suffix(".json").unlink()
    assert "other is no run of mnist-dist repeat" in refused_line(["ensemble", RUNS[0], str(other), "--record"], capsys)


def test_wrong_members_are_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = copy_run(home / RUNS[0], tmp_path / "again")
    unfinished = copy_run(home / RUNS[1], tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    (tmp_path / "kept").mkdir()
    kept = copy_kept_run(tmp_path / "kept") / "run"
    assert "is one run; give all members" in refused_line(["ensemble", RUNS[0]], capsys)
    assert f"has the same weights as {RUNS[0]}, and would count twice" in refused_line(
        ["ensemble", RUNS[0], str(again)], capsys
    )
    assert "unfinished: is no finished run" in refused_line(["ensemble", RUNS[0], str(unfinished)], capsys)
    assert f"has other data than {RUNS[0]}" in refused_line(["ensemble", RUNS[0], str(kept)], capsys)

"""`mnist-dist repeat`: the bits of runs alone, after a stop and a kill; what it refuses; what it prints and records."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from programs import PYTHON, run, started, write_digits
from refusals import refused_line

from mnist_dist.__main__ import main
from mnist_dist.tracking.results import RESULTS, read_results

REPEAT = [*PYTHON, "-m", "mnist_dist", "repeat"]
TINY = (
    *("--config=debug", "--data.root=data", "--data.test_limit=0", "--data.limit=0", "--data.val_size=0"),
    *("--train.batch_size=64", "--run.threads=0"),
)
"""Settings of a run of a second: 64 images in a batch, so it has fixed shards."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and a recorded `repeat` of two seeds at once in runs/two."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    write_digits(home / "data", train=640, test=100)
    (home / RESULTS.parent).mkdir(parents=True)
    [ended] = run([*REPEAT, *TINY, "--seeds=2", "--processes=2", "--out=runs/two", "--record", "--json"], work=home)
    assert ended.code == 0, ended.err
    (home / "found.json").write_text(ended.out)
    return home


def weights(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["weights_sha256"])


def test_two_at_once_have_the_bits_of_one_alone_with_all_threads(home: Path) -> None:
    options = [each for each in TINY if not each.startswith("--run.threads")]
    alone = [*PYTHON, "-m", "mnist_dist.train", *options, "--run.threads=2", "--run.seed=1", "--run.dir=runs/alone"]
    [ended] = run(alone, work=home)
    assert ended.code == 0, ended.err
    assert weights(home / "runs" / "alone") == weights(home / "runs" / "two" / "seed-1")
    assert weights(home / "runs" / "alone") != weights(home / "runs" / "two" / "seed-0")


def test_what_it_says_and_records_is_what_the_runs_have(home: Path) -> None:
    found: dict[str, Any] = json.loads((home / "found.json").read_text())
    results = read_results(home / RESULTS / "debug.jsonl")
    assert [result.seed for result in results] == [0, 1]
    for seed, result in enumerate(results):
        summary = json.loads((home / "runs" / "two" / f"seed-{seed}" / "summary.json").read_text())
        assert result.accuracy == summary["test.accuracy"] == result.correct / result.count
        assert (result.weights_sha256, result.split, result.count) == (summary["weights_sha256"], "test", 100)
        assert (result.concurrent, result.protocol, summary["train.protocol"]) == (2, "honest", "honest")
        assert (result.steps, result.test_sha256) == (10, summary["data.test_sha256"])
    assert found["mean"] == pytest.approx(sum(result.accuracy for result in results) / 2)
    assert (found["count"], found["missing"], found["p"]) == (2, [], None)
    assert found["changes"]["train.batch_size"] == 64
    assert "data.root" not in found["changes"]


def test_finished_seeds_are_read_and_a_line_is_not_doubled(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    before = (home / RESULTS / "debug.jsonl").read_bytes()
    command = ["repeat", *TINY, "--seeds=2", "--processes=2", "--out=runs/two", "--record", "--target=0.05"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 seeds are done already" in err
    assert "recorded: 0 new lines" in err
    assert "p that the mean is above 5.00 %" in out
    assert (home / RESULTS / "debug.jsonl").read_bytes() == before


def test_a_seed_that_is_recorded_with_other_weights_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    path = home / RESULTS / "debug.jsonl"
    before = path.read_text()
    earlier = before.replace(weights(home / "runs" / "two" / "seed-1"), "0" * 64)
    path.write_text(earlier)
    assert main(["repeat", *TINY, "--seeds=2", "--processes=2", "--out=runs/two", "--record"]) == 0
    err = capsys.readouterr().err
    assert path.read_text() == earlier
    path.write_text(before)
    assert "recorded: 0 new lines" in err
    assert "recorded before with other weights: seed 1; these lines stay; to record the new runs, remove them" in err


def test_another_setting_in_the_same_folder_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    err = refused_line(["repeat", *TINY, "--seeds=2", "--out=runs/two", "--optim.lr=0.1"], capsys)
    assert "seed-0: was trained with other settings; choose another --out" in err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_to_the_same_bits(home: Path, number: signal.Signals) -> None:
    """Whether it was killed, and left a run that writes a checkpoint, or was stopped by Ctrl-C."""
    out = f"runs/{number.name}"
    command = [*REPEAT, *TINY, "--train.epochs=6", "--seeds=2", f"--out={out}", "--train.checkpoint_steps=3"]
    with started(command, work=home) as [program]:
        checkpoints = home / out / "seed-0" / "checkpoints"
        while not (checkpoints.is_dir() and any(checkpoints.glob("step-*"))):
            assert program.process.poll() is None, program.errors.read_text()
            os.sched_yield()
        program.signal(number)
        if number == signal.SIGKILL:
            program.process.wait()
        else:
            ended = program.end()
            assert ended.code == 3
            line = ended.err.splitlines()[-1]
            assert line.startswith("mnist_dist: stopped: 0 of 2 seeds are done; to go on: ")
            assert f"mnist_dist repeat {' '.join(command[4:])}" in line
        assert not (home / out / "seed-0" / "summary.json").exists()
        [ended] = run(command, work=home)
        assert ended.code == 0, ended.err
    summary = json.loads((home / out / "seed-0" / "summary.json").read_text())
    assert summary["resumed_from"] is not None
    reference = home / "runs" / "long"
    if not reference.exists():
        [ended] = run([*command[:-2], "--out=runs/long"], work=home)
        assert ended.code == 0, ended.err
    for seed in ("seed-0", "seed-1"):
        assert weights(home / out / seed) == weights(reference / seed)


def test_a_failed_seed_is_named_and_loses_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    shutil.copytree(home / "runs" / "two", home / "runs" / "failed")
    (home / "runs" / "failed" / "seed-2").write_text("a file where the run's folder should be")
    assert main(["repeat", *TINY, "--seeds=3", "--out=runs/failed", "--record"]) == 1
    out, err = capsys.readouterr()
    assert "1: seed 2" in " ".join(out.split())
    assert "1 of 3 seeds failed: 2; seed 2: exit code 2" in err.splitlines()[-1]
    assert len(read_results(home / RESULTS / "debug.jsonl")) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seeds=2", "--first-seed=999"], "seeds 999 to 1000: results are of seeds from 0 to 999"),
        (["--seeds=2", "--first-seed=0", "--split=val"], "--split val is for tuning, with --first-seed 1000"),
        (["--seeds=2", "--split=val", "--data.val_size=0"], "--split val: data.val_size=0 holds out no images"),
        (["--seeds=0"], "--seeds 0: must be at least 1"),
        (["--seeds=1", "--processes=0"], "--processes 0: must be at least 1"),
        (["--seeds=1", "--target=99"], "--target 99: must be a fraction"),
        (["--seeds=1", "--run.seed=3"], "--run.seed: mnist-dist repeat gives each run its own"),
        (["--seeds=1", "--data.test_limit=9"], "data.test_limit=9 (command line): not with train.protocol=honest"),
        (["--seeds=1", "--record"], "--record: there is no benchmarks/results here"),
        (["--seeds=1", "--optim.lrr=3"], "optim.lrr (command line): unknown setting; did you mean optim.lr?"),
    ],
)
def test_refusals(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in refused_line(["repeat", "--config=speed99", *arguments], capsys)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_depend_on_threads_are_refused_at_once_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnist_dist.commands.repeat.default_threads", lambda topology: 2)
    line = refused_line(["repeat", "--config=seeds/cnn", "--seeds=2", "--processes=2"], capsys)
    assert "has no fixed shards (train.shards)" in line
    assert "give --run.threads=1, or --processes 1" in line


def test_tuning_holds_out_images_and_says_nothing_of_the_test_set(home: Path) -> None:
    options = [each for each in TINY if "val_size" not in each]
    command = [*REPEAT, *options, "--data.val_size=100", "--seeds=1", "--split=val", "--out=runs/val", "--json"]
    [ended] = run(command, work=home)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    summary = json.loads((home / "runs" / "val" / "seed-1000" / "summary.json").read_text())
    assert found["results"][0]["accuracy"] == summary["val.accuracy"]
    assert (found["results"][0]["seed"], found["results"][0]["split"], found["split"]) == (1000, "val", "val")

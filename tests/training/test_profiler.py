"""train.profile: which steps are traced, what is written of them, and that nothing else changes."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clocks import ROW_CLOCKS
from small_training import open_trainer

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import create_model
from mnist_dist.training.profiler import StepProfiler
from mnist_dist.training.trainer import Trainer
from mnist_dist.utils.errors import Stopped

EPOCH, BATCH = 30, 16  # steps, images
RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--model.name=basic", "--train.precision=no", "--train.epochs=1"),
    *(f"--train.batch_size={BATCH}", "--train.shards=4", "--tracking.log_steps=10"),
)


@dataclass
class Run:
    """What a run left."""

    sha256: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: bool = False


def train(
    folder: Path, *arguments: str, before: Callable[[Trainer], None] = lambda trainer: None, profile: str = "profile"
) -> Run:
    """Train in this process, from the folder's newest checkpoint if there is one."""
    config, run = load([*RECIPE, *arguments]).config, Run()
    folder.mkdir(exist_ok=True)
    with start_runtime(config, Topology()) as runtime:
        checkpoints = folder / "checkpoints"
        trainer = open_trainer(
            runtime,
            config,
            checkpoints,
            (EPOCH * BATCH, 20),
            network=lambda: create_model(config.model.name),
            rows=run.rows,
            profile_dir=folder / profile,
        )
        trainer.console.print = run.said.append  # type: ignore[method-assign]
        trainer.console.warn = run.warnings.append  # type: ignore[method-assign]
        before(trainer)
        try:
            trainer.train()
        except Stopped:
            run.stopped = True
        run.sha256, run.seconds = weights_sha256(trainer.state.model), trainer.progress.seconds
    return run


def stop_after(step: int) -> Callable[[Trainer], None]:
    def prepare(trainer: Trainer) -> None:
        def progress(done: int, epoch: int) -> None:
            if done == step:
                trainer.runtime.request_stop()

        trainer.console.progress = progress  # type: ignore[method-assign]

    return prepare


def traced(folder: Path) -> tuple[int, int]:
    """How many steps were traced, and the number of the last one; the files are whole and agree."""
    files = {path.name for path in (folder / "profile").iterdir()}
    assert files == {"rank0.json", "operators.txt"}
    found = re.match(r"steps: +(\d+), up to step (\d+), traced on rank 0 of 1\n", table(folder))
    assert found
    steps, last = int(found[1]), int(found[2])
    events = json.loads((folder / "profile/rank0.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("ph") == "X"]
    assert names.count("step") == steps
    assert names.count("aten::convolution") == steps * 4 * 2  # shards, convolutions: of steps, not of evaluations
    return steps, last


def table(folder: Path) -> str:
    return (folder / "profile/operators.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--train.profile=3",), (3, 13)),
        (("--train.profile=3", "--train.epochs=2", "--run.threads=3"), (3, 13)),
        (("--train.profile=50", "--train.epochs=2"), (20, 30)),  # the epoch's evaluation ends it
        (("--train.profile=9", "--train.eval_steps=12"), (2, 12)),
        (("--train.profile=9", "--train.max_steps=12"), (6, 12)),
        (("--train.profile=1", "--train.max_steps=5"), (1, 3)),
        (("--train.profile=1000", "--train.max_steps=1"), (1, 1)),
    ],
)
def test_steps_are_traced_after_the_first_ones(
    tmp_path: Path, arguments: tuple[str, ...], expected: tuple[int, int]
) -> None:
    run = train(tmp_path, *arguments)
    assert traced(tmp_path) == expected
    where = f"{tmp_path}/profile/operators.txt, and rank<k>.json for https://ui.perfetto.dev"
    assert run.said == [f"profile of {expected[0]} step{'s' * (expected[0] > 1)}: {where}"]
    assert run.warnings == []


def test_nothing_but_the_records_of_speed_is_changed(tmp_path: Path) -> None:
    plain, profiled = train(tmp_path / "plain"), train(tmp_path / "profiled", "--train.profile=5", "--run.threads=2")

    def comparable(run: Run) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in ROW_CLOCKS} for row in run.rows]

    assert (plain.sha256, comparable(plain)) == (profiled.sha256, comparable(profiled))
    assert not (tmp_path / "plain" / "profile").exists()
    peaks = [row["flops_per_second"] / row["mfu"] for row in profiled.rows if "mfu" in row]
    assert len(peaks) == 3  # rows of metrics
    assert peaks == pytest.approx([peaks[0]] * 3)
    peak, mfu = (float(re.search(rf"{name}: +([\d.]+)", table(tmp_path / "profiled"))[1]) for name in ("peak", "MFU"))  # type: ignore[index]
    assert peak == pytest.approx(peaks[0] / 1e9, rel=1e-3)
    assert mfu > 0


def test_a_stop_ends_the_trace_and_the_next_start_makes_its_own(tmp_path: Path) -> None:
    settings = ("--train.profile=9", "--train.epochs=2")
    first = train(tmp_path, *settings, before=stop_after(12))
    assert first.stopped
    assert traced(tmp_path) == (2, 12)
    rest = train(tmp_path, *settings)
    assert traced(tmp_path) == (8, 30)  # from step 23 on, up to the evaluation
    assert rest.sha256 == train(tmp_path / "whole", "--train.epochs=2").sha256


@pytest.mark.parametrize("how", ["full disk", "no folder"])
def test_a_trace_that_cannot_be_written_is_said_and_leaves_nothing(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StepProfiler.write

    def write_little(*arguments: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            write(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    if how == "full disk":
        monkeypatch.setattr(StepProfiler, "write", write_little)
        reason = "the profiler failed; the disk may be full"
    else:
        (tmp_path / "profile").write_text("a file")
        reason = "File exists"
    run = train(tmp_path, "--train.profile=5")
    assert run.warnings == [f"{tmp_path}/profile: cannot be written ({reason}); training goes on without it"]
    assert run.said == []
    assert (how != "full disk") or list((tmp_path / "profile").iterdir()) == []
    assert run.rows[-1]["step"] == EPOCH


def test_a_process_that_has_no_such_run_folder_writes_none(tmp_path: Path) -> None:
    """On another machine than the main process."""
    run = train(tmp_path, "--train.profile=5", profile="elsewhere/profile")
    assert (run.said, run.warnings) == ([], [])
    assert not (tmp_path / "elsewhere").exists()


def test_time_of_the_profiler_is_no_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a clock that only the profiler moves on."""
    now = 0.0
    monkeypatch.setattr("mnist_dist.training.metric_logger.time.perf_counter", lambda: 1.0 + now)
    monkeypatch.setattr("mnist_dist.training.profiler.measure_peak", lambda *_: 1e9)
    write = StepProfiler.write

    def write_slowly(profile: StepProfiler, trace: Any, seconds: float) -> None:
        nonlocal now
        now += 1000.0
        write(profile, trace, max(seconds, 1.0))

    monkeypatch.setattr(StepProfiler, "write", write_slowly)
    assert train(tmp_path, "--train.profile=2").seconds == 0.0
    assert traced(tmp_path) == (2, 12)
    assert now == 1000.0

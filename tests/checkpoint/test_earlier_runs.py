"""A run that version 0.1.0 wrote, kept in `run_of_0_1_0`: it is evaluated, predicts and is resumed by this version.

It is three epochs of four steps on `write_set`, stopped at step 6:

    python -m mnist_dist.train --data.root=digits --data.source=local --data.val_size=0 --model.name=basic \\
        --optim.name=sgd --optim.lr=0.05 --optim.ema=0.5 --train.batch_size=50 --train.epochs=3 --train.precision=no \\
        --train.keep=1 --train.max_steps=6 --run.threads=1 --run.device=cpu --tracking.mode=disabled --run.dir=run
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import run_ranks
from kept_run import KEPT, copy_kept_run
from small_checkpoint import replace_file

from mnist_dist.__main__ import main
from mnist_dist.config.schema import Config
from mnist_dist.train import main as train
from mnist_dist.utils.errors import EXIT_DONE

STEP = "checkpoints/step-00000006"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run in `run` and its data in `digits`; the working directory."""
    monkeypatch.chdir(copy_kept_run(tmp_path))
    return tmp_path


def test_it_is_evaluated_and_predicts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run", "--json"]) == EXIT_DONE
    result = json.loads(capsys.readouterr().out)
    summary = json.loads((work / "run" / "summary.json").read_text())
    assert [result[key] for key in ("test.correct", "test.count", "step")] == [50, 50, 6]
    assert result["test.loss"] == pytest.approx(summary["test.loss"], rel=1e-4)
    assert main(["predict", "run", "--first", "20"]) == EXIT_DONE
    assert "20 of 20 right" in capsys.readouterr().out


def test_it_is_resumed_and_then_knows_its_data(work: Path) -> None:
    settings = ["--config=run/config.yaml", "--train.max_steps=0"]
    assert run_ranks(1, train, settings) == [EXIT_DONE]
    summary = json.loads((work / "run" / "summary.json").read_text())
    assert summary["resumed_from"] == f"run/{STEP}"
    assert (summary["train.steps"], summary["train.images"], summary["test.correct"]) == (12, 600, 50)
    steps = [json.loads(line)["step"] for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    state = json.loads((work / "run/checkpoints/step-00000012/state.json").read_text())
    assert state["data"] == {name: summary[f"data.{name}_sha256"] for name in ("train", "test")}


def test_settings_that_a_run_does_not_know_have_their_default(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if every setting and every section but the model were newer than the run."""
    state = json.loads((work / "run" / STEP / "state.json").read_text())
    state["config"] = {"model": state["config"]["model"], "data": {"root": "digits", "val_size": 0}}
    replace_file(work / "run" / STEP, "state.json", json.dumps(state).encode())
    assert main(["evaluate", "run", "--json", "--precision=no"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["test.correct"] == 50


def test_the_kept_run_lacks_only_settings_that_have_a_default() -> None:
    """A setting that is renamed or removed would make all earlier runs unreadable."""
    state = json.loads((KEPT / STEP / "state.json").read_text())
    Config.model_validate_json(json.dumps(state["config"]))

"""benchmarks/log_likelihood.py measures the held-out images of finished runs, at the temperature that is best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_run import copy_kept_run
from torch import nn

import log_likelihood
from common.likelihood import LogitCollector, best_inverse_temperature, negative_log_likelihood
from mnist_dist import evaluate
from mnist_dist.checkpoint.load_model import LoadedModel, load_model
from mnist_dist.config.schema import Config
from mnist_dist.training import run_evaluation
from mnist_dist.utils.errors import EXIT_DONE, UserError


def with_held_out(config: Config) -> Config:
    """The settings with 40 held-out images."""
    return config.model_copy(update={"data": config.data.model_copy(update={"val_size": 40})})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run, with its data, in the current folder. It is taken as one that had 40 held-out images."""
    monkeypatch.chdir(copy_kept_run(tmp_path))

    def load(run: str, *options: Any) -> LoadedModel:
        loaded = load_model(run, *options)
        return replace(loaded, config=with_held_out(loaded.config))

    for module in (log_likelihood, run_evaluation):
        monkeypatch.setattr(module, "load_model", load)
    return "run"


def test_errors_and_loss_are_those_of_evaluate(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert log_likelihood.main(["--json", "found.json", run]) == EXIT_DONE
    (found,) = json.loads(Path("found.json").read_text())
    expected = evaluate(run, split="val")
    assert (found["run"], found["count"]) == (run, expected.count)
    assert found["errors"] == expected.count - expected.correct
    assert found["nll"] == pytest.approx(expected.loss, rel=1e-6)
    assert found["best_nll"] <= found["nll"]
    assert f"{found['best_nll']:.5f}" in capsys.readouterr().out


def test_shifts_are_those_of_the_option(run: str) -> None:
    found = {}
    for shifts in ("0", "1"):
        assert log_likelihood.main(["--shifts", shifts, "--json", "found.json", run]) == EXIT_DONE
        found[shifts] = json.loads(Path("found.json").read_text())[0]["nll"]
    assert found["0"] == pytest.approx(evaluate(run, split="val").loss, rel=1e-6)
    assert found["1"] != found["0"]


def test_a_temperature_that_was_put_in_is_found() -> None:
    """Labels drawn by the softmax of 2.5 times the logits: no other factor makes them more likely."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial((2.5 * logits).softmax(1), 1, generator=generator).squeeze(1)
    assert abs(best_inverse_temperature(logits, labels) - 2.5) <= 0.1
    assert negative_log_likelihood(logits, labels, 2.5) < negative_log_likelihood(logits, labels)


def test_logits_are_kept_in_order() -> None:
    collector = LogitCollector()
    for start in (0, 2):
        collector.add(start, torch.full((2, 3), float(start)), torch.zeros(2), torch.zeros(2))
    assert collector.logits()[:, 0].tolist() == [0, 0, 2, 2]


def test_what_cannot_be_measured_is_refused(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(run)
    monkeypatch.setattr(log_likelihood, "load_model", lambda run: loaded)
    with pytest.raises(UserError, match=r"^run: it has no held-out images \(data.val_size=0\); leave it out$"):
        log_likelihood.main([run])
    own = replace(loaded, config=with_held_out(loaded.config), model=nn.Flatten())
    monkeypatch.setattr(log_likelihood, "load_model", lambda run: own)
    with pytest.raises(UserError, match=r"^--shifts: the model of run has no test-time shifts; leave out --shifts$"):
        log_likelihood.main(["--shifts", "1", run])

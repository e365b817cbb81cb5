"""`mnist-dist sweep`: files in wandb's schema, checked before anything starts; runs that end in every way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from graphql_server import ENTITY, GraphqlServer
from programs import LAUNCH, PYTHON, run, started, write_digits

from mnist_dist.__main__ import main as mnist_dist
from mnist_dist.checkpoint import run_dir
from mnist_dist.checkpoint.run_lock import RunLock
from mnist_dist.commands import sweep_config, sweep_runs
from mnist_dist.commands.sweep import SweepRunner, rank, show
from mnist_dist.commands.sweep_config import Sweep, parse_early_terminate, read_sweep
from mnist_dist.commands.sweep_runs import FAILED, FINISHED, INTERRUPTED, STOPPED_EARLY, Run
from mnist_dist.commands.sweep_search_space import grid_point, to_distribution
from mnist_dist.commands.sweep_study import JOURNAL, STUDY, SweepStudy
from mnist_dist.config.loader import load
from mnist_dist.config.yaml_files import find_sweep, list_recipes, list_sweeps
from mnist_dist.utils.errors import UserError

optuna = pytest.importorskip("optuna", reason="needs the extra `sweeps`")

GRID = """\
method: grid
metric: {name: val/accuracy, goal: maximize}
command: [accelerate, launch, -m, mnist_dist.train, --config=debug, "${args}"]
parameters:
  optim.lr: {values: [0.001, 0.1]}
  optim.nesterov: {value: true}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


# The shipped files


def test_shipped_sweeps_are_no_recipes() -> None:
    assert list_sweeps() == ["learning_rate", "optimizer"]
    assert not [name for name in list_recipes() if "learning_rate" in name or name.startswith("sweeps")]
    with pytest.raises(UserError, match="neither a recipe nor a file; recipes: "):
        load(["--config=sweeps/learning_rate"])
    with pytest.raises(UserError, match="is a sweep: give it to mnist-dist sweep "):
        load([f"--config={find_sweep('learning_rate')}"])


@pytest.mark.parametrize("name", list_sweeps())
def test_shipped_sweeps_are_good_and_go_through_accelerate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep(find_sweep(name))
    assert sweep.name == name
    assert sweep.command[:4] == ("accelerate", "launch", "-m", "${program}")
    header = find_sweep(name).read_text().splitlines()[:4]
    assert f"#   mnist-dist sweep {name}" in header


@pytest.mark.parametrize("name", list_sweeps())
def test_wandb_takes_the_same_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb's own reader, and its agent up to the process it starts, with parameters as they are drawn here."""
    from wandb import wandb_agent
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    config = load_sweep_config(str(find_sweep(name)))
    assert config
    sweep = read_sweep(find_sweep(name))
    drawn = SweepStudy(sweep, tmp_path).next_run()
    assert drawn is not None

    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], forward_signals: bool) -> None:
            commands.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    for variable in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    agent = wandb_agent.Agent(None, None)
    agent._sweep_command = list(config["command"])
    arguments = {key: {"value": value} for key, value in drawn.parameters.items()}
    agent._command_run({"run_id": "r1", "program": config["program"], "args": arguments})
    assert commands == [sweep.arguments(drawn.parameters)]
    (command,) = commands
    assert command[:4] == ["accelerate", "launch", "-m", "mnist_dist.train"]
    loaded = load(command[4:]).config.to_dict()
    for key, value in drawn.parameters.items():
        section, _, field = key.partition(".")
        assert loaded[section][field] == value


AGENT = """
import sys
from wandb import wandb_agent
from wandb.cli.cli import cli
wandb_agent.Agent.POLL_INTERVAL = 0.1
cli(sys.argv[1:])
"""


def test_wandb_sweep_and_wandb_agent_carry_out_the_same_file(tmp_path: Path) -> None:
    """The real programs, with a stand-in for the server that hands out one run."""
    text = GRID.replace("accelerate, launch", f"'{sys.executable}'").replace("debug,", "debug, --print_config,")
    written(tmp_path, text)
    read_sweep(tmp_path / "mine.yaml")
    project = {"id": "p", "name": "digits", "entity": {"id": "e", "name": ENTITY}}
    arguments = {"optim.lr": {"value": 0.1}, "optim.nesterov": {"value": True}}
    commands = [[{"type": "run", "run_id": "r1", "program": "mnist_dist.train", "args": arguments}]]

    def sweep(_: dict[str, Any]) -> dict[str, Any]:
        (told,) = server.calls("UpsertSweep")
        return {"project": {"sweep": {"name": "s1", "config": told["config"], "runs": {"edges": []}}}}

    answers = {
        "UpsertSweep": lambda _: {"upsertSweep": {"sweep": {"name": "s1", "project": project}}},
        "SweepWithRuns": sweep,
        "CreateAgent": lambda _: {"createAgent": {"agent": {"id": "a1"}}},
        "Heartbeat": lambda _: {
            "agentHeartbeat": {"agent": {"id": "a1"}, "commands": json.dumps(commands.pop() if commands else [])}
        },
    }
    with GraphqlServer(answers) as server:
        environment = {**os.environ, **server.environment, "HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
        outputs = []
        for words in (["sweep", "mine.yaml"], ["agent", "--count=1", f"{ENTITY}/digits/s1"]):
            done = subprocess.run(
                [sys.executable, "-c", AGENT, *words],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
    (told,) = server.calls("UpsertSweep")
    assert yaml.safe_load(told["config"]) == yaml.safe_load(text)
    config = yaml.safe_load(outputs[1])
    assert (config["optim"]["lr"], config["optim"]["nesterov"]) == (0.1, True)
    assert config["data"]["limit"] == 2000  # of the debug recipe


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (GRID, "", "is empty"),
        ("method: grid", "methode: grid", r"methode (mine.yaml:1): no part of a sweep; did you mean method?"),
        ("method: grid", "method: gird", "method=gird (mine.yaml:1): must be one of grid, random, bayes"),
        ("method: grid", "method: grid\nmethod: grid", "method (mine.yaml:2): given twice"),
        ("method: grid\n", "", "has no method"),
        ("method: grid", "method: random", "method=random (mine.yaml:1): never ends; give run_cap, or --count N"),
        ("method: grid", "method: grid\nrun_cap: -1", "run_cap=-1"),
        ("method: grid", "method: grid\nearly_terminate: {type: hyperband}", "give min_iter, or max_iter and s"),
        ("method: grid", "method: grid\nearly_terminate: hyperband", "early_terminate (mine.yaml:2): must be as in"),
        ("method: grid", "method: [grid]", "method=['grid'] (mine.yaml:1): must be one of grid"),
        ("{name: val/accuracy, goal: maximize}", "val/accuracy", "metric (mine.yaml:2): must be as in {name: "),
        ("goal: maximize", "goal: most", "metric (mine.yaml:2): goal=most must be one of minimize, maximize"),
        ("goal: maximize", "goals: maximize", "metric (mine.yaml:2): goals is not supported; must be as in"),
        ("goal: maximize", "impute: best", "metric (mine.yaml:2): impute=best is not supported; use worst"),
        ("goal: maximize", "target: high", "metric (mine.yaml:2): target=high must be a number"),
        ("val/accuracy", "val/acuracy", "metric val/acuracy (mine.yaml:2): runs do not log it; did you mean val/accur"),
        ("val/accuracy", "test/accuracy", "metric test/accuracy (mine.yaml:2): runs do not log it; did you mean"),
        ("optim.lr", "optim.rate", "optim.rate (mine.yaml:5): unknown setting"),
        ("optim.lr", "optim.l", "optim.l (mine.yaml:5): unknown setting; did you mean optim.lr?"),
        ("optim.lr", "run.dir", "run.dir (mine.yaml:5): each run has its own; leave it out"),
        ("0.1]", "-0.1]", "optim.lr=-0.1 (mine.yaml:5): must be at least 0"),
        ("0.1]", "high]", "optim.lr=high (mine.yaml:5): must be a number"),
        ("value: true", "value: 3", "optim.nesterov=3 (mine.yaml:6): must be true or false"),
        (
            "{values: [0.001, 0.1]}",
            "{vales: [0.001]}",
            "(mine.yaml:5): has no distribution; give value, values, or min",
        ),
        ("{values: [0.001, 0.1]}", "0.1", "optim.lr (mine.yaml:5): must be as in {values: [0.001, 0.01]}"),
        ("[0.001, 0.1]", "[]", "optim.lr (mine.yaml:5): values must be a list of at least one value"),
        ("[0.001, 0.1]", "[0.1, 0.1]", "optim.lr (mine.yaml:5): 0.1 is there twice"),
        ("[0.001, 0.1]", "[null]", "optim.lr (mine.yaml:5): a value must be a number, a text, true, false"),
        ("[0.001, 0.1]", "[2020-01-01]", "optim.lr (mine.yaml:5): a value must be a number, a text"),
        ("0.1]}", "0.1], probabilities: [1, 0]}", "'probabilities' is not supported; categorical takes values"),
        ("{values: [0.001, 0.1]}", "{min: 0.1, max: .inf}", "max must be between -1e+15 and 1e+15"),
        ("{values: [0.001, 0.1]}", "{min: 0.01, max: 0.1}", "a grid takes value, values, int_uniform and q_unif"),
        ("{values: [0.001, 0.1]}", "{min: 1e-4, max: 0.1}", "YAML takes 1e-4 for a text"),
        ("{values: [0.001, 0.1]}", "{min: 0.2, max: 0.1}", "min 0.2 is not less than max 0.1"),
        ("{values: [0.001, 0.1]}", "{distribution: normal}", "distribution 'normal' is not supported; supported:"),
        ("{values: [0.001, 0.1]}", "{distribution: q_uniform, min: 0.01, max: 0.1, q: 0.02}", "must be multiples of q"),
        ("optim.lr: {values: [0.001, 0.1]}", "optim: {parameters: {lr: {value: 1}}}", "optim (mine.yaml:5): is a sec"),
        ("optim.lr: {values: [0.001, 0.1]}", "train.epochs: {min: 1.0, max: 3.0}", "must be a whole number"),
        ('"${args}"', "--optim.lr=1", "command (mine.yaml:3): has no ${args}, by which the parameters reach every"),
        ('"${args}"', '"${args}", "${hydra}"', "command (mine.yaml:3): ${hydra} is unknown here; use ${args}"),
        (
            '[accelerate, launch, -m, mnist_dist.train, --config=debug, "${args}"]',
            "",
            "command (mine.yaml:3): must be a",
        ),
        ("mnist_dist.train", "train.py", "command (mine.yaml:3): does not start mnist_dist.train"),
        ("--config=debug", "--config=debgu", "--config=debgu: neither a recipe nor a file; did you mean debug?"),
        ("--config=debug", "--train.shards=3", "cannot be divided by"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(
    old: str, new: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in GRID
    written(tmp_path, GRID.replace(old, new))
    assert mnist_dist(["sweep", "mine.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_unknown_sweeps_are_one_line() -> None:
    with pytest.raises(UserError, match="sweep optimiser: neither a sweep nor a file; did you mean optimizer"):
        find_sweep("optimiser")


def test_what_a_distribution_gives_is_whole_where_the_setting_is(tmp_path: Path) -> None:
    text = GRID.replace("optim.lr: {values: [0.001, 0.1]}", "train.epochs: {min: 1, max: 3}")
    assert read_sweep(written(tmp_path, text)).varied == ("train.epochs",)


# Runs, of a program that does as its parameter says


STAND_IN = """\
import json, os, signal, sys, threading
from pathlib import Path
settings = dict(word[2:].split("=", 1) for word in sys.argv[1:])
folder, does = Path(settings["run.dir"]), settings["does"]
folder.mkdir(exist_ok=True)
(folder / "calls").open("a").write(json.dumps(settings) + "\\n")
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
def row(value):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "val.accuracy": value}) + "\\n")
if does.startswith("fail") and not Path("mended").exists():
    print("mnist_dist: error: no such luck")
    print("Traceback: of a launcher")
    sys.exit(2)
row(0.1)
if does == "wait" and not Path("mended").exists():
    Path("waiting").touch()
    stopped.wait()
    sys.exit(3)
value = float(does) if does[0] == "0" else 0.5
for _ in range(3):
    row(value)
if does == "0.2":
    stopped.wait(60)  # early termination comes; else the test fails by what is recorded
    sys.exit(3)
(folder / "summary.json").write_text(json.dumps({"test.accuracy": value, "test.recall": [1.0], "device": "cpu"}))
"""


def stand_in(folder: Path, values: list[str], **more: Any) -> Sweep:
    """A grid over what the stand-in does."""
    script = folder / "stand_in.py"
    script.write_text(STAND_IN)
    definition = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {"does": {"values": values}},
        **more,
    }
    return Sweep("mine", definition, ("python", str(script), "${args}"), "")


def calls(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_failed_runs_do_not_end_a_sweep_and_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = stand_in(tmp_path, ["fail", "0.7", "0.9"])
    runs = SweepRunner(sweep, tmp_path, threading.Event()).run_all()
    assert [run.state for run in runs] == [FAILED, FINISHED, FINISHED]
    assert runs[0].error == "exit code 2: error: no such luck"
    assert [run.name for run in rank(sweep, runs)] == ["003", "002"]
    assert runs[2].values == [0.1, 0.9, 0.9, 0.9]
    assert runs[2].summary == {"test.accuracy": 0.9}
    (call,) = calls(tmp_path / "002")
    assert call == {"does": "0.7", "tracking.group": "mine", "run.dir": str(tmp_path / "002")}
    show(sweep, runs)
    out = capsys.readouterr().out
    assert "2 of 3 runs done" in out
    assert "no such luck" in out
    assert "--does=0.9" in out.splitlines()[-1]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert (saved["best"], [run["state"] for run in saved["runs"]]) == ("003", [FAILED, FINISHED, FINISHED])

    (tmp_path / "mended").touch()
    runs = SweepRunner(sweep, tmp_path, threading.Event()).run_all()
    assert [run.state for run in runs] == [FINISHED] * 3
    assert [len(calls(tmp_path / name)) for name in ("001", "002", "003")] == [2, 1, 1]


def test_a_stop_ends_the_run_in_progress_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep, stop = stand_in(tmp_path, ["0.3", "wait", "0.6"]), threading.Event()
    waiting, others = tmp_path / "waiting", psutil.Process().children()  # as other tests' fork server
    monkeypatch.setattr(sweep_runs, "read_values", lambda *args: (waiting.exists() and stop.set()) or [0.1])
    runs = SweepRunner(sweep, tmp_path, stop).run_all()
    assert [run.state for run in runs] == [FINISHED, INTERRUPTED]
    assert psutil.Process().children() == others
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mended").touch()
    runs = SweepRunner(sweep, tmp_path, threading.Event()).run_all()
    assert [run.state for run in runs] == [FINISHED] * 3
    assert [len(calls(tmp_path / name)) for name in ("001", "002", "003")] == [1, 2, 1]


START = """
import sys
from mnist_dist.commands.sweep_runs import start_process
with start_process(["sleep", "600"], None) as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_run_does_not_outlive_a_sweep_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sweep:
        assert sweep.stdout is not None
        run_ends = os.pidfd_open(int(sweep.stdout.readline()))
        try:
            sweep.kill()
            assert select.select([run_ends], [], [], 20)[0]
        finally:
            os.close(run_ends)


def test_a_run_waits_until_no_process_has_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a killed sweep left behind still writes its checkpoint there."""
    held = RunLock()
    waits: list[float] = []

    def release_at_the_second(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            held.__exit__(None, None, None)

    monkeypatch.setattr(sweep_runs.time, "sleep", release_at_the_second)
    sweep_runs.wait_until_free(tmp_path, lambda: False)
    held.acquire(tmp_path, pytest.fail)
    sweep_runs.wait_until_free(tmp_path, lambda: True)
    assert waits == []
    sweep_runs.wait_until_free(tmp_path, lambda: False)
    assert len(waits) == 2


def test_a_program_that_got_the_process_id_of_an_ended_run_is_left_alone() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        with sweep_runs.start_process(["true"], None) as process:
            process.wait()
            process.pid = other.pid
        assert other.communicate(b"alive")[0] == b"alive"


def test_hyperband_ends_a_run_that_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hyperband = {"type": "hyperband", "min_iter": 2, "eta": 2}
    sweep = stand_in(tmp_path, ["0.8", "0.9", "0.2", "0.85"], early_terminate=hyperband)
    runs = SweepRunner(sweep, tmp_path, threading.Event()).run_all()
    assert [run.state for run in runs] == [FINISHED, FINISHED, STOPPED_EARLY, FINISHED]
    assert [run.name for run in rank(sweep, runs)] == ["002", "004", "001", "003"]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_the_same_search_draws_the_same_runs(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        sweep = stand_in(tmp_path, [])
        definition = sweep.definition | {"method": method, "parameters": {"does": {"min": 0.01, "max": 0.99}}}
        sweep = dataclasses.replace(sweep, definition=definition, run_cap=4)
        random.seed(len(drawn))
        drawn.append([run.parameters["does"] for run in SweepRunner(sweep, folder, threading.Event()).run_all()])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4
    assert all(0.01 <= value <= 0.99 for value in drawn[0])


def test_bayes_learns_where_the_best_values_are(tmp_path: Path) -> None:
    sweep = stand_in(tmp_path, [])
    definition = sweep.definition | {"method": "bayes", "parameters": {"does": {"min": 0.0, "max": 1.0}}}
    study = SweepStudy(dataclasses.replace(sweep, definition=definition), tmp_path)
    drawn = []
    for _ in range(30):
        run = study.next_run()
        assert run is not None
        drawn.append(run.parameters["does"])
        run.state, run.values = FINISHED, [0.0, 1 - abs(drawn[-1] - 0.7)]
        study.record(run)
    first, last = ([abs(value - 0.7) for value in part] for part in (drawn[:10], drawn[-10:]))
    assert sum(last) < sum(first) / 2


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_a_sweep_that_is_killed_at_any_line_of_its_journal_goes_on(method: str, tmp_path: Path) -> None:
    """Whatever part of the journal was written, torn lines too: the same runs, which keep what they had drawn."""
    sweep = stand_in(tmp_path, [])
    parameters = {"does": {"values": ["0.3", "0.4"]}, "steps": {"min": 1, "max": 2}, "optim.betas": {"value": [0.9, 1]}}
    definition = sweep.definition | {"method": method, "parameters": parameters}
    sweep = dataclasses.replace(sweep, definition=definition)

    def carry_on(folder: Path) -> list[Run]:
        study = SweepStudy(sweep, folder)
        runs = study.runs()
        while len(runs) < 3 or any(run.state != FINISHED for run in runs):
            run = next((run for run in runs if run.state != FINISHED), None) or study.next_run()
            assert run is not None
            run.state, run.values, run.seconds = FINISHED, [0.5, 0.1 * run.number], 1.0
            study.record(run)
            runs = study.runs()
        return runs

    (tmp_path / "whole").mkdir()
    expected = carry_on(tmp_path / "whole")
    assert [run.number for run in expected] == [1, 2, 3]
    assert expected[0].parameters["optim.betas"] == "[0.9, 1]"
    journal = (tmp_path / "whole" / JOURNAL).read_bytes()
    lines = journal.splitlines(keepends=True)
    drawing = [count for count, line in enumerate(lines) if b'"param_name"' in line]  # the rest is drawn anew
    for count in range(len(lines)):
        for torn in (b"", lines[count][:9]):
            folder = tmp_path / f"{count}{len(torn)}"
            folder.mkdir()
            (folder / JOURNAL).write_bytes(b"".join(lines[:count]) + torn)
            found = carry_on(folder)
            if method == "grid" or count not in drawing:
                assert found == expected, count
            assert [(each.number, each.values) for each in found] == [(each.number, each.values) for each in expected]
            assert [list(each.parameters) for each in found] == [list(parameters)] * 3


def test_optuna_opens_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SweepRunner(stand_in(tmp_path, ["0.3", "fail", "0.7"]), tmp_path, threading.Event()).run_all()
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    study = optuna.load_study(study_name=STUDY, storage=optuna.storages.JournalStorage(backend))
    assert study.best_params == {"does": "0.7"}
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert study.best_trial.intermediate_values == {1: 0.1, 2: 0.7, 3: 0.7, 4: 0.7}


def test_the_target_ends_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metric = {"name": "val/accuracy", "goal": "maximize", "target": 0.7}
    sweep = stand_in(tmp_path, ["0.3", "0.7", "0.9"], metric=metric)
    assert [run.state for run in SweepRunner(sweep, tmp_path, threading.Event()).run_all()] == [FINISHED] * 2


# The search space


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        ({"value": 3}, optuna.distributions.CategoricalDistribution([3])),
        ({"values": ["a", 0.5, True]}, optuna.distributions.CategoricalDistribution(["a", 0.5, True])),
        ({"values": [[0.9, 0.99]]}, optuna.distributions.CategoricalDistribution(["[0.9, 0.99]"])),
        ({"min": 1, "max": 8}, optuna.distributions.IntDistribution(1, 8)),
        ({"min": 0, "max": 0.5}, optuna.distributions.FloatDistribution(0, 0.5)),
        (
            {"distribution": "q_uniform", "min": 32, "max": 96, "q": 32},
            optuna.distributions.IntDistribution(32, 96, step=32),
        ),
        (
            {"distribution": "q_uniform", "min": 0.1, "max": 0.7, "q": 0.2},
            None,  # 0.1 is no multiple of 0.2: wandb draws 0.0, 0.2, ...
        ),
        (
            {"distribution": "q_uniform", "min": 0.2, "max": 0.8, "q": 0.2},
            optuna.distributions.FloatDistribution(0.2, 0.8, step=0.2),
        ),
        (
            {"distribution": "log_uniform_values", "min": 0.001, "max": 1},
            optuna.distributions.FloatDistribution(0.001, 1, log=True),
        ),
        (
            {"distribution": "inv_log_uniform_values", "min": 0.001, "max": 1},
            optuna.distributions.FloatDistribution(0.001, 1, log=True),
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 1, "max": 64},
            optuna.distributions.IntDistribution(1, 64, log=True),
        ),
        ({"distribution": "q_log_uniform_values", "min": 16, "max": 64, "q": 8}, None),
        ({"distribution": "q_log_uniform_values", "min": 0, "max": 64}, None),
        (
            {"distribution": "log_uniform", "min": -1, "max": 0},
            optuna.distributions.FloatDistribution(math.exp(-1), 1.0, log=True),
        ),
        (
            {"distribution": "inv_log_uniform", "min": 0, "max": 1},
            optuna.distributions.FloatDistribution(math.exp(-1), 1.0, log=True),
        ),
        ({"distribution": "log_uniform", "min": 0, "max": 1000}, None),
        ({"distribution": "int_uniform", "min": 0.5, "max": 1.5}, None),
        ({"distribution": "uniform", "min": 0}, None),
        ({"distribution": "normal", "mu": 0, "sigma": 1}, None),
        ({"distribution": "beta"}, None),
        ({"distribution": ["uniform"], "min": 0, "max": 1}, None),
        ({"min": 0, "max": 10**400}, None),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 1e-300}, None),
        ({"values": [1, True]}, None),
        ({"values": [[[1]]]}, None),
    ],
)
def test_distributions_are_optunas_or_refused(parameter: dict[str, Any], distribution: Any) -> None:
    if distribution is None:
        with pytest.raises(ValueError, match=r"; |must be |takes|there twice"):
            to_distribution(parameter)
        return
    assert to_distribution(parameter) == distribution


WANDBS_OWN = [
    *({"value": 3}, {"values": ["a", 0.5, True]}, {"min": 1, "max": 8}, {"min": 0.0, "max": 0.5}),
    {"distribution": "q_uniform", "min": 32, "max": 96, "q": 32},
    {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0},
    {"distribution": "q_log_uniform_values", "min": 1, "max": 64},
]


@pytest.mark.parametrize("parameter", WANDBS_OWN)
def test_distributions_are_those_of_wandbs_own_optuna_scheduler(parameter: dict[str, Any]) -> None:
    scheduler = pytest.importorskip("wandb.sdk.sweeps.scheduler.optuna", reason="needs wandb 0.31")
    assert to_distribution(parameter) == scheduler.sweep_parameter_to_distribution(parameter)


def test_a_grid_has_every_point_once_the_last_parameter_fastest() -> None:
    space = {
        "a": to_distribution({"values": ["x", "y"]}),
        "b": to_distribution({"distribution": "q_uniform", "min": 0.1, "max": 0.3, "q": 0.1}),
        "c": to_distribution({"min": 4, "max": 5}),
    }
    points = [grid_point(space, index) for index in range(12)]
    assert points[:3] == [{"a": "x", "b": 0.1, "c": 4}, {"a": "x", "b": 0.1, "c": 5}, {"a": "x", "b": 0.2, "c": 4}]
    assert len({tuple(point.values()) for point in points if point}) == 12
    assert grid_point(space, 12) is None
    assert grid_point({"many": to_distribution({"min": 0, "max": 10**15})}, 7) == {"many": 7}


@pytest.mark.parametrize(
    ("early", "expected"),
    [
        ({"min_iter": 2, "eta": 2}, (2, 2, math.inf)),
        ({"min_iter": 3, "strict": True}, (3, 3, math.inf)),
        ({"max_iter": 27, "s": 2}, (3, 3, 27)),
        ({"max_iter": 8, "s": 2, "eta": 2}, (2, 2, 8)),
        ({"max_iter": 10, "s": 2}, None),
        ({"max_iter": 27, "s": 4}, None),
        ({"max_iter": 27}, None),
        ({"min_iter": 1, "max_iter": 27, "s": 1}, None),
        ({"min_iter": 0}, None),
        ({"min_iter": 1, "eta": 1.5}, None),
        ({"min_iter": 1, "strict": False}, None),
        ({"min_iter": True}, None),
        ({"min_iter": 1, "type": "median"}, None),
    ],
)
def test_hyperband_is_read_or_refused(early: dict[str, Any], expected: tuple[float, ...] | None) -> None:
    early = {"type": "hyperband", **early}
    if expected is None:
        with pytest.raises(ValueError, match=r"must be|give|leave it out"):
            parse_early_terminate(early)
        return
    assert dataclasses.astuple(parse_early_terminate(early)) == expected


def test_runs_are_compared_at_each_rung_below_max_iter(tmp_path: Path) -> None:
    early = {"type": "hyperband", "max_iter": 4, "s": 2, "eta": 2}
    study = SweepStudy(stand_in(tmp_path, [str(number) for number in range(9)], early_terminate=early), tmp_path)

    def report(values: list[float]) -> bool:
        run = study.next_run()
        assert run is not None
        run.state, run.values = FINISHED, values
        pruned = study.report(run)
        study.record(run)
        return pruned

    assert not report([0.5, 0.5, 0.5, 0.5])
    assert report([0.4])  # after one evaluation, which only one of two may pass
    assert not report([0.6, 0.6])
    assert not report([0.55, 0.65, 0.0, 0.0])  # among the better half, and never compared after three or four
    assert report([0.9, 0.1, 0.9])  # after two evaluations, whatever comes later


def test_a_folder_is_one_sweeps_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = stand_in(tmp_path, ["0.3"])
    SweepRunner(sweep, tmp_path, threading.Event()).run_all()
    with pytest.raises(UserError, match=r"study\.journal: belongs to another sweep, or to this one before"):
        SweepRunner(stand_in(tmp_path, ["0.4"]), tmp_path, threading.Event())
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write("{}\n")
    with pytest.raises(UserError, match=r"study\.journal: cannot be read \(.*\); remove .*, or choose another --dir"):
        SweepRunner(sweep, tmp_path, threading.Event())
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(UserError, match=r"holds a sweep without study\.journal, .*; choose another --dir"):
        SweepRunner(sweep, tmp_path, threading.Event())
    with (
        sweep_runs.lock_folder(tmp_path),
        pytest.raises(UserError, match="another sweep runs there"),
        sweep_runs.lock_folder(tmp_path),
    ):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"), sweep_runs.lock_folder(tmp_path / "file" / "x"):
        pass


def test_names_are_those_of_a_runs_folder() -> None:
    assert (sweep_runs.METRICS, sweep_runs.SUMMARY) == (run_dir.METRICS, run_dir.SUMMARY)
    assert sweep_config.MODULE == "mnist_dist.train"


# Real runs


SETTINGS = [
    *("--data.source=local", "--data.val_size=50", "--run.device=cpu", "--run.threads=1", "--train.precision=no"),
    *("--model.name=basic", "--train.batch_size=40", "--tracking.mode=disabled", "--tracking.log_steps=5"),
]


def real(work: Path, launcher: list[str], rates: list[float], *more: str) -> None:
    """Write the data and a sweep of real runs."""
    (work / "data").mkdir()
    write_digits(work / "data", train=250, test=50)
    command = [*launcher, "-m", "mnist_dist.train", f"--data.root={work / 'data'}", *SETTINGS, *more, "${args}"]
    content = {
        "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "command": command,
        "parameters": {"optim.lr": {"values": rates}},
    }
    (work / "real.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.launcher
def test_two_runs_of_two_processes_get_their_parameters_on_both(tmp_path: Path) -> None:
    accelerate = ["accelerate", "launch", "--config_file", str(LAUNCH / "cpu_2.yaml")]
    real(tmp_path, accelerate, [0.0, 0.01], "--train.epochs=2")
    (ended,) = run([*PYTHON, "-m", "mnist_dist", "sweep", "real.yaml"], work=tmp_path)
    assert ended.code == 0, ended.err + ended.out
    results = json.loads((tmp_path / "sweeps" / "real" / "results.json").read_text())
    assert [run["state"] for run in results["runs"]] == [FINISHED] * 2
    assert results["best"] == "002"
    for name, rate in (("001", 0.0), ("002", 0.01)):
        folder = tmp_path / "sweeps" / "real" / name
        assert json.loads((folder / "summary.json").read_text())["world_size"] == 2
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["optim"]["lr"], config["tracking"]["group"]) == (rate, "real")
    rows = [line.split()[1] for line in ended.out.splitlines() if line.startswith("│")]
    assert rows == ["002", "001"]  # the best one first


@pytest.mark.launcher
def test_ctrl_c_stops_the_run_with_a_checkpoint_and_leaves_no_process(tmp_path: Path) -> None:
    real(tmp_path, ["python"], [0.01], "--train.batch_size=4", "--train.epochs=40")  # seconds of 2000 steps
    command = [*PYTHON, "-m", "mnist_dist", "sweep", "real.yaml"]
    with started(command, work=tmp_path) as (program,):
        program.wait_for_line("run 001: optim.lr=0.01")
        metrics = tmp_path / "sweeps" / "real" / "001" / "metrics.jsonl"
        waited = threading.Event()
        while not metrics.exists() and program.process.poll() is None:
            waited.wait(0.05)
        program.signal(signal.SIGINT)
        ended = program.end()
        assert program.family() == []
    assert ended.code == 3, ended.err
    assert ended.err.splitlines()[-1] == "mnist_dist: stopped: 0 of 1 runs are done; the same command goes on"
    results = json.loads((tmp_path / "sweeps" / "real" / "results.json").read_text())
    assert [run["state"] for run in results["runs"]] == [INTERRUPTED]
    assert list((metrics.parent / "checkpoints").glob("step-*"))

    (ended,) = run(command, work=tmp_path)
    assert ended.code == 0, ended.err
    assert "resuming from" in metrics.parent.with_suffix(".log").read_text()
    results = json.loads((tmp_path / "sweeps" / "real" / "results.json").read_text())
    assert [run["state"] for run in results["runs"]] == [FINISHED]

"""`mnist-dist dashboard`: what it shows is what real runs log, no more and no less."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from graphql_server import ENTITY, GraphqlServer
from harness import run_ranks
from programs import write_digits
from wandb_records import read_records

from mnist_dist.__main__ import main as mnist_dist
from mnist_dist.commands.dashboard import build_report, build_workspace, main, names, to_json
from mnist_dist.commands.dashboard_panels import RATIO, SLOWEST, SPREAD, STEP, STRAGGLERS, Section, describe, plotted
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.train import main as train

pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboards`")

RUN = [
    *("--data.source=local", "--run.device=cpu", "--run.threads=1", "--train.precision=no", "--model.name=basic"),
    *("--train.batch_size=40", "--train.epochs=2", "--tracking.mode=offline", "--tracking.log_steps=2"),
]
X_AXES = ("_runtime", "_step", "_timestamp", "_wandb", "epoch", STEP)
"""Logged keys without a panel: times and counters, the x axes of the others."""
FACTS = (
    *("device", "threads", "shards", "precision", "run_id", "resumed_from", "weights_sha256"),
    *("model/name", "model/parameters", "data/train_sha256", "data/test_sha256"),
    *("data/name", "data/num_classes", "init_from", "init_sha256"),
    *("train/stop_reason", "train/target_accuracy", "train/target_reached", "train/protocol"),
)
"""What a summary says once of a run, which needs no panel; versions beside it."""


@dataclass(frozen=True)
class Logged:
    """The keys of a run's .wandb file, by what they hold."""

    rows: set[str]
    summary: set[str]
    machine: set[str]

    @property
    def shown(self) -> set[str]:
        """All but what needs no panel."""
        facts = {key for key in self.summary if key.startswith("versions/")} | {*FACTS, *X_AXES}
        return (self.rows | self.summary) - facts


def record(settings: list[str], folder: Path) -> int:
    """Train on one rank, as the main program would, without anybody's key."""
    os.environ["HOME"] = str(folder)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    (folder / "out").open("a").close()
    return train([*RUN, f"--data.root={folder}", f"--run.dir={folder / 'run'}", "--run.quiet=true", *settings])


def logged(processes: int, settings: list[str], folder: Path) -> Logged:
    """The keys that a real offline run of some processes leaves."""
    write_digits(folder, train=250, test=50)
    assert run_ranks(processes, record, settings, folder) == [0] * processes
    (path,) = (folder / "run").rglob("*.wandb")
    rows: set[str] = set()
    summary: set[str] = set()
    machine: set[str] = set()
    for each in read_records(path):
        kind = each.WhichOneof("record_type")
        if kind == "history":
            rows |= {key_of(item) for item in each.history.item}
        elif kind == "summary":
            summary |= {key_of(item) for item in each.summary.update}
        elif kind == "stats":
            machine |= {f"system/{item.key}" for item in each.stats.item if not item.key.startswith("_")}
    return Logged(rows, {key for key in summary if not key.startswith("_")}, machine)


def key_of(item: Any) -> str:
    """The key of an entry, without the parts of its value that some entries are of."""
    return str(item.key or item.nested_key[0])


def sections_of(config: Config) -> list[Section]:
    return describe(config, *names(config))


def keys_of(sections: list[Section]) -> list[str]:
    return [key for section in sections for panel in section.panels for key in panel.keys]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """One process, with a validation set and everything shown."""
    return logged(1, ["--data.val_size=50", "--tracking.share=[system]"], tmp_path_factory.mktemp("single"))


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a key."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is shown is what is logged


def test_every_panel_has_its_metric_and_every_metric_its_panel(single: Logged) -> None:
    shown = keys_of(sections_of(load([*RUN, "--data.val_size=50"]).config))
    assert set(shown) - single.shown == {*SPREAD, SLOWEST, RATIO, STRAGGLERS}  # of several processes only
    assert single.shown - set(shown) == set()
    assert len(shown) == len(set(shown))


def test_what_wandb_measures_of_the_machine_has_one_panel_each(single: Logged) -> None:
    assert single.machine
    panels = [panel for section in sections_of(load(["--tracking.share=[system]"]).config) for panel in section.panels]
    expressions = [panel.keys[0] for panel in panels if panel.kind == "machine"]
    assert len(expressions) == 3
    for key in single.machine:
        assert sum(re.fullmatch(expression, key) is not None for expression in expressions) == 1, key
    for expression in expressions:
        assert any(re.fullmatch(expression, key) for key in single.machine), expression


def test_several_processes_fill_the_distributed_section(tmp_path: Path) -> None:
    settings = ["--data.val_size=0", "--train.profile=1", "--tracking.histograms=false"]
    found = logged(2, settings, tmp_path)
    sections = sections_of(load([*RUN, *settings]).config)
    shown = keys_of(sections)
    assert set(shown) ^ found.shown == set()
    assert {*SPREAD, SLOWEST, RATIO, STRAGGLERS, "mfu"} <= set(shown)
    panels = [(panel.kind, panel.keys) for section in sections for panel in section.panels]
    assert len(panels) == len(set(panels))  # the watched split is the test set here
    assert not [key for key in shown if key.startswith("val/")]


def test_what_a_sweep_may_look_at_is_logged(single: Logged) -> None:
    metrics = set(plotted(load([*RUN, "--data.val_size=50"]).config))
    assert metrics <= single.rows
    assert {"val/accuracy", "val/loss", "train/loss"} <= metrics


@pytest.mark.parametrize(
    ("settings", "absent", "present"),
    [
        (["--tracking.examples=0"], ("mistakes", "samples", "maps/", "filters/"), ("parameters/", "gradients/")),
        (["--tracking.histograms=false"], ("parameters/", "gradients/"), ("mistakes", "maps/")),
        (["--data.val_size=0"], ("val/",), ("test/confusion_table",)),
        ([], ("mfu", "system/"), ("val/confusion_table", "lr")),
        (["--train.profile=5"], (), ("mfu",)),
    ],
)
def test_the_configuration_decides(settings: list[str], absent: tuple[str, ...], present: tuple[str, ...]) -> None:
    shown = keys_of(sections_of(load(settings).config))
    assert not [key for key in shown if key.startswith(absent)] or not absent
    for start in present:
        assert [key for key in shown if key.startswith(start)], start


# As wandb takes it


def strings(value: Any) -> Iterator[str]:
    """All texts in a tree of JSON."""
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(child)


def test_workspace_and_report_hold_every_key(capsys: pytest.CaptureFixture[str], nobody: Path) -> None:
    assert main(["--tracking.project=mine", "--tracking.entity=team"]) == 0
    out = capsys.readouterr().out
    built = json.loads(out)
    sections = sections_of(Config())
    for part in ("workspace", "report"):
        assert set(keys_of(sections)) <= set(strings(built[part])), part
        assert {section.title for section in sections} <= set(strings(built[part])), part
        assert {"mine", "team"} <= set(strings(built[part])), part
    titles = [panel.title for section in sections for panel in section.panels if panel.kind != "table"]
    assert set(titles) <= set(strings(built["workspace"]))
    assert main(["--tracking.project=mine", "--tracking.entity=team", "--out", "both.json"]) == 0
    assert capsys.readouterr().out == ""
    assert (nobody / "both.json").read_text() == out  # the same every time


def test_wandb_reads_back_what_is_built() -> None:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    config = Config()
    sections = sections_of(config)
    workspace = build_workspace(sections, config.tracking)
    again = ws.Workspace._from_model(workspace._to_model())
    assert [len(section.panels) for section in again.sections] == [len(section.panels) for section in sections]
    report = wr.Report._from_model(build_report(sections, config.tracking)._to_model())
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert [len(grid.panels) for grid in grids] == [len(section.panels) for section in sections]
    for grid in grids:  # no two lie on each other
        cells = [
            (x, y)
            for panel in grid.panels
            for x in range(panel.layout.x, panel.layout.x + panel.layout.w)
            for y in range(panel.layout.y, panel.layout.y + panel.layout.h)
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--save"], "--save: no wandb key is configured; set WANDB_API_KEY or run `wandb login`"),
        (["--out"], "expected one argument"),
        (["--out", "absent/file.json"], "--out absent/file.json: cannot be written (No such file or directory)"),
        (["--sav"], "sav (command line): unknown setting"),
        (["--tracking.project=a/b"], "must be 1 to 128 characters"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, nobody: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist_dist(["dashboard", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_to_json_needs_no_network_and_no_key(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert json.loads(to_json(sections_of(Config()), Config()))


# Saving


def view(variables: dict[str, Any]) -> dict[str, Any]:
    """What the server says of a view that it has stored."""
    project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
    times = {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
    stored = {"id": "VIEW", "type": variables["type"], "name": variables["name"], "project": project}
    described = {"displayName": variables["displayName"], "description": variables["description"]}
    return {"upsertView": {"view": stored | described | times | {"spec": variables["spec"]}, "inserted": True}}


def test_both_are_saved_on_a_server(nobody: Path) -> None:
    sections = sections_of(Config())
    none_yet = {
        "models": {"edges": [], "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}}
    }
    answers = {
        **dict.fromkeys(("upsertView", "UpsertView2"), view),
        "GetProjects": lambda _: none_yet,
        "CreateProject": lambda _: {"result": {"project": None, "model": None, "inserted": True}},
    }
    with GraphqlServer(answers) as server:
        done = save(server.environment)
    assert done.returncode == 0, done.stderr
    report, workspace = done.stdout.splitlines()
    assert report.split()[0] == "report"
    assert f"/{ENTITY}/mnist_dist/reports/" in report
    assert workspace.split()[0] == "workspace"
    assert f"/{ENTITY}/mnist_dist?nw=" in workspace
    (told_report,), (told_workspace,) = server.calls("upsertView"), server.calls("UpsertView2")
    for told in (told_report, told_workspace):
        assert (told["entityName"], told["projectName"]) == (ENTITY, "mnist_dist")
        assert set(keys_of(sections)) <= set(strings(json.loads(told["spec"])))


def test_a_server_that_refuses_is_one_line(nobody: Path) -> None:
    with GraphqlServer({}) as server:
        done = save(server.environment)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mnist_dist: ")]
    assert line.startswith("mnist_dist: error: --save: the wandb server did not take it (")


def save(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Save in a process of its own: wandb keeps for good where its server is."""
    command = [sys.executable, "-m", "mnist_dist", "dashboard", "--save"]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100, check=False
    )

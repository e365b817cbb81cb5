"""Extras: without one, a command says in one line how to install it, before any work; the project defines them all."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mnist_dist.__main__ import main
from mnist_dist.utils.errors import EXIT_USER

ROOT = Path(__file__).parents[2]
EXTRAS = {
    name: re.findall(r'"([^"]+)"', packages)
    for name, packages in re.findall(
        r"^(\w+) = \[(.*)\]",
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0],
        re.MULTILINE,
    )
}
"""The requirements of each extra of pyproject.toml."""
TRAIN = "train --data.root=nowhere --tracking.mode=disabled"
NEEDED = {
    "report nowhere": ("report", "matplotlib"),
    "explain nowhere --index 3": ("report", "matplotlib"),
    f"{TRAIN} --tracking.report=true": ("report", "matplotlib"),
    "explain nowhere --embedding umap": ("umap", "umap"),
    "export nowhere --to onnx": ("export", "onnx", "onnxruntime", "onnxscript"),
    "predict --model nowhere.onnx --first 3": ("export", "onnxruntime"),
    "sweep learning_rate": ("sweeps", "optuna"),
    "dashboard": ("dashboards", "wandb_workspaces"),
    "completion bash": ("completion", "shtab"),
    f"{TRAIN} --tracking.also=tensorboard": ("tensorboard", "tensorboard"),
    f"{TRAIN} --tracking.also=trackio": ("trackio", "trackio"),
    f"{TRAIN} --tracking.also=mlflow": ("mlflow", "mlflow", "sqlalchemy", "alembic"),
}
"""A command line, the extra that it needs, and the modules of that. No run and no data are there: that would be the
next error."""


@pytest.mark.parametrize(
    ("line", "extra", "module"), [(line, extra, each) for line, (extra, *modules) in NEEDED.items() for each in modules]
)
def test_without_its_package_a_command_says_how_to_install_it_before_any_work(
    line: str,
    extra: str,
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(line.split()) == EXIT_USER
    out, err = capsys.readouterr()
    (said,) = err.splitlines()
    assert f"pip install 'mnist_dist[{extra}]'" in said
    assert (out, list(tmp_path.iterdir())) == ("", [])


def test_what_is_needed_is_what_an_extra_installs() -> None:
    for extra, *modules in NEEDED.values():
        packages = {re.split(r"[<>=[]", each)[0].replace("-", "_") for each in EXTRAS[extra]}
        aliases = {"mlflow": "mlflow_skinny", "umap": "umap_learn"}
        assert {aliases.get(module, module) for module in modules} <= packages


def test_the_demo_needs_nothing_more() -> None:
    assert EXTRAS["demo"] == []


def test_all_extras_are_installed_where_the_whole_suite_runs() -> None:
    """`.ci/run` installs them in one environment, before pytest; an extra may be part of another one."""
    commands = (ROOT / ".ci" / "run").read_text().partition("\nstep 'pytest'")[0]
    installed = {
        name for names in re.findall(r"pip install --quiet -e '\.\[([\w,]+)\]'", commands) for name in names.split(",")
    }
    for name in list(installed):
        parts = [re.fullmatch(r"mnist_dist\[([\w,]+)\]", each) for each in EXTRAS[name]]
        installed |= {part for found in parts if found for part in found[1].split(",")}
    assert installed == EXTRAS.keys()

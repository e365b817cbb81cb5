"""A network of the user's own: trained, stopped, resumed and evaluated; and the commands of docs/own-net.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks
from measured_keys import MEASURED_ROW_KEYS
from programs import read_rows, write_digits

from mnist_dist import Config, evaluate, load_model
from mnist_dist import train as train_here
from mnist_dist.__main__ import dispatch
from mnist_dist.utils.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "own-net.md").read_text()
SETTINGS = (
    *("--data.root=data", "--data.source=local", "--data.val_size=0", "--run.device=cpu", "--run.threads=1"),
    *(
        "--train.precision=no",
        "--train.epochs=2",
        "--train.batch_size=25",
        "--run.quiet=true",
        "--tracking.mode=disabled",
    ),
)
OVERRIDES = dict(setting.removeprefix("--").split("=", 1) for setting in SETTINGS)
MINE = ("train", *SETTINGS, "--model.name=my_net.py:build", "--model.args.width=4", "--model.args.dropout=0.2")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with data and the documents' network."""
    (tmp_path / "data").mkdir()
    write_digits(tmp_path / "data", train=100, test=50)
    shutil.copy(DOCS / "examples" / "my_net.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(work: Path, commands: list[list[str]]) -> list[str]:
    """Run commands of mnist-dist one after the other in this process: the error of each, or nothing."""
    os.chdir(work)
    said = []
    for command in commands:
        try:
            said.append("" if dispatch(command) == 0 else "failed")
        except UserError as error:
            said.append(str(error))
    return said


def run(work: Path, *commands: tuple[str, ...]) -> list[str]:
    [said] = run_ranks(1, run_commands, work, [list(command) for command in commands])
    return said


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, without times."""
    return [{key: row[key] for key in row if key not in MEASURED_ROW_KEYS} for row in read_rows(folder)]


def sha256(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["weights_sha256"]


def test_the_commands_of_the_document_run(work: Path) -> None:
    lines = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)).splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert [command[0] for command in commands] == ["models", "train", "evaluate", "models", "train", "predict"]
    said = run(work, *[(*command, *SETTINGS) if command[0] == "train" else tuple(command) for command in commands])
    assert said == [""] * len(commands)
    [recipe] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (work / "mine.yaml").write_text(recipe)
    model = Config.from_recipe("mine.yaml").model
    assert (model.name, model.args) == ("my_net.py:build", {"width": 16, "dropout": 0.1})


def test_a_stopped_run_resumes_with_the_same_code_only(work: Path) -> None:
    assert run(work, (*MINE, "--run.dir=whole"), (*MINE, "--run.dir=run", "--train.max_steps=3")) == ["", ""]
    (work / "my_net.py").rename(work / "moved.py")
    code = (work / "moved.py").read_text()
    (work / "my_net.py").write_text(f"{code}# changed\n")
    kept = (*MINE, "--run.dir=run", "--model.name=run/model/my_net.py:build")
    changed, other_args, resumed = run(
        work, (*MINE, "--run.dir=run"), (*MINE, "--run.dir=run", "--model.args.width=5"), kept
    )
    assert re.fullmatch(
        r"run/checkpoints/step-00000003: was trained with another my_net.py \(SHA-256 \w{12} instead of \w{12}\); "
        r"go on with that one, run/model/my_net.py, or start anew in another --run.dir",
        changed,
    )
    assert "was written with other settings: model.args.width=5 (was 4); " in other_args
    assert resumed == ""
    assert sha256(work / "run") == sha256(work / "whole")
    assert rows(work / "run")[-1] == rows(work / "whole")[-1]
    assert (work / "run" / "model" / "my_net.py").read_text() == code


def test_code_that_came_with_a_run_is_not_run_unasked(work: Path) -> None:
    (work / "blocks.py").write_text("open('ran', 'a').write('x')\n")
    (work / "my_net.py").write_text(f"import blocks\n{(work / 'my_net.py').read_text().replace('from __future', '# ')}")
    command = ("evaluate", "run", "--json")
    other = work / "other.py"
    other.write_text((work / "my_net.py").read_text() + "# other\n")
    assert run(work, (*MINE, "--run.dir=run")) == [""]
    assert {path.name for path in (work / "run" / "model").iterdir()} == {"my_net.py", "blocks.py"}
    (work / "ran").unlink()
    (work / "my_net.py").rename(work / "hidden.py")
    refused, unlike, wrong = run(work, command, (*command, "--model", "cnn"), (*command, "--model", "gone.py:build"))
    assert refused == (
        "run: its network is built by code that is not of this package, my_net.py:build, and code of a run is not run "
        "unasked; give yours by --model my_net.py:build, or --trust to run the copy run/model/my_net.py"
    )
    assert unlike == "--model cnn: give FILE.py:FUNCTION or MODULE:FUNCTION, as in --model my_net.py:build"
    assert "gone.py: No such file or directory" in wrong
    assert not (work / "ran").exists()
    with pytest.raises(UserError, match="is not run unasked"):
        load_model("run")
    assert not (work / "ran").exists()
    assert run(work, (*command, "--trust"), (*command, "--model", "other.py:build")) == ["", ""]
    assert (work / "ran").read_text() == "xx"
    (work / "run" / "model" / "blocks.py").write_text("open('ran', 'a').write('y')\n")
    [tampered] = run(work, (*command, "--trust"))
    assert tampered.startswith("run/model/blocks.py: is not the file that the checkpoint was trained with; give ")
    assert (work / "ran").read_text() == "xx"


def forge(run: Path, name: str) -> None:
    """Make a checkpoint's configuration name other code, as whoever sends a run could."""
    [folder] = (run / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    state["config"]["model"]["name"] = name
    state["config"]["model"]["args"] = {"command": "touch ran"}
    content = json.dumps(state, indent=1).encode()
    (folder / "state.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def test_a_run_cannot_make_evaluate_call_any_function(work: Path) -> None:
    train_here(Config.from_recipe((), OVERRIDES | {"run.dir": "run", "train.epochs": 1}))
    assert run(work, ("evaluate", "run", "--model", "my_net.py:build")) == [
        "--model my_net.py:build: the network of run is unshuffle, which this package has; leave it out"
    ]
    forge(work / "run", "os:system")
    [said] = run(work, ("evaluate", "run"))
    assert "code of a run is not run unasked; give yours by --model os:system, or --trust to run the module os" in said
    assert not (work / "ran").exists()


def test_from_python(work: Path) -> None:
    own = {"model.name": "my_net.py:build", "model.args.width": 4, "train.epochs": 1}
    trained = train_here(Config.from_recipe((), OVERRIDES | own))
    model = load_model(trained, model="my_net.py:build")
    assert model.weights_sha256 == trained.summary["weights_sha256"] == load_model(trained, trust=True).weights_sha256
    images = torch.zeros(3, 28, 28)
    assert model.probabilities(images).equal(model(images).softmax(1))
    assert evaluate(trained, model="my_net.py:build").correct == trained.summary["test.correct"]

"""Every command in README.md and the documents is run here, or `ELSEWHERE` names the test that runs it, or the reason.

A document's commands run one after the other in a folder of its own, as a reader would type them. What is changed:

- `RUN` is `runs/digits`, and the checkpoint of step 215 the one that the small run has.
- MNIST is a few hundred images of noise with a bright row, in the user's cache; other data lie in `data/`.
- A training takes two steps (`SHORT`), with wandb off unless the command names it. What a command sets itself is kept.
- `mnist-dist` and `python -m mnist_dist` run in one process that has torch already.

Commands stand in blocks for a shell, after a prompt, and in the columns `command` and `reproduce` of tables. Those in
sentences, and all that are not run here, are at least taken by their parsers.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from document_commands import (
    DOCUMENTS,
    ROOT,
    Command,
    all_commands,
    commands_in,
    commands_in_tables,
    inline_commands,
    own_arguments,
    refusal_of,
)
from document_reasons import ELSEWHERE
from harness import run_ranks
from idx_sets import write_known_set
from PIL import Image
from programs import ACCELERATE, run, write_digits

from mnist_dist.__main__ import main

EXIT_CODES = {"python -m mnist_dist.train --tracking.entity=team/project": 2}
"""Commands that a document shows because they are refused."""

EXTRAS = {"report": "matplotlib", "export": "onnxscript", "dashboard": "wandb_workspaces", "completion": "shtab"}
"""Command to the module of the extra that it needs; `predict --model` reads what `export` wrote."""

SHORT = {
    "data.val_size": "50",
    "data.limit": "256",
    "data.test_limit": "50",
    "train.max_steps": "2",
    "run.threads": "1",
    "run.device": "cpu",
}


def is_elsewhere(line: str) -> str | None:
    """The pattern in `ELSEWHERE` that a command fits."""
    for pattern in ELSEWHERE:
        if re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), line):
            return pattern
    return None


def shorten(arguments: list[str]) -> list[str]:
    """The arguments of a training with `SHORT` added, as far as they do not say otherwise."""
    given = {word.removeprefix("--").partition("=")[0] for word in arguments}
    added = [f"--{key}={value}" for key, value in SHORT.items() if key not in given]
    if not any(key.startswith("tracking.") for key in given):
        added.append("--tracking.mode=disabled")
    return [*arguments, *added]


def to_run(document: str, home: Path) -> list[tuple[str, list[str]]]:
    """The commands of a document that run here, each with its arguments for `mnist_dist.__main__.main`."""
    found = []
    for command in all_commands():
        if command.document != document or is_elsewhere(command.line):
            continue
        arguments = own_arguments(command.line)
        if arguments is None:
            continue
        for old, new in (("RUN", "runs/digits"), ("step-00000215", "step-00000002")):
            arguments = [re.sub(rf"\b{old}\b", new, word) for word in arguments]
        found.append((command.line, shorten(arguments) if arguments[0] == "train" else arguments))
    return found


def needed_extra(arguments: list[str]) -> str | None:
    """The module that a command needs and that is not installed."""
    command = "export" if "--model" in arguments and "model.onnx" in arguments else arguments[0]
    module = "" if "safetensors" in arguments or "hub" in arguments else EXTRAS.get(command, "")
    return module if module and find_spec(module) is None else None


def run_commands(home: Path, commands: list[list[str]]) -> list[int]:
    """Run commands in a folder, one after the other; their exit codes. Stops at a wrong one, whose output is shown."""
    os.chdir(home)
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    codes = []
    for command in commands:
        try:
            codes.append(main(command))
        except SystemExit as ended:
            codes.append(int(ended.code or 0))
    return codes


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands name: data, pictures, code, settings, and a run."""
    home = tmp_path_factory.mktemp("template")
    (home / "cache" / "mnist_dist").mkdir(parents=True)
    write_digits(home / "cache" / "mnist_dist", train=400, test=60)
    write_known_set(home / "cache" / "mnist_dist" / "fashion", "fashion", 10, train=400, test=60)
    [yaml] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (home / "my.yaml").write_text(yaml)
    shutil.copy(ROOT / "docs" / "examples" / "my_net.py", home)
    for name in ("launch", "docs", "configs"):
        (home / name).symlink_to(ROOT / name)
    picture = Image.new("L", (28, 28))
    picture.paste(255, (8, 8, 20, 12))
    picture.save(home / "photo.jpg")
    run = shorten(["train", "--run.dir=runs/digits"])
    assert run_ranks(1, run_commands, home, [run]) == [[0]]
    return home


def with_runs(*names: str) -> Callable[[Path], None]:
    """A preparation that gives the small run some more names in runs/."""

    def prepare(home: Path) -> None:
        for name in names:
            shutil.copytree(home / "runs" / "digits", home / "runs" / name)

    return prepare


def without_runs(home: Path) -> None:
    """A reader who has not trained yet."""
    shutil.rmtree(home / "runs")


def with_other_data(home: Path) -> None:
    """The sets that docs/data.md names, where it says that they are."""
    for folder, name, num_classes in (
        ("kmnist", "kmnist", 10),
        ("data", "emnist-balanced", 47),
        ("data", "emnist-letters", 26),
        ("data", "qmnist", 10),
        ("data", "idx", 2),
    ):
        write_known_set(home / folder, name, num_classes, train=400, test=60)


def with_first(home: Path) -> None:
    """The run and the weights that docs/going-on.md starts from."""
    with_runs("first")(home)
    shutil.copy(next(home.glob("runs/digits/checkpoints/*/model.safetensors")), home / "weights.safetensors")


def with_slurm(home: Path) -> None:
    """A job's run, and data in a folder that all nodes see."""
    with_runs("slurm-12345")(home)
    shutil.copytree(home / "cache" / "mnist_dist", home / "data")


def with_artifact(home: Path) -> None:
    """A run's folder with one checkpoint, as `wandb artifact get` leaves it."""
    shutil.copytree(home / "runs" / "digits", home / "best")
    without_runs(home)


PREPARED: dict[str, Callable[[Path], None]] = {
    "docs/data.md": with_other_data,
    "docs/going-on.md": with_first,
    "docs/look.md": with_runs("one", "two"),
    "docs/own-net.md": without_runs,
    "docs/slurm.md": with_slurm,
    "docs/tour.md": without_runs,
    "docs/wandb.md": with_artifact,
}


@pytest.mark.parametrize("document", sorted({command.document for command in all_commands()}))
def test_commands_run(document: str, template: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(template, home, symlinks=True)
    PREPARED.get(document, lambda home: None)(home)
    commands = to_run(document, home)
    missing = {line: module for line, words in commands if (module := needed_extra(words))}
    commands = [(line, words) for line, words in commands if line not in missing]
    [codes] = run_ranks(1, run_commands, home, [words for _, words in commands], timeout=200)
    lines = [line for line, _ in commands]
    assert dict(zip(lines, codes, strict=True)) == {line: EXIT_CODES.get(line, 0) for line in lines}
    if missing:
        pytest.skip(f"all others ran; not installed: {missing}")


@pytest.mark.launcher
def test_the_hang_is_named_as_the_page_says(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "hangs.md").read_text()
    [line] = [line for line in commands_in(page) if line.startswith("accelerate launch ")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(template / "cache"))
    short = ["--data.val_size=50", "--data.limit=350", "--data.test_limit=50", "--train.batch_size=10"]
    [ended] = run([*ACCELERATE, *line.split()[2:], *short], work=template)
    assert ended.code == 1
    [error] = re.findall(
        r"^mnist_dist: error: (rank 0: rank 1 on ).*(did not join .* stuck in ).*> (.*)$", ended.err, re.M
    )
    assert all(part in page for part in error), ended.err


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: f"{command.document}: {command.line}")
def test_each_command_is_run_or_has_a_reason(command: Command, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(template)
    arguments = own_arguments(command.line)
    if command.line not in EXIT_CODES:
        assert refusal_of(command.line) == ""
    if arguments is None or not command.line.startswith(("mnist-dist", "python -m mnist_dist")):
        assert is_elsewhere(command.line), "add it to ELSEWHERE"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_inside_sentences_parse(path: Path) -> None:
    """A sentence may name an option without what the command needs besides."""
    refusals = [refusal_of(line) for line in inline_commands(path.read_text())]
    assert [text for text in refusals if text and "the following arguments are required" not in text] == []


def test_each_reason_is_needed_and_each_test_exists() -> None:
    used = {is_elsewhere(command.line) for command in all_commands()}
    assert [pattern for pattern in ELSEWHERE if pattern not in used] == []
    assert set(EXIT_CODES) <= {command.line for command in all_commands()}
    assert set(PREPARED) <= {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    for where in ELSEWHERE.values():
        for path, function in re.findall(r"(tests/\S+\.py)::(\w+)", where):
            assert f"def {function}(" in (ROOT / path).read_text(), where


def test_commands_are_found() -> None:
    text = "```sh\na b  # c\nd --e='#' && f \\\n  g\n```\n\n    $ h i     # j\n```text\nk\n```\n"
    assert commands_in(text) == ["a b", "d --e='#'", "f g", "h i"]
    table = "| what | command |\n|---|---|\n| `a b` | `c d`, `--e=f` |\n\n| command |\n|---|\n| `x y && g` |\n"
    assert commands_in_tables(table) == ["c d", "x y", "g"]
    assert own_arguments("A=1 python -m mnist_dist.train --run.seed=1 > x") == ["train", "--run.seed=1"]
    assert own_arguments("accelerate launch -m mnist_dist doctor") == ["doctor"]
    assert own_arguments("wandb leet x") is None
    assert is_elsewhere("torchrun --new") is None

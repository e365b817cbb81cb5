"""README.md: its commands and recipes exist and parse. `test_documents` checks its paths and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.__main__ import COMMANDS
from mnist_dist.commands.data import build_parser as data_parser
from mnist_dist.commands.evaluate import build_parser as evaluate_parser
from mnist_dist.commands.predict import build_parser as predict_parser
from mnist_dist.config.loader import load
from mnist_dist.config.sections import DataConfig
from mnist_dist.config.yaml_files import list_recipes
from mnist_dist.data.dataset import read_splits
from mnist_dist.data.sets import DATA_SETS, ROLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]

[TRAINING_YAML] = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
EXTRAS = {"sweep": "sweeps", "dashboard": "dashboards"}
"""Commands of mnist-dist that need an extra."""


def test_the_first_two_blocks_are_the_two_commands() -> None:
    assert BLOCKS[0] == "pip install -e . && accelerate launch -m mnist_dist.train\n"
    assert BLOCKS[1] == "pip install -e '.[test]' && pytest\n"


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python -m mnist_dist.train")])
def test_training_commands_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.yaml").write_text(TRAINING_YAML)
    monkeypatch.chdir(tmp_path)
    load(shlex.split(line)[3:])


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("mnist-dist")])
def test_other_commands_parse(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    assert command in COMMANDS
    if command in ("evaluate", "predict"):
        parser = {"evaluate": evaluate_parser, "predict": predict_parser}[command]()
        parser.parse_intermixed_args(arguments)


def test_commands_say_which_extra_they_need() -> None:
    for command, extra in EXTRAS.items():
        line = next(
            line for block in BLOCKS for line in block.splitlines() if line.startswith(f"mnist-dist {command} ")
        )
        assert line.endswith(f"first: pip install -e '.[{extra}]'")


def test_the_training_file_loads(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(TRAINING_YAML)
    config = load([f"--config={tmp_path / 'my.yaml'}"]).config
    assert (config.model.name, config.optim.name, config.optim.lr, config.train.epochs) == ("convnet", "sgd", 0.1, 3)


def test_recipes_exist() -> None:
    for recipe in re.findall(r"`(seeds/\w+)`", README):
        assert recipe in list_recipes()


def test_nothing_is_left_to_fill_in() -> None:
    for path in [ROOT / "README.md", *(ROOT / "configs").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"PENDING|DEFAULT_RESULT|RESULTS_TABLE|TODO", path.read_text()), path


DATA_PAGE = (ROOT / "docs" / "data.md").read_text()
DATA_LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", DATA_PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_commands_about_data_parse() -> None:
    for line in DATA_LINES:
        words = shlex.split(line)
        if words[0] == "python":
            load(words[3:])
        else:
            assert words[:2] == ["mnist-dist", "data"]
            data_parser().parse_args(words[2:])
    sets = {name for cell in re.findall(r"^\| (`[^|]*) \|", DATA_PAGE, re.MULTILINE) for name in cell.split("`")[1::2]}
    assert sets - {"data.name"} == DATA_SETS.keys()


def test_files_are_written_as_the_page_about_data_says(tmp_path: Path) -> None:
    [source] = re.findall(r"```python\n(.*?)```", DATA_PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    images, labels = np.arange(3 * 784, dtype=np.uint32).reshape(3, 28, 28) % 251, np.array([0, 999, 1])
    for role in ROLES:
        names["write_idx"](tmp_path / role, labels if "labels" in role else images)
    splits = read_splits({role: tmp_path / role for role in ROLES}, DataConfig(name="idx", val_size=0), seed=0)
    assert splits.train.labels.tolist() == [0, 999, 1]
    assert (splits.train.images.squeeze(1).numpy() == images).all()
    assert len(splits.class_names) == 1000

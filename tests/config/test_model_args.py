"""model.name as FILE.py:FUNCTION or MODULE:FUNCTION, and model.args: what they take, and what is said of mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnist_dist.checkpoint.resume_checks import check_resumable
from mnist_dist.config.json_schema import json_schema
from mnist_dist.config.loader import dump, load
from mnist_dist.config.schema import Config, flat
from mnist_dist.config.sections import ModelConfig
from mnist_dist.config.yaml_files import read_yaml
from mnist_dist.utils.errors import UserError

CODE = "def build(width=8): ...\nclass Net: ...\nother = build\n"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which has a file with models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(CODE)
    return tmp_path


def args_of(*arguments: str) -> dict[str, Any]:
    return load(arguments).config.model.args


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("-1", -1),
        ("64.0", 64.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("'64'", "64"),
        ('"true"', "true"),
        ("", ""),
        ("a b", "a b"),
        ("a,b", "a,b"),
        ("[1, 2.5, a, 'true', true]", (1, 2.5, "a", "true", True)),
        ("[]", ()),
    ],
)
def test_the_type_is_that_of_the_spelling(text: str, value: Any, work: Path) -> None:
    found = args_of(f"--model.args.x={text}")["x"]
    assert (found, type(found)) == (value, type(value))
    if text:
        (work / "a.yaml").write_text(
            f"model: {{args: {{x: {text}}}}}" if "," not in text[:3] else f"model.args.x: {text}"
        )
        assert args_of("--config=a.yaml") == {"x": value}


@pytest.mark.parametrize(
    "text", ["model: {args: {a: 1, b: x}}", "model.args: {a: 1, b: x}", "model.args.a: 1\nmodel.args.b: x"]
)
def test_yaml_takes_a_mapping_or_dotted_keys(text: str, work: Path) -> None:
    (work / "a.yaml").write_text(text)
    assert args_of("--config=a.yaml") == {"a": 1, "b": "x"}
    assert args_of("--config=a.yaml", "--model.args.a=2", "--model.args.c=3") == {"a": 2, "b": "x", "c": 3}
    assert read_yaml(work / "a.yaml")[0].origin == f"{work / 'a.yaml'}:1"


NAMES = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8),
    st.sampled_from(
        ["1", "1e-3", "true", "no", "null", "~", "1:30", "'", '"', "[1]", "{}", "# x", "a: b", "- a", "&a", "!x"]
    ),
)


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(NAMES, st.one_of(SCALARS, st.lists(SCALARS))))
@example({"A": "\U00010000", "n": "1e-3", "l": ["'", 1.0, True, 1]})
def test_what_is_written_is_read_back(args: dict[str, Any]) -> None:
    config = Config(model=ModelConfig(args={name: tuple(v) if isinstance(v, list) else v for name, v in args.items()}))
    Path("dumped.yaml").write_text(dump(config))
    again = load(["--config=dumped.yaml"]).config
    assert repr(again.model.args) == repr(config.model.args)  # 1, 1.0 and True are equal
    assert repr(Config.model_validate_json(config.model_dump_json()).model.args) == repr(config.model.args)


def test_from_python_a_text_stays_a_text() -> None:
    overrides = {"model.args": {"a": "64", "b": [1, "2"]}, "model.args.c": 0.5, "model.name": "compact"}
    assert Config.from_recipe((), overrides).model.args == {"a": "64", "b": (1, "2"), "c": 0.5}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "--model.args=3",
            "model.args=3 (command line): name one argument of the model's function, as in --model.args.width=64",
        ),
        ("--model.args.a-b=3", "model.args.a-b=3 (command line): name one argument"),
        ("--model.args.a=[[1]]", "model.args.a (command line): must be one value or a flat list of values"),
        ("--model.args.a=1e999", "model.args.a=1e999 (command line): must be a number, true, false, a text"),
        ("--model.args.a='x", "model.args.a='x (command line): must be a number"),
        ("--model.args.a=x\ty", "model.args.a=x\\ty (command line): must be a number"),
        ("--model.args.a", "--model.args.a (command line) needs a value: --model.args.a=VALUE"),
        ("--model.arg.width=1", "model.arg.width (command line): unknown setting; use --model.args.NAME=VALUE"),
        ("--width=64", "width (command line): unknown setting; use --model.args.NAME=VALUE"),
        ("--model.name=my_net.py", "my_net.py:build"),
        ("--model.name=gone.py:build", "gone.py: No such file or directory; the path counts from "),
        ("--model.name=my_net.py:biuld", "my_net.py does not define biuld; did you mean build?"),
        ("--model.name=my_net.py:zzz", "my_net.py does not define zzz; it defines build, Net"),
        ("--model.name=bad.py:build", "bad.py:2: SyntaxError: "),
        ("--model.name=null.py:build", "null.py"),
        ("--model.name=folder.py:build", "folder.py is a folder, not a file"),
        ("--model.name=a-b:build", "a-b is neither a file that ends in .py nor a module"),
        ("--model.name=~nobody1/a.py:build", "no home folder for ~nobody1"),
    ],
)
def test_a_mistake_costs_one_line(argument: str, said: str, work: Path) -> None:
    (work / "bad.py").write_text("x = 1\ndef build(:\n")
    (work / "null.py").write_bytes(b"a\0b")
    (work / "folder.py").mkdir()
    assert said in error_of(argument)


@pytest.mark.parametrize("function", ["build", "Net", "other"])
def test_what_the_file_defines_is_accepted(function: str) -> None:
    assert load([f"--model.name=my_net.py:{function}"]).config.model.name == f"my_net.py:{function}"


def test_the_file_is_checked_without_running_it_and_without_torch(work: Path) -> None:
    (work / "my_net.py").write_text("import torch\nopen('ran', 'w')\ndef build(): ...\n")
    code = "import sys; from mnist_dist.config.loader import load; load(['--model.name=my_net.py:build']); "
    assert (
        subprocess.run([sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)"], check=False).returncode == 0
    )
    assert not (work / "ran").exists()


def test_arguments_are_compared_one_by_one() -> None:
    config = load(["--model.args.a=1", "--model.args.b=2", "--model.name=cnn"]).config
    assert {key: value for key, value in flat(config).items() if key.startswith("model.")} == {
        "model.name": "cnn",
        "model.args.a": 1,
        "model.args.b": 2,
        **{key: value for key, value in flat(Config()).items() if key.startswith("model.") and key != "model.name"},
    }
    saved = load(["--model.args.a=3", "--model.args.c=2", "--model.name=cnn"]).config.to_dict()
    with pytest.raises(UserError) as caught:
        check_resumable(config, saved, Path("here"))
    assert "model.args.a=1 (was 3), model.args.b=2 (was not given), no model.args.c (was 2); " in str(caught.value)


def test_a_file_that_was_moved_is_the_same_model(work: Path) -> None:
    (work / "deep").mkdir()
    (work / "deep" / "my_net.py").write_text(CODE)
    saved = load(["--model.name=my_net.py:build"]).config.to_dict()
    check_resumable(load(["--model.name=deep/my_net.py:build"]).config, saved, Path("here"))
    with pytest.raises(UserError, match=r"model.name='my_net.py:Net' \(was 'my_net.py:build'\)"):
        check_resumable(load(["--model.name=my_net.py:Net"]).config, saved, Path("here"))


def test_editors_know_the_registered_names_and_the_forms_of_others() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    for recipe, valid in (
        ({"model": {"name": "cnn", "args": {"width": 3, "l": [1, "a"]}}}, True),
        ({"model": {"name": "a/my_net.py:build"}}, True),
        ({"model": {"name": "cn"}}, False),
        ({"model": {"args": {"a": {"b": 1}}}}, False),
    ):
        assert validator.is_valid(recipe) == valid, recipe

"""Every setting and every way to get one wrong."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mnist_dist.config.loader import dump, load, print_config
from mnist_dist.config.schema import FIELDS, SECTIONS, Config
from mnist_dist.config.sections import DataConfig, RunConfig, TrackingConfig, TrainConfig
from mnist_dist.config.validation import describe_early_stopping, describe_excess
from mnist_dist.config.values import INTERPOLATION, describe_range, field_schema, item_schema
from mnist_dist.config.yaml_files import MAX_YAML_BYTES, list_recipes, read_yaml, recipes_folder
from mnist_dist.utils.errors import UserError

PLAIN_TEXT = st.text().filter(lambda text: text.isprintable() and not INTERPOLATION.search(text))
"""Texts that a setting may be: without control characters, and without ${...}, which other programs replace."""


def error_of(*arguments: str, world_size: int = 1) -> str:
    """The message of the UserError that these arguments raise; always one line of a bearable length."""
    with pytest.raises(UserError) as caught:
        load(arguments, world_size)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 600
    return message


def config_or_error(*arguments: str) -> Config | str:
    """What these arguments give: a configuration, or the message of a UserError; nothing else is raised."""
    try:
        return load(arguments).config
    except UserError as error:
        return str(error)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    """A function that writes a YAML file and returns its `--config` argument."""

    def write(text: str | bytes, name: str = "settings.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--config={path}"

    return write


# Defaults and merging


def test_no_arguments_give_the_defaults() -> None:
    loaded = load([])
    assert loaded.config == Config()
    assert loaded.recipes == ()
    assert not loaded.print_config


def test_every_default_is_within_its_type_and_range() -> None:
    for key, field in FIELDS.items():
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
        if text and value != {}:
            assert load([f"--{key}={text}"]).config == Config(), key


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().run.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "values", "kind"),
    [
        (RunConfig, {"seed": -1}, "greater_than_equal"),
        (RunConfig, {"seed": "1"}, "int_type"),
        (RunConfig, {"seed": 1.0}, "int_type"),
        (RunConfig, {"seed": True}, "int_type"),
        (RunConfig, {"quiet": 1}, "bool_type"),
        (RunConfig, {"dir": "a\nb"}, "value_error"),
        (RunConfig, {"sed": 1}, "extra_forbidden"),
        (DataConfig, {"mean": float("nan")}, "finite_number"),
        (DataConfig, {"classes": ["a"]}, "tuple_type"),
        (TrackingConfig, {"tags": ("a", "\x1b")}, "value_error"),
        (TrackingConfig, {"share": ("all",)}, "literal_error"),
    ],
)
def test_python_code_gets_no_wrong_configuration_either(section: Any, values: dict[str, Any], kind: str) -> None:
    with pytest.raises(ValidationError) as error:
        section(**values)
    assert [each["type"] for each in error.value.errors()] == [kind]


def test_later_files_win_over_earlier_ones_and_the_command_line_over_all(yaml_file: Any) -> None:
    first = yaml_file("run: {seed: 1}\ntrain: {epochs: 1, batch_size: 10, keep: 7}", "first.yaml")
    second = yaml_file("train: {epochs: 2, batch_size: 20}", "second.yaml")
    loaded = load(["--train.epochs=3", first, second])
    assert loaded.config.train == TrainConfig(epochs=3, batch_size=20, keep=7)
    assert loaded.config.run == RunConfig(seed=1)
    assert loaded.recipes == ("first", "second")
    assert load([second, first]).config.train.batch_size == 10


def test_last_of_a_repeated_option_wins() -> None:
    assert load(["--run.seed=1", "--run.seed", "2"]).config.run.seed == 2


def test_value_may_follow_as_its_own_argument() -> None:
    assert load(["--optim.lr", "1e-4", "--data.mean", "-1"]).config.optim.lr == 1e-4


@pytest.mark.parametrize("text", ["", "# nothing", "null", "run:", "run: null", "run: {}", "run:\ndata:\n"])
def test_empty_files_and_sections_change_nothing(yaml_file: Any, text: str) -> None:
    assert load([yaml_file(text)]).config == Config()


def test_keys_of_a_file_may_be_dotted(yaml_file: Any) -> None:
    loaded = load([yaml_file("optim.lr: 0.5\ntrain: {epochs: 2}\ntrain.batch_size: 64\noptim.betas: [0.5, 0.25]")])
    assert (loaded.config.optim.lr, loaded.config.optim.betas) == (0.5, (0.5, 0.25))
    assert loaded.config.train == TrainConfig(epochs=2, batch_size=64)


# What a value's text means


@pytest.mark.parametrize("text", ["5", "null", "None", "no", "true", "1e3", "[a]", "{a: 1}", "a=b", " x ", "'q'", "é"])
def test_texts_stay_as_written(text: str) -> None:
    assert load([f"--run.dir={text}"]).config.run.dir == text


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "1e-3", 0.001),
        ("optim.lr", "1", 1.0),
        ("optim.lr", ".5", 0.5),
        ("optim.lr", "1.e-2", 0.01),
        ("data.mean", "-0.5", -0.5),
        ("run.seed", "2147483647", 2147483647),
        ("data.drop_last", "yes", True),
        ("data.drop_last", "True", True),
        ("data.drop_last", "no", False),
        ("train.precision", "no", "no"),
        ("run.dir", "no", "no"),
        ("optim.betas", "[0.5, 1e-3]", (0.5, 0.001)),
        ("tracking.tags", "[a, 5, no]", ("a", "5", "no")),
        ("tracking.tags", "[]", ()),
        ("tracking.tags", "['a, b', c]", ("a, b", "c")),
    ],
)
def test_the_same_text_means_the_same_in_a_file_and_on_the_command_line(
    yaml_file: Any, key: str, text: str, value: Any
) -> None:
    section, _, name = key.partition(".")
    for argument in (f"--{key}={text}", yaml_file(f"{section}: {{{name}: {text}}}")):
        result = getattr(getattr(load([argument]).config, section), name)
        assert result == value
        assert type(result) is type(value)


@pytest.mark.parametrize("text", ["a,b", "a, b", "[a,b]", "[a, b]"])
def test_lists_need_no_brackets(text: str) -> None:
    assert load([f"--tracking.tags={text}"]).config.tracking.tags == ("a", "b")
    assert load(["--optim.betas=0.5,0.25"]).config.optim.betas == (0.5, 0.25)
    assert load(["--tracking.tags="]).config.tracking == TrackingConfig()


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0))
def test_every_number_that_python_prints_is_read_exactly(number: float) -> None:
    assert load([f"--optim.lr={number!r}"]).config.optim.lr == number


# What is refused


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--optim.lr=fast", "optim.lr=fast (command line): must be a number, as in 0.1 or 1e-3"),
        ("--optim.lr=", "optim.lr= (command line): must be a number, as in 0.1 or 1e-3"),
        ("--optim.lr=nan", "optim.lr=nan (command line): must be a number, as in 0.1 or 1e-3"),
        ("--optim.lr=null", "optim.lr=null (command line): must be a number, as in 0.1 or 1e-3"),
        ("--optim.lr=1e999", "optim.lr=1e999 (command line): must be a finite number"),
        (f"--optim.lr={'9' * 60}e999", f"optim.lr={'9' * 60}e999 (command line): must be a finite number"),
        ("--optim.lr=1_0", "optim.lr=1_0 (command line): must be a number, as in 0.1 or 1e-3"),
        ("--optim.lr=-1", "optim.lr=-1 (command line): must be at least 0"),
        ("--optim.final_lr=2", "optim.final_lr=2 (command line): must be at least 0 and at most 1"),
        ("--optim.warmup=1", "optim.warmup=1 (command line): must be at least 0 and below 1"),
        ("--optim.betas=0.9", "optim.betas=0.9 (command line): must be a list of 2 numbers, as in [0.9, 0.99]"),
        ("--optim.betas=2", "optim.betas=2 (command line): must be a list of 2 numbers, as in [0.9, 0.99]"),
        ("--optim.betas=0.9,1", "optim.betas=0.9,1 (command line): must be at least 0 and below 1"),
        ("--tracking.tags=[a", "tracking.tags=[a (command line): must be a list of texts, as in [a, b]"),
        (
            "--tracking.share=[all]",
            "tracking.share=[all] (command line): must be a list of some of console, code, system, as in [console]",
        ),
        ("--tracking.tags=[[a]]", "tracking.tags (command line): must be one value or a flat list of values"),
        ("--run.seed=1.0", "run.seed=1.0 (command line): must be a whole number in plain digits"),
        ("--run.seed=010", "run.seed=010 (command line): must be a whole number in plain digits"),
        ("--run.seed=true", "run.seed=true (command line): must be a whole number in plain digits"),
        ("--run.seed=2147483648", "run.seed=2147483648 (command line): must be at least 0 and below 2147483648"),
        ("--data.drop_last=tRue", "data.drop_last=tRue (command line): must be true or false"),
        ("--data.drop_last=1", "data.drop_last=1 (command line): must be true or false"),
        (
            "--run.device=cpuu",
            "run.device=cpuu (command line): must be one of auto, cpu, cuda, mps, xpu; did you mean cpu?",
        ),
        ("--run.dir=a\nb", r"run.dir=a\nb (command line): must be a text without line breaks or control characters"),
        ("--run.dir=a\0b", r"run.dir=a\x00b (command line): must be a text without line breaks or control characters"),
        ("--optim.lrr=1", "optim.lrr (command line): unknown setting; did you mean optim.lr?"),
        ("--lr=1", "lr (command line): unknown setting; did you mean optim.lr?"),
        ("--tracking=1", "tracking (command line): is a section; give one of its settings, as in --tracking.mode=..."),
        ("--model.depth=1", "model.depth (command line): unknown setting; settings of model: name, args, init_from"),
        ("--nonsense=1", "nonsense (command line): unknown setting; --help lists all settings"),
        ("--optim.lr", "--optim.lr (command line) needs a value: --optim.lr=VALUE"),
        ("--config", "--config (command line) needs a value: --config=VALUE"),
        ("--config=", "--config (command line) needs a value: --config=VALUE"),
        ("optim.lr=1", "'optim.lr' (command line) is not an option; did you mean --optim.lr=1?"),
        ("nothing", "'nothing' (command line) is not an option; settings are given as --section.key=value"),
        ("--run.quiet", "--run.quiet (command line) needs a value: --run.quiet=true"),
        (
            "--run.dir=${oc.env:HOME}/a",
            "run.dir=${oc.env:HOME}/a (command line): ${...} is not replaced; write the value itself",
        ),
        ("", "'' (command line) is not an option; settings are given as --section.key=value"),
        ("--config=none.yaml", "--config=none.yaml: no such file"),
        ("--config=/", "--config=/: is a folder, not a YAML file"),
    ],
)
def test_errors_name_the_key_its_origin_and_what_would_work(argument: str, message: str) -> None:
    assert error_of(argument) == message


def test_unknown_choices_list_the_choices() -> None:
    error = error_of("--model.name=unshufle")
    assert error.startswith("model.name=unshufle (command line): must be one of unshuffle, ")
    assert error.endswith("; did you mean unshuffle?")


@pytest.mark.parametrize("key", ["--optim.l=1", "--op.lr=1", "--print", "--conf=default", "--print_config=1", "--tr"])
def test_abbreviations_are_refused(key: str) -> None:
    assert "unknown setting" in error_of(key)


def test_recipe_names_are_suggested() -> None:
    assert error_of("--config=defalt").startswith("--config=defalt: neither a recipe nor a file; did you mean default?")


def test_option_that_swallows_the_next_option_is_refused() -> None:
    assert "needs a value" in error_of("--run.dir", "--run.quiet=true")


def test_long_and_strange_values_are_cut() -> None:
    assert "..." in error_of(f"--run.seed={'9' * 5000}")
    assert "..." in error_of(f"--config={'x' * 5000}")
    assert "..." in error_of(f"--{'x' * 5000}=1")
    assert error_of("--config=\0")


def test_null_in_a_list_is_refused() -> None:
    assert error_of("--tracking.tags=[a, null]") == (
        "tracking.tags (command line): has no value; give one, or leave the line out"
    )


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", ":1: must be a mapping of sections (run, data, model, ...)"),
        ("[a]", ":1: must be a mapping of sections (run, data, model, ...)"),
        ("run: 5", ":1: must be a mapping of the settings of run"),
        ("run:\n  - seed", ":2: must be a mapping of the settings of run"),
        ("? [a]\n: b", ":1: a key must be one word; this must be a mapping of sections (run, data, model, ...)"),
        ("run: {seed: 1", ":1: not valid YAML (expected ',' or '}', but got '<stream end>')"),
        ("run:\n\tseed: 1", r":2: not valid YAML (found character '\t' that cannot start any token)"),
        ("a: b\n---\nc: d", ":2: not valid YAML (but found another document)"),
        ("run: {seed: *x}", ":1: not valid YAML (found undefined alias 'x')"),
    ],
)
def test_malformed_files_are_refused_with_their_line(yaml_file: Any, text: str, message: str) -> None:
    argument = yaml_file(text)
    assert error_of(argument) == argument.removeprefix("--config=") + message


@pytest.mark.parametrize(
    ("text", "start", "line", "end"),
    [
        ("\noptm: {lr: 1}", "optm", 2, "unknown section; did you mean optim?; sections: run, data, model, "),
        ("lr: 1", "lr", 1, "unknown section; did you mean optim.lr?; sections: run, "),
        ("optim.lrr: 1", "optim.lrr", 1, "unknown setting; did you mean optim.lr?"),
        ("optim.lr: {a: 1}", "optim.lr", 1, "must be one value or a flat list of values"),
        ("optim: {lr: 1}\noptim.lr: 2", "optim.lr", 2, "given twice, first in {file}:1"),
        ("optim: {lr: 1}\noptim: {clip: 2}", "optim", 2, "section given twice, first in {file}:1; make them one"),
        ("run:\n  dir: ${oc.env:X}", "run.dir=${oc.env:X}", 2, "${...} is not replaced; write the value itself"),
        ("tracking: {tags: ['${a.b}']}", "tracking.tags=[${a.b}]", 1, "${...} is not replaced"),
        ("optim:\n\n  lrate: 1", "optim.lrate", 3, "unknown setting; did you mean optim.lr?"),
        ("optim:\n  lr: fast", "optim.lr=fast", 2, "must be a number, as in 0.1 or 1e-3"),
        ("optim:\n  lr: -1", "optim.lr=-1", 2, "must be at least 0"),
        ("optim:\n  lr: .nan", "optim.lr=.nan", 2, "must be a number, as in 0.1 or 1e-3"),
        ("optim:\n  lr:\n", "optim.lr", 2, "has no value; give one, or leave the line out"),
        ("run: {dir: null}", "run.dir", 1, "has no value; give one, or leave the line out"),
        ("run: {dir: ~}", "run.dir", 1, "has no value; give one, or leave the line out"),
        ("run: {dir: [a]}", "run.dir=[a]", 1, "must be a text without line breaks or control characters"),
        ("run: {dir: {a: b}}", "run.dir", 1, "must be one value or a flat list of values"),
        ("run: {seed: 010}", "run.seed=010", 1, "must be a whole number in plain digits"),
        ("train: {epochs: 1:30}", "train.epochs=1:30", 1, "must be a whole number in plain digits"),
        ("run: {seed: 2024-01-01}", "run.seed=2024-01-01", 1, "must be a whole number in plain digits"),
        ('run: {seed: "a\\nb"}', r"run.seed=a\nb", 1, "must be a whole number in plain digits"),
        ("optim:\n  lr: 1\n  lr: 2", "optim.lr", 3, "given twice, first in {file}:2"),
        ("a: &a {seed: 1}\nrun:\n  <<: *a", "a", 1, "unknown section"),
        ("run: &a {seed: 1}\noptim:\n  <<: *a", "optim.<<", 3, "unknown setting"),
    ],
)
def test_errors_in_files_name_key_and_line(yaml_file: Any, text: str, start: str, line: int, end: str) -> None:
    argument = yaml_file(text)
    file = argument.removeprefix("--config=")
    assert error_of(argument).startswith(f"{start} ({file}:{line}): {end}".replace("{file}", file))


@pytest.mark.parametrize(
    "text",
    [
        "run: {dir: !!python/object/apply:os.system ['touch hacked']}",
        "run: {dir: !!python/object/new:os.system ['touch hacked']}",
        "run: {dir: !!python/name:os.system ''}",
        "run: {dir: !!python/object:os.x x}",
        "run: !!python/object:x {seed: 1}",
        "tracking: {tags: !!python/tuple [a]}",
        "tracking: {tags: !!set {a: , b: }}",
        "run: {dir: !!binary aGk=}",
        "run: {dir: !mine x}",
        "!!python/object/apply:os.system ['touch hacked']",
    ],
)
def test_tags_are_refused_and_build_nothing(
    yaml_file: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error_of(yaml_file(text))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"run: {dir: '\xed\xa0\x80'}", b"run: {dir: '\x00'}"])
def test_files_that_are_not_text_are_refused(yaml_file: Any, content: bytes) -> None:
    assert "cannot be read as text" in (message := error_of(yaml_file(content))) or "not valid YAML" in message


def test_bombs_are_refused_at_once(yaml_file: Any) -> None:
    aliases = "tracking:\n  tags: &a0 [x]\n" + "".join(
        f"t{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
    )
    nested = "tracking:\n  tags: &a0 [&s x]\n".replace("[&s x]", f"[{', '.join(['[[x]]'] * 5000)}]")
    assert "unknown section" in error_of(yaml_file(aliases))
    assert "flat list" in error_of(yaml_file(nested))
    assert "not valid YAML" in error_of(yaml_file("[" * 50_000))
    assert "not valid YAML" in error_of(yaml_file("- " * 30_000))
    assert "larger than" in error_of(yaml_file("#" * (MAX_YAML_BYTES + 1)))
    assert "must be a list" in error_of(f"--tracking.tags={'[' * 50_000}")


def test_settings_of_a_file_keep_their_order_and_origin(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {epochs: 2}\nrun:\n  seed: 3\n")
    found = [(setting.key, setting.value, setting.origin) for setting in read_yaml(path)]
    assert found == [("train.epochs", "2", f"{path}:1"), ("run.seed", "3", f"{path}:3")]


YAML_WORDS = [
    *SECTIONS,
    *(key.split(".")[1] for key in FIELDS),
    "null",
    "no",
    "1e-3",
    "-1",
    "[a, b]",
    "*a",
    "&a",
    "!!x",
]
ALMOST_YAML = st.lists(st.sampled_from([*YAML_WORDS, ": ", "\n", "\n  ", "{", "}", ", ", "- ", "'", "#"])).map("".join)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.text(), ALMOST_YAML, st.binary()))
@example("run: {dir: '\ud7ff'}")
@example("run: {seed: =}")
@example("'\\ud800': {seed: 1}")
def test_any_file_gives_a_configuration_or_one_line(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = config_or_error(f"--config={path}")
    assert isinstance(outcome, Config) or len(outcome.splitlines()) == 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FIELDS)), st.one_of(st.text(), st.sampled_from(YAML_WORDS)))
def test_any_value_gives_a_configuration_or_one_line(key: str, value: str) -> None:
    outcome = config_or_error(f"--{key}={value}")
    if isinstance(outcome, str):
        assert len(outcome.splitlines()) == 1
        return
    section, _, name = key.partition(".")
    plain = {"array": tuple, "integer": int, "number": float, "boolean": bool, "string": str}
    assert type(getattr(getattr(outcome, section), name)) is plain[field_schema(key)["type"]]


# Settings together


def test_batch_that_processes_do_not_divide_is_refused_with_those_that_would_work(yaml_file: Any) -> None:
    assert error_of("--train.accumulate=2", world_size=3) == (
        "train.batch_size=256 (default): cannot be divided by 3 processes x train.accumulate=2 (command line); "
        "252 or 258 would work"
    )
    argument = yaml_file("train: {batch_size: 2}")
    file = argument.removeprefix("--config=")
    assert error_of(argument, world_size=4) == (
        f"train.batch_size=2 ({file}:1): cannot be divided by 4 processes x train.accumulate=1 (default); 4 would work"
    )
    assert load(["--train.batch_size=252", "--train.accumulate=2"], world_size=3)


def test_half_precision_on_the_cpu_is_refused() -> None:
    assert error_of("--train.precision=fp16", "--run.device=cpu") == (
        "train.precision=fp16 (command line): needs a GPU, but run.device=cpu (command line); use bf16 or no"
    )
    assert load(["--train.precision=bf16", "--run.device=cpu"])


def test_two_ways_to_choose_training_images_are_refused() -> None:
    message = error_of("--train.overfit_batches=1", "--data.limit=9")
    assert message.startswith("train.overfit_batches=1 (command line) and data.limit=9 (command line) both choose")


@pytest.mark.parametrize(
    ("name", "names", "wrong"),
    [
        ("mnist", "a,b", "must be 10 different names, one for each label; data.name=idx takes any number of classes"),
        ("mnist", "0,1,2,3,4,5,6,7,8,8", "must be 10 different names, one for each label"),
        ("emnist-letters", "a,b", "must be 26 different names, one for each label; data.name=idx takes any number of"),
        ("idx", "a", "must be 2 to 1000 different names, one for each label"),
        ("idx", "a,b,a", "must be 2 to 1000 different names, one for each label"),
        ("idx", ",".join(map(str, range(1001))), "must be 2 to 1000 different names, one for each label"),
    ],
)
def test_class_names_must_be_different_and_one_for_each_label(name: str, names: str, wrong: str) -> None:
    assert wrong in error_of(f"--data.name={name}", "--data.root=data", f"--data.classes={names}")


def test_a_set_of_ones_own_needs_its_folder() -> None:
    message = error_of("--data.name=idx")
    assert message == "data.name=idx (command line): needs the folder with the files; name it with --data.root=DIR"
    assert load(["--data.name=idx", "--data.root=data", "--data.classes=cat,dog"]).config.data.class_names == (
        "cat",
        "dog",
    )
    assert error_of("--data.name=fashion-mnist").endswith("; use fashion")


@pytest.mark.parametrize(
    ("arguments", "processes", "lines"),
    [
        (["--train.batch_size=55000", "--data.test_limit=10000", "--run.threads=4"], 2, []),
        (
            ["--train.batch_size=100000"],
            1,
            ["train.batch_size=100000: there are 55000 training images; each epoch is one step on all"],
        ),
        (["--data.limit=70000"], 1, ["data.limit=70000: there are 55000 training images; all are used"]),
        (
            ["--train.overfit_batches=500"],
            1,
            ["train.overfit_batches=500: there are 55000 training images; all are used"],
        ),
        (["--data.test_limit=70000"], 1, ["data.test_limit=70000: there are 10000 test images; all are used"]),
        (
            ["--run.threads=100"],
            1,
            ["run.threads=100: this machine has 8 CPUs; threads that share one slow training"],
        ),
        (
            ["--run.threads=5"],
            2,
            ["run.threads=5 in each of 2 processes: this machine has 8 CPUs; threads that share one slow training"],
        ),
        (["--data.no_aug_epochs=5"], 1, []),  # of 6
        (["--data.no_aug_epochs=6"], 1, ["data.no_aug_epochs=6: there are 6 epochs; no image is augmented"]),
        (
            ["--data.no_aug_epochs=2", "--train.epochs=1"],
            1,
            ["data.no_aug_epochs=2: there is 1 epoch; no image is augmented"],
        ),
    ],
)
def test_settings_that_ask_for_more_than_there_is_cost_a_line(
    arguments: list[str], processes: int, lines: list[str]
) -> None:
    config = load(arguments).config
    assert describe_excess(config, train=55_000, test=10_000, processes=processes, cpus=8) == lines


# Printing


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], []),
        (["--train.patience=5"], []),
        (
            ["--train.patience=6"],
            ["train.patience=6: the held-out set is evaluated 6 times in 60 steps"],
        ),
        (["--train.patience=6", "--train.eval_steps=9"], []),
        (
            ["--train.patience=1", "--train.max_steps=9"],
            ["train.patience=1: the held-out set is evaluated 0 times"],
        ),
        (
            ["--train.target_accuracy=0.9", "--train.patience=2", "--data.val_size=0"],
            ["train.patience=2 and train.target_accuracy=0.9: data.val_size=0, so the test set decides"],
        ),
    ],
)
def test_early_stopping_that_does_other_than_expected_is_named(arguments: list[str], found: list[str]) -> None:
    config = load(arguments).config
    lines = describe_early_stopping(config, 10, config.train.max_steps or 60)
    assert [line[: len(start)] for line, start in zip(lines, found, strict=True)] == found


def test_printed_configuration_reads_back_the_same(yaml_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(["--run.dir=null", "--tracking.tags=[no, '5', 'a, b']", "--optim.lr=1e-7", "--print_config"])
    assert loaded.print_config
    print_config(loaded.config)
    assert load([yaml_file(capsys.readouterr().out)]).config == loaded.config


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example("", [], 0.0, [*"012345678", "$0"])
@given(
    PLAIN_TEXT,
    st.lists(PLAIN_TEXT),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(PLAIN_TEXT, min_size=10, max_size=10, unique=True),
)
def test_any_configuration_reads_back_the_same(
    tmp_path: Path, folder: str, tags: list[str], mean: float, classes: list[str]
) -> None:
    config = Config(
        run=RunConfig(dir=folder),
        data=DataConfig(mean=mean, classes=tuple(classes)),
        tracking=TrackingConfig(tags=tuple(tags)),
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load([f"--config={path}"]).config == config


def test_every_shipped_recipe_loads_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "default" in list_recipes()
    for name in list_recipes():
        assert load([f"--config={name}"]).recipes == (name.split("/")[-1],)
        assert not name.startswith(".")
    files = {path for path in recipes_folder().rglob("*") if path.is_file()}
    assert {path.name for path in files if path.suffix != ".yaml"} == {"schema.json"}


def test_default_recipe_is_the_defaults() -> None:
    assert load(["--config=default"]).config == Config()


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        load(["--run.seed=1", "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_documents_every_setting(help_text: str) -> None:
    text = " ".join(help_text.split())
    for section, kind in SECTIONS.items():
        assert f"{section}: {kind.__doc__}" in text
    for key, field in FIELDS.items():
        meaning = " ".join((field.description or "").split())
        assert meaning[-1] in ".)", key
        assert f"--{key}{'.NAME' if key == 'model.args' else ''}=" in text
        assert f") {meaning} " in text, key


def test_help_tells_types_ranges_choices_and_defaults(help_text: str) -> None:
    text = " ".join(help_text.split())
    assert "--run.seed=INT (at least 0 and below 2147483648; default: 0) " in text
    assert "--run.dir=TEXT (default: empty) " in text
    assert "--data.drop_last=true|false (default: false) " in text
    assert "--optim.betas=FLOAT,FLOAT (each at least 0 and below 1; default: 0.9,0.999) " in text
    assert "--tracking.share=console|code|system,... (default: empty) " in text
    for key in FIELDS:
        schema = field_schema(key)
        _, _, after = text.partition(f"--{key}=")
        option, _, _ = after.partition(") ")
        assert describe_range(schema) in option
        assert "|".join(item_schema(schema).get("enum", [])) in option.replace("| ", "|")


def test_help_fits_80_columns(help_text: str) -> None:
    assert [line for line in help_text.splitlines() if len(line) > 80] == []


def test_examples_of_the_help_parse(help_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net.py").write_text("def build(): ...\n")
    monkeypatch.chdir(tmp_path)
    examples = help_text.partition("examples:\n")[2].splitlines()
    assert len(examples) >= 3
    for line in examples:
        words = shlex.split(line)
        assert load(words[words.index("mnist_dist.train") + 1 :]).config != Config()


def test_configuration_imports_neither_torch_nor_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from mnist_dist.config.loader import load; load(['--optim.lr=1', '--config=default']); "
        "sys.exit(bool({'torch', 'wandb', 'accelerate', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


# Shards


@pytest.mark.parametrize(
    ("arguments", "world_size", "said"),
    [
        (
            ["--train.shards=4"],
            3,
            "train.shards=4 (command line): cannot be divided by 3 processes; 3 or 6 or 0 would work",
        ),
        (["--train.shards=1"], 2, "train.shards=1 (command line): cannot be divided by 2 processes; 2 or 0 would work"),
        (
            ["--train.shards=7"],
            1,
            "train.batch_size=256 (default): cannot be divided by train.shards=7 (command line) x "
            "train.accumulate=1 (default); 252 or 259 would work",
        ),
        (
            ["--train.shards=4", "--train.accumulate=3"],
            2,
            "train.batch_size=256 (default): cannot be divided by train.shards=4 (command line) x "
            "train.accumulate=3 (command line); 252 or 264 would work",
        ),
        (["--train.shards=-2"], 1, "train.shards=-2 (command line): must be at least -1"),
        (
            ["--train.shards=4", "--train.compile=default"],
            2,
            "train.compile=default (command line): not with train.shards=4 (command line); use --train.shards=0",
        ),
        (
            ["--train.compile=reduce-overhead", "--train.accumulate=2"],
            1,
            "train.compile=reduce-overhead (command line): each pass overwrites the results of the one before, so not "
            "with train.accumulate=2 (command line); set that to 1, or use --train.compile=default",
        ),
        (
            ["--train.shards=4", "--train.compress=bf16"],
            2,
            "train.shards=4 (command line) and train.compress=bf16 (command line) exclude each other: fixed shards "
            "give the same bits at any number of processes, compressed gradients do not; use train.shards=0 or "
            "train.compress=no",
        ),
    ],
)
def test_shards_that_cannot_be_are_refused(arguments: list[str], world_size: int, said: str) -> None:
    with pytest.raises(UserError) as error:
        load(arguments, world_size)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("arguments", "world_size", "on_cpu", "shards"),
    [
        ([], 1, True, 4),
        ([], 4, True, 4),
        ([], 8, True, 0),
        ([], 1, False, 0),
        (["--config=debug"], 2, True, 0),  # 50 images a batch
        (["--train.accumulate=128"], 1, True, 0),
        (["--train.shards=0"], 1, True, 0),
        (["--train.shards=8"], 8, False, 8),
        (["--train.compile=default"], 1, True, 0),
        (["--train.compress=fp16"], 1, True, 0),
        (["--train.compress=bf16", "--train.shards=0"], 2, True, 0),
    ],
)
def test_shards_are_decided_by_device_and_processes(
    arguments: list[str], world_size: int, on_cpu: bool, shards: int
) -> None:
    assert load(arguments, world_size).config.shards(world_size, on_cpu) == shards

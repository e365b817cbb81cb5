"""Read a run's configuration: defaults < YAML files, left to right < `--section.key=value`.

Each setting is checked on its own, so that an error names the key, where it came from and what would work.
Neither this module nor what it imports may import torch: help and errors must come at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from mnist_dist.config import FIELDS, SECTIONS, Config, check_range, check_together
from mnist_dist.errors import UserError

COMMAND_LINE = "command line"
TYPES = {f"{s}.{k}": hint for s, kind in SECTIONS.items() for k, hint in get_type_hints(kind).items()}
MAX_YAML_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value that somebody gave: its dotted key, the value as read, and where it stands."""

    key: str
    value: Any
    origin: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checked configuration, the names of the recipes it was made of, and what the command line asked for."""

    config: Config
    recipes: tuple[str, ...]
    print_config: bool


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def list_recipes() -> list[str]:
    """Names that `--config` knows, such as `debug` and `seeds/cnn`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def load(arguments: Sequence[str], world_size: int = 1) -> Loaded:
    """The configuration that the arguments of `mnist_dist.train` ask for.

    Args:
        arguments: what follows the program's name.
        world_size: number of processes, which the global batch must divide into.

    Raises:
        UserError: one line that names the key, its origin and the values that would work.
        SystemExit: 0, after printing the help.
    """
    parser = build_parser()
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        raise SystemExit(0)
    recipes, settings, print_config = read_command_line(arguments)
    files = [find_recipe(recipe) for recipe in recipes]
    settings = [setting for path in files for setting in read_yaml(path)] + settings
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for setting in settings:
        section, _, key = setting.key.partition(".")
        values[section][key] = parse_value(parser, setting)
    config = Config(**{section: kind(**values[section]) for section, kind in SECTIONS.items()})
    check_together(config, world_size, {setting.key: setting.origin for setting in settings})
    return Loaded(config, tuple(path.stem for path in files), print_config)


def build_parser() -> ArgumentParser:
    """The parser that knows every field's type and prints the help."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m mnist_dist.train",
        description="Train a network on MNIST, on one process or many: the launcher decides.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="NAME|PATH", help=f"a recipe or YAML file; {', '.join(list_recipes())}")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration as YAML and stop")
    for section, kind in SECTIONS.items():
        parser.add_class_arguments(kind, section)
    return parser


def read_command_line(arguments: Sequence[str]) -> tuple[list[str], list[Setting], bool]:
    """Split the arguments into recipes, settings, and whether to print the configuration."""
    recipes: list[str] = []
    settings: list[Setting] = []
    print_config = False
    queue = list(arguments)
    while queue:
        option, equals, value = queue.pop(0).partition("=")
        if option == "--print_config" and not equals:
            print_config = True
            continue
        key = option.removeprefix("--")
        if not option.startswith("--") or not key:
            raise UserError(f"{option!r} ({COMMAND_LINE}) is not an option; settings are given as --section.key=value")
        if key != "config":
            check_key(key, COMMAND_LINE)
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"--{key} ({COMMAND_LINE}) needs a value: --{key}=VALUE")
            value = queue.pop(0)
        if key == "config":
            recipes.append(value)
        else:
            settings.append(Setting(key, value, COMMAND_LINE))
    return recipes, settings, print_config


def find_recipe(name: str) -> Path:
    """The file that `--config NAME|PATH` means: a shipped recipe's name, else a path."""
    shipped = recipes_folder() / f"{name}.yaml"
    if name in list_recipes():
        return shipped
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.is_dir():
        raise UserError(f"--config={name}: {'is a folder, not a YAML file' if path.is_dir() else 'no such file'}")
    hint = suggest(name, list_recipes())
    raise UserError(f"--config={name}: neither a recipe nor a file{hint}; recipes: {', '.join(list_recipes())}")


def read_yaml(path: Path) -> list[Setting]:
    """The settings of one YAML file in order, each with its file and line.

    Raises:
        UserError: unreadable, not YAML, a key twice, or an unknown key.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path}: larger than {MAX_YAML_BYTES} bytes; a configuration is a few lines")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if root is None:
        return []
    settings = []
    seen: dict[str, str] = {}
    for section, section_origin, node in entries(root, str(path), "sections (run, data, model, ...)"):
        if section not in SECTIONS:
            hint = suggest(section, SECTIONS)
            raise UserError(f"{section} ({section_origin}): unknown section{hint}; sections: {', '.join(SECTIONS)}")
        if is_null(node):
            continue
        for field, origin, value in entries(node, section_origin, f"the settings of {section}"):
            key = f"{section}.{field}"
            check_key(key, origin)
            if key in seen:
                raise UserError(f"{key} ({origin}): given twice, first in {seen[key]}")
            seen[key] = origin
            settings.append(Setting(key, construct(value, key, origin), origin))
    return settings


def entries(node: yaml.Node, origin: str, what: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """Key, origin and value node of each entry of a YAML mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{origin}: must be a mapping of {what}")
    for key, value in node.value:
        file = origin.rsplit(":", 1)[0] if origin.rsplit(":", 1)[-1].isdigit() else origin
        yield str(key.value), f"{file}:{key.start_mark.line + 1}", value


def is_null(node: yaml.Node) -> bool:
    """Whether a YAML node is empty or null."""
    return node.tag == "tag:yaml.org,2002:null"


def construct(node: yaml.Node, key: str, origin: str) -> Any:
    """The plain value of a YAML node: a scalar, or a list of scalars."""
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [construct(item, key, origin) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{key} ({origin}): must be one value or a flat list of values")
    if TYPES[key] not in (int, float, bool):
        return node.value  # as written: YAML 1.1 takes a plain `no` for false, and 007 for a number
    try:
        # YAML 1.1 also takes 1e-3 for text; jsonargparse then reads it as the number everybody means.
        return yaml.safe_load(node.value) if node.tag != "tag:yaml.org,2002:str" else node.value
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{key} ({origin}): {str(error).splitlines()[0]}") from None


def check_key(key: str, origin: str) -> None:
    """Raise UserError, with a suggestion, unless `key` is a setting's full name."""
    if key in FIELDS:
        return
    section = key.partition(".")[0]
    if section in SECTIONS and "." not in key:
        raise UserError(f"{key} ({origin}): is a section; give one of its settings, as in --{key}.{first(section)}=...")
    hint = suggest(key, FIELDS)
    known = f"; settings of {section}: {', '.join(k.split('.')[1] for k in TYPES if k.startswith(f'{section}.'))}"
    raise UserError(f"{key} ({origin}): unknown setting{hint}{known if section in SECTIONS and not hint else ''}")


def first(section: str) -> str:
    """A section's first field, as an example."""
    return dataclasses.fields(SECTIONS[section])[0].name


def suggest(name: str, known: Any) -> str:
    """`; did you mean X?`, or nothing where nothing is near."""
    leaf_matches = [key for key in known if "." in key and key.split(".")[1] == name.split(".")[-1]]
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7) or leaf_matches[:1]
    return f"; did you mean {matches[0]}?" if matches else ""


def parse_value(parser: ArgumentParser, setting: Setting) -> Any:
    """The setting's value in its field's type, within its range."""
    key, value = setting.key, setting.value
    section, _, field = key.partition(".")
    wrong: str | None
    try:
        if setting.origin == COMMAND_LINE:
            parsed = parser.parse_args([f"--{key}={value}"])
        else:
            parsed = parser.parse_object({section: {field: value}})
        result = getattr(getattr(parsed, section), field)
        wrong = check_range(key, result)
    except (ArgumentError, TypeError, ValueError):
        wrong = f"must be {describe(TYPES[key])}"
    if wrong:
        shown = value if len(str(value)) <= 80 else f"{str(value)[:77]}..."
        options = get_args(TYPES[key]) if get_origin(TYPES[key]) is Literal else ()
        raise UserError(f"{key}={shown} ({setting.origin}): {wrong}{suggest(str(value), options)}")
    return result


def describe(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        many = "a list" if rest == [Ellipsis] else f"a list of {len(rest) + 1}"
        plural = {str: "texts", float: "numbers"}[item]
        return f"{many} {plural}, as in [{'a,b' if item is str else '0.9,0.99'}]".replace("list texts", "list of texts")
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def dump(config: Config) -> str:
    """The configuration as YAML that `--config` reads back to the same configuration."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def print_config(config: Config) -> None:
    """Write the configuration to standard output."""
    sys.stdout.write(dump(config))

"""The files of settings: shipped recipes, and how one YAML file becomes a list of settings as they were written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnist_dist.config.schema import FIELDS, SECTIONS
from mnist_dist.utils.errors import UserError

SWEEPS = "sweeps"  # the folder of shipped sweeps among the recipes
MAX_YAML_BYTES = 1 << 16
PLAIN = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "seq", "map")
YAML_TAGS = {f"tag:yaml.org,2002:{name}" for name in PLAIN}


@dataclass(frozen=True)
class Setting:
    """One value that somebody gave: its dotted key, the text (or list of texts) as written, and where it stands."""

    key: str
    value: str | list[str]
    origin: str


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parents[1] / "configs"


def list_recipes() -> list[str]:
    """Names that `--config` knows, such as `debug` and `seeds/cnn`."""
    return [name for name in list_shipped(recipes_folder()) if not name.startswith(f"{SWEEPS}/")]


def list_sweeps() -> list[str]:
    """Names that `mnist-dist sweep` knows."""
    return list_shipped(recipes_folder() / SWEEPS)


def list_shipped(folder: Path) -> list[str]:
    """The YAML files in a folder and below, as names without their ending."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file that `--config NAME|PATH` means: a shipped recipe's name, else a path."""
    return find_shipped(name, recipes_folder(), list_recipes(), "recipe", "--config=")


def find_sweep(name: str) -> Path:
    """The file that `mnist-dist sweep NAME|PATH` means: a shipped sweep's name, else a path."""
    return find_shipped(name, recipes_folder() / SWEEPS, list_sweeps(), "sweep", "sweep ")


def find_shipped(name: str, folder: Path, names: list[str], kind: str, option: str) -> Path:
    """The file of a shipped name, else the file at a path. Raises UserError, in which the option stands first."""
    if name in names:
        return folder / f"{name}.yaml"
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the home of ~nobody
        raise UserError(f"{option}{shown(name)}: {getattr(error, 'strerror', None) or error}") from None
    if is_folder or path.suffix in (".yaml", ".yml"):
        raise UserError(f"{option}{shown(name)}: {'is a folder, not a YAML file' if is_folder else 'no such file'}")
    hint = suggest(name, names)
    raise UserError(f"{option}{shown(name)}: neither a {kind} nor a file{hint}; {kind}s: {', '.join(names)}")


def read_yaml(path: Path) -> list[Setting]:
    """The settings of one YAML file in order, each with its file and line. No object is ever built from a tag.

    Raises:
        UserError: unreadable, not YAML, a key twice, an unknown key, or a value that is no text or list of texts.
    """
    root, _ = compose(path)
    if root is None or is_null(root):
        return []
    settings: dict[str, Setting] = {}
    for section, section_origin, node in entries(root, path, "sections (run, data, model, ...)"):
        if section not in SECTIONS:
            hint = suggest(section, [*SECTIONS, *FIELDS])
            raise UserError(f"{section} ({section_origin}): unknown section{hint}; sections: {', '.join(SECTIONS)}")
        if is_null(node):
            continue
        for field, origin, value in entries(node, path, f"the settings of {section}"):
            key = f"{section}.{field}"
            check_key(key, origin)
            if key in settings:
                raise UserError(f"{key} ({origin}): given twice, first in {settings[key].origin}")
            settings[key] = Setting(key, as_written(value, key, origin), origin)
    return list(settings.values())


def compose(path: Path, build: bool = False) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML file's nodes, and what YAML makes of it if that is to be built (of plain types only).

    Raises:
        UserError: unreadable, too large, not YAML, or a tag that would build an object.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path}: larger than {MAX_YAML_BYTES} bytes; a configuration is a few lines")
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        return root, loader.construct_document(root) if build and root else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({getattr(error, 'strerror', None) or error})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: not valid YAML ({problem})") from None


def entries(node: yaml.Node, path: Path, what: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """Key, origin and value node of each entry of a YAML mapping."""
    if not isinstance(node, yaml.MappingNode) or node.tag not in YAML_TAGS:
        raise UserError(f"{path}:{node.start_mark.line + 1}: must be a mapping of {what}")
    for key, value in node.value:
        origin = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{origin}: a key must be one word; this must be a mapping of {what}")
        yield shown(key.value), origin, value


def is_null(node: yaml.Node) -> bool:
    """Whether a YAML node is empty or null."""
    return node.tag == "tag:yaml.org,2002:null"


def as_written(node: yaml.Node, key: str, origin: str) -> str | list[str]:
    """The text of a YAML scalar, or the texts of a flat list of them.

    As written, so that `no`, `007`, `1e-3` and `1:30` mean what they say and not what YAML 1.1 makes of them; the
    field's type decides later.
    """
    if isinstance(node, yaml.SequenceNode) and node.tag in YAML_TAGS:
        return [text_of(item, key, origin) for item in node.value]
    return text_of(node, key, origin)


def text_of(node: yaml.Node, key: str, origin: str) -> str:
    """The text of a YAML scalar."""
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{key} ({origin}): must be one value or a flat list of values")
    if is_null(node):
        raise UserError(f"{key} ({origin}): has no value; give one, or leave the line out")
    if node.tag not in YAML_TAGS:
        raise UserError(f"{key} ({origin}): has the tag {shown(node.tag)}; write a plain value")
    return str(node.value)


def check_key(key: str, origin: str) -> None:
    """Raise UserError, with a suggestion, unless `key` is a setting's full name."""
    if key in FIELDS:
        return
    section, dot, _ = key.partition(".")
    names = list(SECTIONS[section].model_fields) if section in SECTIONS else []
    if names and not dot:
        raise UserError(f"{key} ({origin}): is a section; give one of its settings, as in --{key}.{names[0]}=...")
    hint = suggest(key, FIELDS) or (f"; settings of {section}: {', '.join(names)}" if names else "")
    raise UserError(f"{shown(key)} ({origin}): unknown setting{hint}")


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is near."""
    known = list(known)
    leaf_matches = [key for key in known if "." in key and key.split(".")[1] == name.split(".")[-1]]
    matches = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.7) or leaf_matches[:1]
    return f"; did you mean {matches[0]}?" if matches else ""


def shown(value: str | list[str]) -> str:
    """A value as an error shows it: on one line, not too long."""
    text = value if isinstance(value, str) else f"[{', '.join(value)}]"
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:81])
    return text if len(text) <= 80 else f"{text[:77]}..."

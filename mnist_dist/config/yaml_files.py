"""YAML files of settings: the shipped recipes, and a reader that keeps each value's text, file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnist_dist.config.hints import describe_foreign_file, hint_for_launch_file, hint_for_option, suggest
from mnist_dist.config.model_names import ARGUMENTS
from mnist_dist.config.schema import SECTIONS
from mnist_dist.config.validation import check_key, shown
from mnist_dist.utils.errors import UserError

SWEEPS = "sweeps"  # folder of the shipped sweeps, inside that of the recipes
MAX_YAML_BYTES = 1 << 16
PLAIN_TAGS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "seq", "map")
YAML_TAGS = {f"tag:yaml.org,2002:{name}" for name in PLAIN_TAGS}
"""Tags of plain values, explicit (`!!str 5`) or implied; every other tag is refused."""


@dataclass(frozen=True)
class Setting:
    """A setting that was given: its key such as `optim.lr`, its text or list of texts, and where it was given."""

    key: str
    value: str | list[str]
    origin: str


def recipes_folder() -> Path:
    """Folder of the shipped recipes: inside the package if installed from a wheel, `configs/` in a checkout."""
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parents[1] / "configs"


def list_recipes() -> list[str]:
    """Names of the shipped recipes, such as `debug` and `seeds/cnn`."""
    return [name for name in list_shipped(recipes_folder()) if not name.startswith(f"{SWEEPS}/")]


def list_sweeps() -> list[str]:
    """Names of the shipped sweeps."""
    return list_shipped(recipes_folder() / SWEEPS)


def list_shipped(folder: Path) -> list[str]:
    """Names of the YAML files in a folder and its subfolders: relative paths without `.yaml`."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file that `--config NAME|PATH` means: a shipped recipe's name, else a path."""
    return find_shipped(name, recipes_folder(), list_recipes(), "recipe", "--config=")


def find_sweep(name: str) -> Path:
    """The file that `mnist-dist sweep NAME|PATH` means: a shipped sweep's name, else a path."""
    return find_shipped(name, recipes_folder() / SWEEPS, list_sweeps(), "sweep", "sweep ")


def find_shipped(name: str, folder: Path, names: list[str], kind: str, option: str) -> Path:
    """The file of a shipped name, otherwise the file at a path.

    Args:
        kind: what it is called in errors, such as `recipe`.
        option: what errors begin with, such as `--config=`.

    Raises:
        UserError: there is neither.
    """
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
        hint = "" if is_folder else hint_for_launch_file(name) or suggest_shipped(path, names, option)
        what = "is a folder, not a YAML file" if is_folder else "no such file"
        raise UserError(f"{option}{shown(name)}: {what}{hint}")
    hint = hint_for_launch_file(name) or suggest(name, names)
    raise UserError(f"{option}{shown(name)}: neither a {kind} nor a file{hint}; {kind}s: {', '.join(names)}")


def suggest_shipped(path: Path, names: list[str], option: str) -> str:
    """`; did you mean --config=debug?` for a path such as `debug.yaml` or `configs/debug.yaml`, else empty."""
    written = path.with_suffix("").as_posix()
    match = next((name for name in names if f"/{written}".endswith(f"/{name}")), "")
    return f"; did you mean {option}{match}?" if match else ""


def read_yaml(path: Path) -> list[Setting]:
    """Read the settings of a YAML file, in order: `optim: {lr: 0.1}` or `optim.lr: 0.1`. Builds no object from a tag.

    Raises:
        UserError: unreadable, not YAML, an unknown key, a key given twice, or a value that is not a scalar or a flat
            list of scalars.
    """
    root, _ = compose(path)
    if root is None or is_null(root):
        return []
    settings: dict[str, Setting] = {}
    sections: dict[str, str] = {}
    for name, origin, node in entries(root, path, "sections (run, data, model, ...)"):
        if name in SECTIONS:
            if name in sections:
                raise UserError(f"{name} ({origin}): section given twice, first in {sections[name]}; make them one")
            sections[name] = origin
            found = [] if is_null(node) else entries(node, path, f"the settings of {name}")
            nodes = [(f"{name}.{field}", field_origin, value) for field, field_origin, value in found]
        elif "." in name:
            nodes = [(name, origin, node)]
        else:
            raise unknown_section(name, origin, path, [key for key, _, _ in entries(root, path, "")])
        for key, key_origin, value in (entry for node in nodes for entry in arguments_of(*node, path)):
            check_key(key, key_origin)
            if key in settings:
                raise UserError(f"{key} ({key_origin}): given twice, first in {settings[key].origin}")
            settings[key] = Setting(key, as_written(value, key, key_origin), key_origin)
    return list(settings.values())


def arguments_of(key: str, origin: str, node: yaml.Node, path: Path) -> Iterator[tuple[str, str, yaml.Node]]:
    """A setting with its origin and value; of the mapping `model.args` instead each of its entries."""
    if key != ARGUMENTS:
        yield key, origin, node
    elif not is_null(node):
        yield from ((f"{key}.{n}", place, value) for n, place, value in entries(node, path, "the model's arguments"))


def unknown_section(name: str, origin: str, path: Path, keys: list[str]) -> UserError:
    """The error for a top-level key that is no section.

    Args:
        keys: all top-level keys, by which a file of another program is recognised.
    """
    if foreign := describe_foreign_file(keys):
        return UserError(f"--config={path}: {foreign} {path}")
    hint = suggest(name, SECTIONS) or hint_for_option(name)
    return UserError(f"{name} ({origin}): unknown section{hint}; sections: {', '.join(SECTIONS)}")


def compose(path: Path, build: bool = False) -> tuple[yaml.Node | None, Any]:
    """Parse a YAML file.

    Args:
        build: also convert the file to Python values by the rules of YAML 1.1, of plain types only.

    Returns:
        The root node, None for an empty file; and the values if `build`, otherwise None.

    Raises:
        UserError: unreadable, larger than `MAX_YAML_BYTES`, not YAML, or a tag that would build an object.
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
    """Yield key, origin (`file:line`) and value node of each entry of a YAML mapping.

    Args:
        what: what the mapping should hold, for the error.

    Raises:
        UserError: the node is not a mapping, or a key is not a scalar.
    """
    if not isinstance(node, yaml.MappingNode) or node.tag not in YAML_TAGS:
        raise UserError(f"{path}:{node.start_mark.line + 1}: must be a mapping of {what}")
    for key, value in node.value:
        origin = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{origin}: a key must be one word; this must be a mapping of {what}")
        yield shown(key.value), origin, value


def is_null(node: yaml.Node) -> bool:
    """Whether a YAML node is null, which an empty one is too."""
    return node.tag == "tag:yaml.org,2002:null"


def as_written(node: yaml.Node, key: str, origin: str) -> str | list[str]:
    """The text of a YAML scalar, or the texts of a flat list of scalars, for the field's type to convert later.

    YAML 1.1 itself would turn `no` into false, `1:30` into 90, `010` into 8, and `1e-3` into a string.

    Raises:
        UserError: nested, null, or with a tag that is not plain.
    """
    if isinstance(node, yaml.SequenceNode) and node.tag in YAML_TAGS:
        return [text_of(item, key, origin) for item in node.value]
    return text_of(node, key, origin)


def text_of(node: yaml.Node, key: str, origin: str) -> str:
    """The text of a YAML scalar. Raises UserError as `as_written` does."""
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{key} ({origin}): must be one value or a flat list of values")
    if is_null(node):
        raise UserError(f"{key} ({origin}): has no value; give one, or leave the line out")
    if node.tag not in YAML_TAGS:
        raise UserError(f"{key} ({origin}): has the tag {shown(node.tag)}; write a plain value")
    if node.style and key.startswith(f"{ARGUMENTS}."):  # it has no type of its own, so the quotes say that it is a text
        return json.dumps(node.value, ensure_ascii=False)
    return str(node.value)

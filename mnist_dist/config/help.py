"""The text of `python -m mnist_dist.train --help`: every setting with its meaning, type, range and default."""

from __future__ import annotations

import shutil
from textwrap import fill
from typing import Any

from mnist_dist.config.schema import SECTIONS
from mnist_dist.config.values import describe_range, field_schema, item_schema
from mnist_dist.config.yaml_files import list_recipes

MIN_WIDTH, MAX_WIDTH = 40, 100
TYPES = {"integer": "INT", "number": "FLOAT", "boolean": "true|false", "string": "TEXT"}

USAGE = "usage: python -m mnist_dist.train [--config NAME|PATH]... [--section.key=VALUE]..."
ABOUT = """\
Train a network on MNIST, in one process or in those of a launcher (accelerate launch, torchrun, srun, mpirun).
Values come from the defaults, then from each --config, then from each --section.key=VALUE; the last one wins. A list is
written a,b or [a, b].
"""
EXAMPLES = """\
examples:
  python -m mnist_dist.train --config debug
  accelerate launch -m mnist_dist.train --config speed99 --run.dir=runs/speed99
  torchrun --nproc_per_node 2 -m mnist_dist.train --optim.lr=1e-3
  python -m mnist_dist.train --optim.betas=0.9,0.99 --tracking.tags=first,try
  python -m mnist_dist.train --data.name=fashion --data.root=data
  python -m mnist_dist.train --config strong --run.seed=1 --print_config
"""


def format_help() -> str:
    """The help, as wide as the terminal within `MIN_WIDTH` and `MAX_WIDTH`."""
    width = min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)
    recipes = f"Read a shipped recipe or a YAML file; may be repeated. Recipes: {', '.join(list_recipes())}."
    lines = [
        wrap(USAGE, width, 0, 7),
        "",
        wrap(ABOUT, width, 0),
        "\noptions:",
        *("  -h, --help", wrap("Print this help and exit.", width, 6)),
        *("  --config=NAME|PATH", wrap(recipes, width, 6)),
        *("  --print_config", wrap("Print the resulting configuration as YAML and exit.", width, 6)),
    ]
    for section, kind in SECTIONS.items():
        lines += ["", wrap(f"{section}: {kind.__doc__}", width, 0)]
        lines += [format_field(f"{section}.{name}", width) for name in kind.model_fields]
    return "\n".join([*lines, "", EXAMPLES])


def format_field(key: str, width: int) -> str:
    """A setting: its option with type, range and default on one line, its meaning below."""
    schema = field_schema(key)
    limits = describe_range(schema)
    facts = f"{'each ' if limits and schema['type'] == 'array' else ''}{limits}; " if limits else ""
    option = f"--{key}={describe_value(schema)} ({facts}default: {format_default(schema['default'])})"
    return f"{wrap(option, width, 2, 6)}\n{wrap(schema['description'], width, 6)}"


def describe_value(schema: dict[str, Any]) -> str:
    """Placeholder of an option's value, such as `INT`, `auto|cpu` or `TEXT,...`."""
    item = item_schema(schema)
    value = "|".join(item["enum"]) if "enum" in item else TYPES[item["type"]]
    if schema["type"] != "array":
        return value
    return ",".join([value] * len(schema["prefixItems"])) if "prefixItems" in schema else f"{value},..."


def format_default(value: Any) -> str:
    """A default as it would be given on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "empty"
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"


def wrap(text: str, width: int, indent: int, next_indent: int | None = None) -> str:
    """A paragraph of indented lines of at most `width` columns; words with hyphens are kept whole."""
    if max(map(len, text.split())) > width - indent:
        text = text.replace("|", "| ")  # a long list of choices
    first, later = " " * indent, " " * (indent if next_indent is None else next_indent)
    collapsed = " ".join(text.split())
    return fill(
        collapsed, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )

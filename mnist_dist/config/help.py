"""The text of `python -m mnist_dist.train --help`: every setting with its meaning, type, range and default."""

from __future__ import annotations

from typing import Any

from mnist_dist.config.schema import SECTIONS
from mnist_dist.config.values import CODE_FORMS, choices_of, describe_range, field_schema, item_schema
from mnist_dist.config.yaml_files import list_recipes
from mnist_dist.utils.help_text import help_width, wrap, wrap_commands

TYPES = {"integer": "INT", "number": "FLOAT", "boolean": "true|false", "string": "TEXT", "object": "VALUE"}

USAGE = "usage: python -m mnist_dist.train [--config NAME|PATH]... [--section.key=VALUE]..."
ABOUT = """\
Train a network on MNIST, in one process or in those of a launcher (accelerate launch, torchrun, srun, mpirun).
Values come from the defaults, then from each --config, then from each --section.key=VALUE; the last one wins. A list is
written a,b or [a, b]. From Python: mnist_dist.train(mnist_dist.Config.from_recipe("debug", {"optim.lr": 0.01})).
"""
EXAMPLES = """\
examples:
  python -m mnist_dist.train --config debug
  accelerate launch -m mnist_dist.train --config speed99 --run.dir=runs/speed99
  torchrun --nproc_per_node 2 -m mnist_dist.train --optim.lr=1e-3
  python -m mnist_dist.train --optim.betas=0.9,0.99 --tracking.tags=first,try
  python -m mnist_dist.train --data.name=fashion --data.root=data
  python -m mnist_dist.train --model.name=compact --model.args.width=64
  python -m mnist_dist.train --model.name=my_net.py:build --model.args.width=64
  python -m mnist_dist.train --config strong --run.seed=1 --print_config
  python -m mnist_dist.train --tracking.also=tensorboard,mlflow --run.dir=runs/a
  python -m mnist_dist.train --run.as_processes=64 --run.device=cuda
  python -m mnist_dist.train --model.init_from=last --train.patience=2
  python -m mnist_dist.train --train.target_accuracy=0.99 --train.max_minutes=5
"""


def format_help() -> str:
    """The help, as wide as the terminal."""
    width = help_width()
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
    return "\n".join([*lines, "", wrap_commands(EXAMPLES, width)])


def format_field(key: str, width: int) -> str:
    """A setting: its option with type, range and default on one line, its meaning below."""
    schema = field_schema(key)
    limits = describe_range(schema)
    facts = f"{'each ' if limits and schema['type'] == 'array' else ''}{limits}; " if limits else ""
    name = f"{key}.NAME" if schema["type"] == "object" else key
    option = f"--{name}={describe_value(schema)} ({facts}default: {format_default(schema['default'])})"
    return f"{wrap(option, width, 2, 6)}\n{wrap(schema['description'], width, 6)}"


def describe_value(schema: dict[str, Any]) -> str:
    """Placeholder of an option's value, such as `INT`, `auto|cpu` or `TEXT,...`."""
    item = item_schema(schema)
    choices = [*choices_of(item), *(CODE_FORMS if "anyOf" in item else ())]
    value = "|".join(choices) or TYPES[item["type"]]
    if schema["type"] != "array":
        return value
    return ",".join([value] * len(schema["prefixItems"])) if "prefixItems" in schema else f"{value},..."


def format_default(value: Any) -> str:
    """A default as it would be given on the command line."""
    if isinstance(value, list | dict):
        return ",".join(map(str, value)) or "empty"
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"

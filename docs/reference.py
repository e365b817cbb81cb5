"""The reference pages of the site: every setting from the schema, every command from its own --help.

Nothing here is committed: `site_hooks` writes the pages whenever the site is built.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
from collections.abc import Iterator
from unittest import mock

from mnist_dist.__main__ import main
from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.config.help import describe_value, format_default
from mnist_dist.config.schema import SECTIONS
from mnist_dist.config.values import describe_range, field_schema

WIDTH = 90
"""Columns of the help texts: what fits beside the navigation."""
SUBCOMMAND = re.compile(r"^    (\w+) ", re.MULTILINE)


def settings_page(section: str) -> str:
    """A page in Markdown: the settings of a section, each with type, range, default and meaning."""
    kind = SECTIONS[section]
    lines = [
        f"# {section}",
        kind.__doc__ or "",
        f"On the command line `--{section}.NAME=VALUE`, in a YAML file `{section}: {{NAME: VALUE}}`. "
        "Taken from the schema when this page was built; `mnist-dist config schema` prints the same for editors.",
    ]
    return "\n\n".join([*lines, *(describe_setting(f"{section}.{name}") for name in kind.model_fields)]) + "\n"


def describe_setting(key: str) -> str:
    """One setting under a heading of its own, so that a search and a link find it."""
    schema = field_schema(key)
    value = describe_value(schema)
    limits = describe_range(schema)
    facts = [f"`{value}`" if "|" not in value else " or ".join(f"`{choice}`" for choice in value.split("|"))]
    if limits:
        facts.append(f"each {limits}" if schema["type"] == "array" else limits)
    default = format_default(schema["default"])
    facts.append(f"default: {default if default == 'empty' else f'`{default}`'}")
    return f"## `{key}`\n\n{'; '.join(facts)}\n\n{escape(schema['description'])}"


def commands_page() -> str:
    """A page in Markdown: what `mnist-dist COMMAND --help` prints, of every command and of its own commands."""
    parts = [
        "# Commands",
        "`mnist-dist COMMAND ...` is `python -m mnist_dist COMMAND ...`. What follows is the output of `--help`, taken "
        "when this page was built; that of `train` is the six pages of settings.",
        *(
            f"## {name}\n\n{escape(what[0].upper() + what[1:])}.\n\n{show_help(name)}"
            for name, what in COMMANDS.items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def show_help(name: str) -> str:
    """The help of a command in a block, and that of its subcommands, each in one of its own."""
    blocks = [f"```text\n{text.strip()}\n```" for text in help_texts(name)]
    return "\n\n".join(blocks)


def help_texts(name: str) -> Iterator[str]:
    """The help of a command, then that of each of its subcommands. Of `train`, what stands above its settings."""
    text = run_help(name)
    yield text.partition("\nrun: ")[0] if name == "train" else text
    if "COMMAND ..." in text:
        for subcommand in SUBCOMMAND.findall(text):
            yield run_help(name, subcommand)


def run_help(*words: str) -> str:
    """What a command prints when it is asked for help."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=str(WIDTH)), contextlib.redirect_stdout(out):
        with contextlib.suppress(SystemExit):
            main([*words, "--help"])
    return out.getvalue()


def escape(text: str) -> str:
    """A text in which Markdown and HTML find nothing of theirs, except code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    marks = re.compile(r"([*_\[\]])")
    return "".join(
        part if part.startswith("`") else marks.sub(r"\\\1", html.escape(part, quote=False)) for part in parts
    )

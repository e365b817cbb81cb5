"""`mnist-dist completion bash|zsh|fish`: a script that completes commands, options, settings and recipes in a shell."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec

from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.config.schema import FIELDS
from mnist_dist.config.values import field_schema, item_schema
from mnist_dist.config.yaml_files import list_recipes
from mnist_dist.utils.errors import EXIT_DONE, UserError

INSTALL = "completion needs the package shtab: pip install 'mnist_dist[completion]'"
SHELLS = ("bash", "zsh", "fish")


def main(arguments: list[str]) -> int:
    """Run `mnist-dist completion ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or shtab is not installed.
        SystemExit: 0, after printing the help.
    """
    shell = build_parser().parse_args(arguments).shell
    if find_spec("shtab") is None:
        raise UserError(INSTALL)
    import shtab

    sys.stdout.write(shtab.complete(program_parser(), shell) + "\n")
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist completion",
        description="Print a script by which a shell completes mnist-dist: commands, options, settings with their "
        "values, and recipes. It works from the next shell on.",
        examples=[
            "mnist-dist completion bash > ~/.local/share/bash-completion/completions/mnist-dist",
            "mnist-dist completion zsh > ~/.zfunc/_mnist-dist",
            "mnist-dist completion fish > ~/.config/fish/completions/mnist-dist.fish",
        ],
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")
    return parser


def program_parser() -> argparse.ArgumentParser:
    """A parser of the whole program: the parser of each command as a subcommand."""
    program = argparse.ArgumentParser(prog="mnist-dist")
    program.add_argument("--version", action="version", version="")
    commands = program.add_subparsers()
    for name, purpose in COMMANDS.items():
        parser = import_module(f"mnist_dist.commands.{name}").build_parser() if name != "train" else None
        command = commands.add_parser(name, help=purpose, parents=[parser] if parser else [], add_help=parser is None)
        if name in ("train", "doctor", "dashboard", "repeat"):
            add_settings(command)
    return program


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add --config with the shipped recipes, and every setting with its choices."""
    known = set(parser._option_string_actions)
    if "--config" not in known:
        parser.add_argument("--config", choices=list_recipes(), help="recipe, or a YAML file")
    for key in FIELDS:
        if f"--{key}" not in known:
            parser.add_argument(f"--{key}", choices=choices_of(key), help=first_sentence(key))


def choices_of(key: str) -> list[str] | None:
    """The values of a setting, if there are few; else None."""
    schema = item_schema(field_schema(key))
    if "enum" in schema:
        return list(schema["enum"])
    return ["true", "false"] if schema.get("type") == "boolean" else None


def first_sentence(key: str) -> str:
    """What a setting means, in a few words."""
    return field_schema(key)["description"].split(". ")[0].rstrip(".").replace("%", "%%")

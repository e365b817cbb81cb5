"""`mnist-dist config`: the settings of a run as a JSON schema, for editors. Imports no torch."""

from __future__ import annotations

import json
import sys

from mnist_dist.commands.arguments import Parser
from mnist_dist.config.json_schema import json_schema
from mnist_dist.utils.errors import EXIT_DONE


def main(arguments: list[str]) -> int:
    """Run `mnist-dist config ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments.
        SystemExit: 0, after printing the help.
    """
    build_parser().parse_args(arguments)
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of the command's arguments."""
    parser = Parser(
        prog="mnist-dist config",
        description="Print the JSON schema of the settings. A recipe names it in a comment, by a relative path: "
        "`# yaml-language-server: $schema=schema.json`. Editors then complete and check the recipe.",
        examples=(
            "mnist-dist config schema",
            "mnist-dist config schema > schema.json",
            "mnist-dist config schema | python -m json.tool --compact",
        ),
    )
    what = "schema: types, ranges, defaults and meanings of all settings"
    parser.add_argument("what", choices=["schema"], help=what)
    return parser

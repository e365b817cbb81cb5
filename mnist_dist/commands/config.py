"""`mnist-dist config`: the settings of a run as a JSON schema, for editors. Imports no torch."""

from __future__ import annotations

import argparse
import json
import sys

from mnist_dist.commands.arguments import Parser
from mnist_dist.config.schema import json_schema
from mnist_dist.utils.errors import EXIT_DONE

EXAMPLES = """\
A recipe names its schema by a path relative to itself, in a comment:
  # yaml-language-server: $schema=schema.json

examples:
  mnist-dist config schema
  mnist-dist config schema > schema.json
  python -m mnist_dist.train --config=speed99 --print_config > my_recipe.yaml
  python -m mnist_dist.train --config=my_recipe.yaml --print_config
"""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist config ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments.
        SystemExit: 0, after printing the help.
    """
    parser = Parser(
        prog="mnist-dist config",
        description="Print what describes the settings of a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "schema: the JSON schema of recipes (types, ranges, defaults, meanings), by which editors check and complete"
    parser.add_argument("what", choices=["schema"], help=what)
    parser.parse_args(arguments)
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return EXIT_DONE

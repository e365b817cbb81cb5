"""`mnist-dist models`: networks with parameters, FLOPs and the output shape of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnist_dist.commands.arguments import Parser
from mnist_dist.config.loader import read_command_line
from mnist_dist.config.model_file import check_model_file, split_name
from mnist_dist.config.model_names import ARGUMENTS
from mnist_dist.config.values import COMMAND_LINE, parse_value
from mnist_dist.utils.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from mnist_dist.models import ModelBuilder


def main(arguments: list[str]) -> int:
    """Run `mnist-dist models ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, an unknown model, or one that could not be trained.
        SystemExit: 0, after printing the help.
    """
    options, rest = build_parser().parse_known_args(arguments)
    args = parse_model_arguments(rest)

    from rich.console import Console

    from mnist_dist.models import find_builder, list_models
    from mnist_dist.models.check import check_model

    known = list_models()
    for name in options.names:
        if not split_name(name)[0] and name not in known:
            hint = f"; did you mean {name}:build?" if name.endswith(".py") else ""
            raise UserError(f"{name}: no such model{hint}; models: {', '.join(known)}; or FILE.py:FUNCTION")
        check_model_file(name, COMMAND_LINE)
    console = Console(highlight=False)
    for name in options.names or known:
        builder = find_builder(name)
        model = builder.build(CLASSES, args)
        if builder.code is not None or args:
            check_model(builder, model, num_classes=None)
        print_model(console, builder, model)
    return EXIT_DONE


CLASSES = 10
"""Number of classes that a model is built for, if its function asks for it."""


def parse_model_arguments(rest: list[str]) -> dict[str, Any]:
    """The values of `--model.args.NAME=VALUE`, as in training.

    Raises:
        UserError: another option, or a value that is no argument.
    """
    _, settings, _ = read_command_line(rest)
    for setting in settings:
        if not setting.key.startswith(f"{ARGUMENTS}."):
            raise UserError(f"--{setting.key}: no option of mnist-dist models; see mnist-dist models --help")
    return {setting.key[len(ARGUMENTS) + 1 :]: parse_value(setting) for setting in settings}


def print_model(console: Console, builder: ModelBuilder, model: nn.Module) -> None:
    """Print a model's cost, its description, the arguments of its function, and a table of its layers."""
    from rich.table import Table

    from mnist_dist.models.summary import summarize

    with builder.running("in eval mode:"):
        summary = summarize(model)
    cost = f"{summary.parameters:,} parameters, {summary.flops / 1e6:.2f} MFLOPs to classify one image"
    for text in (f"[bold]{escape(builder.name)}[/bold]: {cost}", escape(builder.describe())):
        if text:
            console.print(text, soft_wrap=True)
    console.print(f"arguments: {builder.describe_parameters() or 'none'}", soft_wrap=True, markup=False)
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("layer", "left"), ("kind", "left"), ("output", "right"), ("parameters", "right")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_row("", "input", "1 x 28 x 28", "")
    for layer in summary.layers:
        shape = " x ".join(map(str, layer.shape))
        table.add_row(layer.name, layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else "")
    console.print(table)
    console.print()


def escape(text: str) -> str:
    """A text without what rich would take for markup."""
    from rich.markup import escape

    return escape(text)


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist models",
        usage="%(prog)s [-h] [NAME ...] [--model.args.NAME=VALUE ...]",
        description="List networks: parameters, FLOPs, the arguments of their functions, and the output shape of every "
        "layer.",
        examples=[
            "mnist-dist models",
            "mnist-dist models unshuffle",
            "mnist-dist models basic cnn --model.args.width=64",
            "mnist-dist models my_net.py:build --model.args.width=64",
        ],
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="list only these (default: all of this package): a registered name, or code of your own, which is run, as "
        "FILE.py:FUNCTION or MODULE:FUNCTION",
    )
    return parser

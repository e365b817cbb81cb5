"""`mnist-dist models`: the registered models with parameters, FLOPs and the output shape of every layer."""

from __future__ import annotations

from mnist_dist.commands.arguments import Parser
from mnist_dist.utils.errors import EXIT_DONE, UserError


def main(arguments: list[str]) -> int:
    """Run `mnist-dist models ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, or an unknown model.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)

    from rich.console import Console
    from rich.table import Table

    from mnist_dist.models import create_model, describe_model, list_models
    from mnist_dist.models.summary import summarize

    known = list_models()
    for name in options.names:
        if name not in known:
            raise UserError(f"{name}: no such model; models: {', '.join(known)}")
    console = Console(highlight=False)
    for name in options.names or known:
        summary = summarize(create_model(name))
        cost = f"{summary.parameters:,} parameters, {summary.flops / 1e6:.2f} MFLOPs to classify one image"
        console.print(f"[bold]{name}[/bold]: {cost}\n{describe_model(name)}", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for heading, justify in (("layer", "left"), ("kind", "left"), ("output", "right"), ("parameters", "right")):
            table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
        table.add_row("", "input", "1 x 28 x 28", "")
        for layer in summary.layers:
            shape = " x ".join(map(str, layer.shape))
            table.add_row(layer.name, layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else "")
        console.print(table)
        console.print()
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist models",
        description="List the models: parameters, FLOPs, and the output shape of every layer.",
        examples=["mnist-dist models", "mnist-dist models unshuffle", "mnist-dist models basic cnn"],
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="list only these models (default: all)")
    return parser

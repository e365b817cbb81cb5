"""`mnist-dist demo RUN`: a page on this machine where a digit is drawn, and recognised while it is drawn."""

from __future__ import annotations

from mnist_dist.commands.arguments import Parser, add_run_arguments
from mnist_dist.utils.errors import EXIT_DONE, UserError

PORT = 8017


def main(arguments: list[str]) -> int:
    """Run `mnist-dist demo ARGUMENTS` until it is interrupted; the exit code.

    Raises:
        UserError: wrong arguments, no such run or checkpoint, or the port is in use.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port {options.port}: must be from 0 to 65535; 0 lets the system choose")

    from mnist_dist.checkpoint.load_model import load_model
    from mnist_dist.commands.demo_server import DemoServer

    loaded = load_model(options.run, options.checkpoint, options.model, options.trust)
    try:
        server = DemoServer(loaded, options.port)
    except OSError as error:
        raise UserError(f"--port {options.port}: cannot be used ({error.strerror}); try --port 0") from None
    with server:
        try:
            print(f"draw a digit at http://127.0.0.1:{server.server_port}/ (Ctrl-C ends this)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist demo",
        description="Serve a page on which a digit is drawn by mouse, touch or keys, and recognised while it is drawn: "
        "probabilities, what the network is given, and its feature maps. Only this machine can reach it, it loads "
        "nothing from elsewhere, and nothing is stored.",
        examples=[
            "mnist-dist demo last",
            "mnist-dist demo runs/digits --port 0",
            "mnist-dist demo runs/digits --checkpoint best",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--port", metavar="N", type=int, default=PORT, help="port on 127.0.0.1; 0: a free one (default: %(default)s)"
    )
    return parser

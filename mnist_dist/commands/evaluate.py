"""`mnist-dist evaluate RUN`: the metrics of a trained model on a split, on any number of processes."""

from __future__ import annotations

from mnist_dist.commands.arguments import Parser, add_run_arguments
from mnist_dist.distributed.topology import resolve_topology, set_omp_wait_policy
from mnist_dist.utils.errors import EXIT_DONE


def main(arguments: list[str]) -> int:
    """Run `mnist-dist evaluate ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, no such run or checkpoint, no data or not those of the run, or an empty split.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    topology = resolve_topology()
    set_omp_wait_policy()

    from mnist_dist.console.console import open_console
    from mnist_dist.data.identity import summary_keys
    from mnist_dist.training.run_evaluation import evaluate_run
    from mnist_dist.utils.strict_json import dump_strict

    console, split = open_console(topology.is_main, options.json), options.split
    of_run = options.run, split, options.checkpoint, options.root, options.precision, options.model, options.trust
    found = evaluate_run(topology, console, *of_run)
    metrics = found.metrics
    if topology.is_main and options.json:
        result = metrics.row(split) | {"step": found.step, "world_size": topology.world_size} | metrics.details(split)
        print(dump_strict(result | summary_keys(found.digests)))
    console.header(
        found.runtime_facts | {"checkpoint step": str(found.step), "split": f"{split}, {metrics.count} images"}
    )
    console.summary(metrics.row(split), metrics.confusion, found.classes)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist evaluate",
        description="Evaluate the trained model of a run on a split. Under a launcher, all processes share the work.",
        examples=[
            "mnist-dist evaluate runs/digits",
            "mnist-dist evaluate last --split val --checkpoint best",
            "mnist-dist evaluate runs/digits --data.root=data --precision no --json",
            "mnist-dist evaluate runs/mine --model my_net.py:build",
            "torchrun --nproc-per-node 2 -m mnist_dist evaluate runs/digits",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), help="(default: as in training)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser

"""`mnist-dist evaluate RUN`: a run's metrics on a split, on any number of processes.

On several: `accelerate launch --config_file launch/cpu_2.yaml -m mnist_dist evaluate RUN`.
"""

from __future__ import annotations

import dataclasses

from mnist_dist.commands.arguments import Parser
from mnist_dist.distributed.topology import resolve_topology, yield_while_waiting
from mnist_dist.utils.errors import EXIT_DONE, UserError


def main(arguments: list[str]) -> int:
    """Run `mnist-dist evaluate ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, no such run or checkpoint, or the split is empty.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    topology = resolve_topology()
    yield_while_waiting()

    from mnist_dist.commands.load_model import restore
    from mnist_dist.console.console import open_console
    from mnist_dist.data.dataset import read_splits
    from mnist_dist.data.prepare import ensure, resolve_root
    from mnist_dist.distributed.runtime import start_runtime
    from mnist_dist.training.evaluation import evaluate
    from mnist_dist.utils.strict_json import dump_strict

    restored = restore(options.run, options.checkpoint)
    config = restored.config
    if options.precision:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=options.precision))
    console = open_console(topology.is_main, options.json)
    root = resolve_root(config.data.root)
    if topology.is_local_main:
        ensure(root, config.data.source, console.print)
    with start_runtime(config, topology) as runtime:
        splits = read_splits(ensure(root, "local", console.print), config.data, config.run.seed, config.train_limit)
        data = getattr(splits, options.split)
        if not len(data):
            raise UserError(f"--split {options.split}: this run held nothing out (data.val_size=0); use test or train")
        model = runtime.to_device(restored.model)
        size = config.train.eval_batch_size
        metrics = evaluate(model, data.to(runtime.device), config.data, runtime, size)
        result = metrics.row(options.split) | {"step": restored.step, "world_size": runtime.world_size}
        if topology.is_main and options.json:
            print(dump_strict(result | metrics.details(options.split)))
        facts = {"checkpoint step": str(restored.step), "split": f"{options.split}, {len(data)} images"}
        console.header(runtime.describe() | facts)
        console.summary(
            {key.replace(f"{options.split}.", "test.", 1): value for key, value in metrics.row(options.split).items()},
            metrics.confusion,
            config.data.classes,
        )
    return EXIT_DONE


def build_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog="mnist-dist evaluate", description="A run's metrics on a split, on any number of processes.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="default: %(default)s")
    parser.add_argument(
        "--checkpoint",
        metavar="latest|best|STEP|PATH",
        default="latest",
        help="which of the run's checkpoints (default: %(default)s)",
    )
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), help="default: as in training")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    return parser

"""`mnist-dist evaluate RUN`: the metrics of a trained model on a split, on any number of processes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mnist_dist.commands.arguments import Parser, add_run_arguments
from mnist_dist.distributed.topology import resolve_topology, set_omp_wait_policy
from mnist_dist.utils.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from mnist_dist.distributed.runtime import Runtime


def main(arguments: list[str]) -> int:
    """Run `mnist-dist evaluate ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, no such run or checkpoint, no data or not those of the run, or an empty split.
        SystemExit: 0, after printing the help.
    """
    options = build_parser().parse_args(arguments)
    topology = resolve_topology()
    set_omp_wait_policy()

    from mnist_dist.checkpoint.tensors import weights_sha256
    from mnist_dist.commands.load_model import load_model
    from mnist_dist.console.console import open_console
    from mnist_dist.data.dataset import read_splits
    from mnist_dist.data.identity import check_split_data, short, summary_keys
    from mnist_dist.data.prepare import is_default_root, provide_files, resolve_root
    from mnist_dist.distributed.consistency import check_ranks_agree
    from mnist_dist.distributed.runtime import start_runtime
    from mnist_dist.training.evaluation import evaluate
    from mnist_dist.utils.strict_json import dump_strict

    loaded = load_model(options.run, options.checkpoint)
    config = loaded.config
    if config.run.device != "cpu":  # an accelerator that training insisted on is not needed here
        config = config.model_copy(update={"run": config.run.model_copy(update={"device": "auto"})})
    if options.precision:
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": options.precision})})
    console = open_console(topology.is_main, options.json)
    split, name = options.split, config.data.name
    root = resolve_root(config.data.root if options.root is None else options.root, name)
    if topology.is_local_main or not is_default_root(root, name):
        provide_files(root, config.data.source, console.print, name)
    with start_runtime(config, topology) as runtime:
        files = provide_files(root, "local", console.print, name)
        splits = read_splits(files, config.data, config.run.seed, config.train_limit)
        model = runtime.to_device(loaded.model)
        mine = {"the checkpoint": {"step": loaded.step, "weights": short(weights_sha256(model))}}
        check_ranks_agree(runtime, mine | {"the data set": splits.shown_digests})
        check_split_data(split, loaded.digests, splits.digests, root, console.warn)
        data = getattr(splits, split)
        if not len(data):
            raise UserError(f"--split {split}: this run has none (data.val_size=0); use test or train")
        size = config.train.eval_batch_size
        metrics = evaluate(
            model, data.to(runtime.device), config.data, runtime, size, partial(interrupt_if_asked, runtime)
        )
        result = metrics.row(split) | {"step": loaded.step, "world_size": runtime.world_size}
        if topology.is_main and options.json:
            print(dump_strict(result | metrics.details(split) | summary_keys(splits.digests)))
        facts = {"checkpoint step": str(loaded.step), "split": f"{split}, {len(data)} images"}
        console.header(runtime.describe() | facts)
        console.summary(metrics.row(split), metrics.confusion, config.data.class_names)
    return EXIT_DONE


def interrupt_if_asked(runtime: Runtime) -> None:
    """Raise KeyboardInterrupt if any rank was asked to stop: there is nothing to save. Every rank must call it."""
    if runtime.should_stop():
        raise KeyboardInterrupt


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="mnist-dist evaluate",
        description="Evaluate the trained model of a run on a split. Under a launcher, all processes share the work.",
        examples=[
            "mnist-dist evaluate runs/digits",
            "mnist-dist evaluate last --split val --checkpoint best",
            "mnist-dist evaluate runs/digits --data.root=data",
            "mnist-dist evaluate runs/digits --precision no --json",
            "torchrun --nproc-per-node 2 -m mnist_dist evaluate runs/digits",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), help="(default: as in training)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser

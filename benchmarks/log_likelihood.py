"""Negative log-likelihood of held-out images under finished runs, as their nets are and at the best temperature.

Good nets make too few errors to compare recipes by. The likelihood of all labels says more, once each net has its own
temperature (Guo et al. 2017, arXiv:1706.04599): label smoothing makes nets less sure than they could be. The runs need
a validation split. Evaluation is that of the trainer, in the precision of the training.

examples:
  python benchmarks/log_likelihood.py runs/digits
  python benchmarks/log_likelihood.py --shifts 1 runs/repeat/*/seed-*  with the mean over nine shifts
  python benchmarks/log_likelihood.py --json found.json runs/digits    the figures in a file, too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from common.cli import add_json, build_parser, run_script, write_json
from common.likelihood import LogitCollector, best_inverse_temperature, negative_log_likelihood
from common.progress import BenchmarkProgress
from common.run_data import read_run_data
from common.tables import print_table
from mnist_dist.checkpoint.load_model import LoadedModel, load_model
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.training.evaluation import evaluate
from mnist_dist.training.run_evaluation import interrupt_if_asked
from mnist_dist.utils.errors import EXIT_DONE, UserError

PARSER = build_parser(__file__, __doc__)
PARSER.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run with a validation split")
PARSER.add_argument(
    "--shifts", type=int, choices=(0, 1, 2), help="largest test-time shift, in pixels (default: that of each run)"
)
add_json(PARSER)


@dataclass(frozen=True)
class Likelihood:
    """What a run's net says of its held-out images."""

    run: str
    count: int
    """Images."""
    errors: int
    nll: float
    """Negative log-likelihood, mean over the images, in nats."""
    inverse_temperature: float
    """The factor of the logits that makes the labels most likely."""
    best_nll: float
    """Negative log-likelihood with that factor."""


def load_runs(runs: Sequence[str], shifts: int | None) -> list[LoadedModel]:
    """Load the models, with these test-time shifts if they are given.

    Raises:
        UserError: there is no such run, it has no held-out images, or its model cannot have shifts.
    """
    found = []
    for run in runs:
        loaded = load_model(run)
        if not loaded.config.data.val_size:
            raise UserError(f"{run}: it has no held-out images (data.val_size=0); leave it out")
        if shifts is not None:
            if not isinstance(loaded.model, ImageClassifier):
                raise UserError(f"--shifts: the model of {run} has no test-time shifts; leave out --shifts")
            loaded.model.shifts = shifts
        found.append(loaded)
    return found


def measure(run: str, loaded: LoadedModel) -> Likelihood:
    """Evaluate one run on its validation split.

    Raises:
        UserError: its data are not there, or others.
    """
    config = loaded.config
    val, collector = read_run_data(loaded, config, "val").val, LogitCollector()
    with start_runtime(config, Topology()) as runtime:
        model, check_stop = runtime.to_device(loaded.model), partial(interrupt_if_asked, runtime)
        data, size = val.to(runtime.device), config.train.eval_batch_size
        metrics = evaluate(model, data, config.data, runtime, size, check_stop, collector)
    logits, labels = collector.logits(), val.labels
    factor = best_inverse_temperature(logits, labels)
    return Likelihood(
        run=run,
        count=metrics.count,
        errors=metrics.count - metrics.correct,
        nll=negative_log_likelihood(logits, labels),
        inverse_temperature=factor,
        best_nll=negative_log_likelihood(logits, labels, factor),
    )


def main(arguments: Sequence[str]) -> int:
    """Measure the runs; the exit code."""
    options = PARSER.parse_args(arguments)
    loaded = load_runs(options.runs, options.shifts)
    found = []
    with BenchmarkProgress(options.runs) as progress:
        for run, each in zip(options.runs, loaded, strict=True):
            progress.begin(run)
            found.append(measure(run, each))
            progress.end(f"{run}: {found[-1].errors} errors of {found[-1].count}")
    rows = [
        [
            each.run,
            f"{each.count}",
            f"{each.errors}",
            f"{each.nll:.5f}",
            f"{each.inverse_temperature:.1f}",
            f"{each.best_nll:.5f}",
        ]
        for each in found
    ]
    headings = ("run", "images", "errors", "negative log-likelihood", "best 1/T", "with it")
    print_table("Held-out images", headings, rows, left=("run",))
    write_json(options.json, [asdict(each) for each in found])
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)

"""Accuracy and calibration of finished runs on a corrupted test set: shift, rotation, noise, blur, width of strokes.

Each corruption has five severities (see common/corruptions.py). This measures what a recipe gives beyond its test set;
nothing is to be tuned on it. Evaluation is that of the trainer, in the precision of the training.

examples:
  python benchmarks/robustness.py runs/digits                    a run: about a minute on two cores
  python benchmarks/robustness.py --only blur runs/digits        one of the corruptions
  python benchmarks/robustness.py --record runs/repeat/*/seed-*  lines in benchmarks/results/robustness
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.calibration import Calibration
from common.cli import add_only, build_parser, run_script
from common.corruptions import CORRUPTIONS, corrupt
from common.progress import BenchmarkProgress
from common.recorded import digests_now
from common.robustness_lines import CLEAN, Robustness, record_robustness
from common.rounds import choose
from common.run_data import read_run_data
from common.tables import print_table
from mnist_dist.checkpoint.load_model import LoadedModel, load_model
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.commands.repeat_runs import find_commit
from mnist_dist.config.digest import config_sha256
from mnist_dist.config.schema import Config
from mnist_dist.config.yaml_files import list_recipes
from mnist_dist.data.dataset import ImageSet
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.training.evaluation import evaluate
from mnist_dist.training.run_evaluation import interrupt_if_asked
from mnist_dist.utils.errors import EXIT_DONE, Stopped, UserError
from mnist_dist.utils.versions import versions

if TYPE_CHECKING:  # `common` says first what is missing
    from torch import Tensor, nn

RESULTS = Path("benchmarks/results/robustness")
PARSER = build_parser(__file__, __doc__)
PARSER.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run on MNIST")
PARSER.add_argument("--record", action="store_true", help=f"write a line for each run into {RESULTS}")
add_only(PARSER)


@dataclass(frozen=True)
class Subject:
    """A run that is measured."""

    folder: str
    loaded: LoadedModel
    recipe: str
    """The shipped recipe that it was trained by; empty: another one."""

    @property
    def config(self) -> Config:
        """The run's settings, with the whole test set."""
        config = self.loaded.config
        return config.model_copy(update={"data": config.data.model_copy(update={"test_limit": 0})})


class CorruptedSets:
    """The test set, as it is and corrupted. Each set is made once."""

    def __init__(self) -> None:
        self.test_sha256 = ""
        self.made: dict[tuple[str, float], Tensor] = {}

    def get(self, test: ImageSet, digest: str, name: str, size: float) -> ImageSet:
        """The set with this corruption of this size.

        Args:
            digest: of the test set.
        """
        if digest != self.test_sha256:
            self.test_sha256, self.made = digest, {}
        if (name, size) not in self.made:
            self.made[name, size] = test.images if name == CLEAN else corrupt(test.images, name, size)
        return ImageSet(self.made[name, size], test.labels)


def find_subjects(runs: Sequence[str], record: bool) -> list[Subject]:
    """Load the models.

    Raises:
        UserError: there is no such run, or with `record`, it is not of a shipped recipe as it is now.
    """
    recipes = {digest: name for name in reversed(list_recipes()) for digest in digests_now(name, {})}
    subjects = []
    for run in runs:
        loaded = load_model(run)
        recipe = recipes.get(config_sha256(loaded.config), "")
        if record and not recipe:
            raise UserError(f"--record: {run} was not trained by a shipped recipe as it is now; leave it out")
        subjects.append(Subject(run, loaded, recipe))
    return subjects


def measure(
    subject: Subject, sizes: dict[str, list[float]], sets: CorruptedSets, progress: BenchmarkProgress
) -> Robustness:
    """Evaluate one run on all sets.

    Raises:
        UserError: its data are not there, or others.
    """
    config = subject.config
    splits = read_run_data(subject.loaded, config, "test")
    correct: dict[str, list[int]] = {}
    errors: dict[str, list[float]] = {}
    with start_runtime(config, Topology()) as runtime:
        model = runtime.to_device(subject.loaded.model)
        for case, wanted in sizes.items():
            progress.begin(f"{subject.folder}, {case}")
            for size in wanted:
                data = sets.get(splits.test, splits.digests["test"], case, size)
                right, error = count_right(model, data, config, runtime)
                correct.setdefault(case, []).append(right)
                errors.setdefault(case, []).append(error)
            shares = " ".join(f"{100 * right / len(splits.test):.2f}" for right in correct[case])
            progress.end(f"{subject.folder}, {case}: {shares} %")
        return Robustness(
            recipe=subject.recipe,
            config_sha256=config_sha256(subject.loaded.config),
            seed=config.run.seed,
            weights_sha256=weights_sha256(model),
            test_sha256=splits.digests["test"],
            precision=runtime.precision,
            count=len(splits.test),
            sizes=sizes,
            correct=correct,
            calibration_error=errors,
            versions={key.removeprefix("versions."): value for key, value in versions().items()},
            commit=find_commit(),
            date=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        )


def count_right(model: nn.Module, data: ImageSet, config: Config, runtime: Runtime) -> tuple[int, float]:
    """Right predictions of a model on a set of images, and its expected calibration error."""
    calibration = Calibration(model)
    size = config.train.eval_batch_size
    check_stop = partial(interrupt_if_asked, runtime)
    metrics = evaluate(model, data.to(runtime.device), config.data, runtime, size, check_stop, calibration)
    return metrics.correct, calibration.error()


def show(subject: Subject, found: Robustness) -> None:
    """Print the table of one run."""
    rows = []
    for name, sizes in found.sizes.items():
        shares = [f"{100 * right / found.count:.2f}" for right in found.correct[name]]
        errors = [f"{100 * error:.2f}" for error in found.calibration_error[name]]
        unit = f" {CORRUPTIONS[name].unit}" if name in CORRUPTIONS else ""
        cells = [f"{share} ({error})" for share, error in zip(shares, errors, strict=True)]
        rows.append([name, f"{sizes[0]:g} to {sizes[-1]:g}{unit}" if unit else "", *cells, *[""] * (5 - len(cells))])
    title = f"{subject.folder}: accuracy in % (expected calibration error in %), by severity"
    print_table(title, ("corruption", "sizes", *map(str, range(1, 6))), rows, left=("corruption", "sizes"))


def sizes_of(names: Sequence[str]) -> dict[str, list[float]]:
    """What is measured: the clean test set, and the corruptions of these names."""
    wanted: Mapping[str, Sequence[float]] = {name: CORRUPTIONS[name].sizes for name in names}
    return {CLEAN: [0.0]} | {name: [float(size) for size in sizes] for name, sizes in wanted.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure the runs; the exit code."""
    options = PARSER.parse_args(arguments)
    names = choose(list(CORRUPTIONS), options.only)
    if options.record and options.only:
        raise UserError("--only: a recorded line has all corruptions; leave out --only or --record")
    if options.record and not RESULTS.parent.is_dir():
        raise UserError(f"--record: there is no {RESULTS.parent} here; start it in the folder of the repository")
    subjects, sizes, sets = find_subjects(options.runs, options.record), sizes_of(names), CorruptedSets()
    found: list[Robustness] = []
    with BenchmarkProgress([*sizes] * len(subjects)) as progress, contextlib.suppress(KeyboardInterrupt):
        for subject in subjects:
            found.append(measure(subject, sizes, sets, progress))
            if options.record:
                record_robustness(RESULTS, found[-1])
    for subject, each in zip(subjects, found, strict=False):
        show(subject, each)
    if len(found) < len(subjects):
        raise Stopped(f"interrupted; {len(found)} of {len(subjects)} runs are measured")
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)

"""Speed on a GPU: images per second, share of the matrix-product peak, and the time to 99 and 99.5 % of the test set.

Whole processes of the trainer on one GPU, data resident on it, bf16, rounds interleaved. Needs a GPU, and says so
elsewhere. `training` excludes compilation, which happens before the first step; `process` is the whole command. MFU is
the share of the peak that the trainer measures with large products of matrices (train.profile).

examples:
  python benchmarks/gpu.py                                   5 rounds and 30 seeds: hours
  python benchmarks/gpu.py --rounds 1 --seeds 1              a quick look: some minutes
  python benchmarks/gpu.py --seeds 0 --only "cnn, batch 256"     one model and batch, without the times to accuracy
  python benchmarks/gpu.py --rounds 0 --json gpu.json        the times to accuracy alone, in a file, too
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from common.cli import add_count, add_json, add_only, build_parser, run_script, write_json
from common.processes import TrainingRun, train
from common.rounds import RoundResults, choose, run_rounds
from common.tables import print_table
from mnist_dist.utils.errors import EXIT_DONE, UserError

COMPILE = ("no", "default", "reduce-overhead")
MODELS, BATCHES = ("cnn", "unshuffle", "compact"), (256, 1024, 4096)
TARGETS = {"speed99": 0.99, "speed995": 0.995}
DISABLED = "--tracking.mode=disabled"
SPEED = ["--train.precision=bf16", "--train.shards=0", "--data.val_size=0", "--train.epochs=200", "--optim.lr=0.001"]
SPEEDS = {
    f"{model}, batch {batch}, compile={mode}": (model, batch, mode)
    for model in MODELS
    for batch in BATCHES
    for mode in COMPILE
}
TIMES = {f"{recipe}, compile={mode}": (recipe, mode) for recipe in TARGETS for mode in COMPILE}
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "rounds", 5, "rounds of the speeds, of which medians are taken; 0: no speeds", minimum=0)
add_count(PARSER, "steps", 600, "steps of each run for a speed", minimum=100)
add_count(PARSER, "seeds", 30, "seeds of the times to accuracy, 0 to N-1; 0: no times", minimum=0)
add_only(PARSER)
add_json(PARSER)


def train_for_speed(model: str, batch: int, mode: str, steps: int, _: int) -> TrainingRun:
    """Train for some steps, whatever the round."""
    task = [f"--model.name={model}", f"--train.batch_size={batch}", f"--train.compile={mode}"]
    return train([*SPEED, *task, DISABLED, f"--train.max_steps={steps}"])


def train_for_accuracy(recipe: str, mode: str, seed: int) -> TrainingRun:
    """Train a recipe to its end."""
    return train(["--config", recipe, "--train.shards=0", f"--train.compile={mode}", DISABLED, f"--run.seed={seed}"])


def rate_of(run: TrainingRun) -> float:
    """Images per second: the median of the rows after the first."""
    rates = [row["images_per_second"] for row in run.rows]
    return float(statistics.median(rates[1:] or rates))


def measure_peak() -> float:
    """FLOP/s of large products of two bf16 matrices, as the trainer measures them."""
    row = train([*SPEED, "--model.name=cnn", DISABLED, "--train.max_steps=100", "--train.profile=1"]).rows[-1]
    return float(row["flops_per_second"] / row["mfu"])


def describe_speed(name: str, values: Mapping[str, TrainingRun]) -> str:
    """What one run found."""
    return f"{rate_of(values[name]):,.0f} images/s"


def describe_accuracy(name: str, values: Mapping[str, TrainingRun]) -> str:
    """What one run found."""
    summary = values[name].summary
    return f"{summary['test.accuracy']:.2%} after {summary['train.seconds']:.2f} s of training"


def summarize_speeds(results: RoundResults[TrainingRun], peak: float) -> list[dict[str, Any]]:
    """Medians of each model, batch and way to compile; prints them as a table."""
    found, rows = [], []
    for name in results.measured():
        (model, batch, mode), runs = SPEEDS[name], results.of(name)
        rate = statistics.median(map(rate_of, runs))
        per_image = [run.summary["train.flops_per_second"] / run.summary["train.images_per_second"] for run in runs]
        flops, process = rate * statistics.median(per_image), statistics.median(run.seconds for run in runs)
        task = {"model": model, "batch": batch, "compile": mode}
        found.append(task | {"images_per_second": rate, "flops_per_second": flops, "process_seconds": process})
        cells = [f"{rate:,.0f}", f"{flops / 1e12:.2f}", f"{flops / peak:.2%}", f"{process:.1f}"]
        rows.append([model, str(batch), mode, *cells])
    headings = ("model", "batch", "compile", "images/s", "TFLOP/s", "MFU", "process, s")
    title = f"medians of {results.title()}; peak {peak / 1e12:.1f} TFLOP/s (bf16 matrix product)"
    print_table(title, headings, rows, left=("model", "compile"))
    return found


def summarize_times(results: RoundResults[TrainingRun]) -> list[dict[str, Any]]:
    """Accuracies and median seconds of each recipe and way to compile; prints them as a table."""
    found, rows = [], []
    for name in results.measured():
        (recipe, mode), runs = TIMES[name], results.of(name)
        accuracies = [run.summary["test.accuracy"] for run in runs]
        training = statistics.median(run.summary["train.seconds"] for run in runs)
        process = statistics.median(run.seconds for run in runs)
        times = {"train_seconds": training, "process_seconds": process}
        found.append({"recipe": recipe, "compile": mode, "accuracies": accuracies, **times})
        spread = [f"{value:.2%}" for value in (statistics.mean(accuracies), min(accuracies), max(accuracies))]
        rows.append([recipe, f"{TARGETS[recipe]:.1%}", mode, *spread, f"{training:.2f}", f"{process:.2f}"])
    headings = ("recipe", "target", "compile", "mean", "min", "max", "training, s", "process, s")
    print_table(f"{results.title()}, at the last step", headings, rows, left=("recipe", "compile"))
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code.

    Raises:
        UserError: wrong arguments, or there is no GPU.
    """
    options = PARSER.parse_args(arguments)
    names = choose([*(TIMES if options.seeds else ()), *(SPEEDS if options.rounds else ())], options.only)
    import torch

    if not torch.cuda.is_available():
        raise UserError("gpu.py: needs a GPU that torch can use, and there is none")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    if times := [name for name in names if name in TIMES]:
        trainings = {name: partial(train_for_accuracy, *TIMES[name]) for name in times}
        runs = run_rounds(trainings, options.seeds, describe_accuracy, unit="seed")
        report["times"] = summarize_times(runs)
        write_json(options.json, report)
        runs.exit_code()
    if speeds := [name for name in names if name in SPEEDS]:
        report["peak_flops_per_second"] = peak = measure_peak()
        cases = {name: partial(train_for_speed, *SPEEDS[name], options.steps) for name in speeds}
        runs = run_rounds(cases, options.rounds, describe_speed)
        report["speeds"] = summarize_speeds(runs, peak)
        write_json(options.json, report)
        runs.exit_code()
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)

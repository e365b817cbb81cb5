"""Draw the plots of docs/scaling.md from the files in benchmarks/results/. It measures nothing.

It needs matplotlib: pip install -e '.[report]'

examples:
  python benchmarks/scaling_plots.py                        docs/scaling-*.svg anew: seconds
  python benchmarks/scaling_plots.py --folder /tmp          elsewhere
  python benchmarks/scaling_plots.py --only batch           one of them
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from common.cli import add_only, build_parser, run_script
from common.rounds import choose
from mnist_dist.utils.errors import EXIT_DONE
from scaling_model import RESULTS, Network

STYLE = {
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.titlesize": 11,
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and sharp at any size
    "svg.hashsalt": "mnist_dist",  # the same file from the same figures
}
TITLES = {"adam": "Adam", "sgd": "SGD with momentum"}
COLOURS = ("#0b6bb5", "#d1751f", "#2d8f4e", "#8a4fa3")
PARSER = build_parser(__file__, __doc__)
PARSER.add_argument("--folder", type=Path, default=Path("docs"), help="of the plots (default: %(default)s)")
add_only(PARSER)


def read(name: str) -> dict[str, Any]:
    """One of the result files."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def binary(number: float, _: Any = None) -> str:
    """256 Ki for 262144."""
    for unit, size in (("Mi", 2**20), ("Ki", 2**10)):
        if number >= size:
            return f"{number / size:.0f} {unit}"
    return f"{number:.0f}"


def draw_allreduce(folder: Path) -> None:
    """Measured times by bytes, and the fitted lines."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    points, fitted = read("allreduce.json")["points"], read("model.json")["fitted"]["allreduce"]
    network = Network(**fitted)
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for colour, workers in zip(COLOURS, (2, 4, 8), strict=False):
        own = [p for p in points if p["processes"] == workers]
        sizes = [p["bytes"] for p in own]
        axes.plot(sizes, [1e3 * p["seconds"] for p in own], "o", color=colour, label=f"{workers} processes")
        axes.plot(sizes, [1e3 * network.allreduce(workers, size) for size in sizes], "-", color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="one all-reduce, ms")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(binary))
    axes.set_title("gloo on loopback, 2 cores: measured (points), model (lines)", loc="left")
    axes.legend()
    save(figure, folder / "scaling-allreduce.svg")


def draw_efficiency(folder: Path) -> None:
    """Predicted efficiency from 1 to 4096 workers."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    model = read("model.json")
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    titles = {"strong": "strong scaling: 256 images in all", "weak": "weak scaling: 256 images a worker"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for colour, (name, found) in zip(COLOURS, model["predictions"].items(), strict=False):
            axes.plot(model["workers"], [100 * share for share in found[kind]], ".-", color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="workers", ylim=(0, 105), xticks=[4**n for n in range(7)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:.0f}"))
        axes.set_title(title, loc="left")
    panels[0].set_ylabel("efficiency, %")
    panels[0].legend(fontsize=9)
    save(figure, folder / "scaling-efficiency.svg")


def draw_batches(folder: Path) -> None:
    """Test error by batch and learning-rate rule: means, and bars from the best seed to the worst."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    measured = read("large_batch.json")
    settings = list(dict.fromkeys((run["optimizer"], run["base_lr"]) for run in measured["runs"]))
    figure, panels = plt.subplots(1, len(settings), figsize=(10, 3.8), layout="constrained", sharey=True)
    for axes, (optimizer, base) in zip(panels, settings, strict=True):
        for colour, rule in zip(COLOURS, ("constant", "sqrt", "linear"), strict=False):
            wanted = (optimizer, base, rule)
            runs = [run for run in measured["runs"] if (run["optimizer"], run["base_lr"], run["rule"]) == wanted]
            errors = [[100 - 100 * share for share in run["accuracies"]] for run in runs]
            means = [statistics.mean(own) for own in errors]
            below = [mean - min(own) for mean, own in zip(means, errors, strict=True)]
            above = [max(own) - mean for mean, own in zip(means, errors, strict=True)]
            batches = [run["batch"] for run in runs]
            axes.errorbar(batches, means, (below, above), fmt=".-", color=colour, capsize=2, label=rule)
        axes.set(yscale="log", xlabel="global batch, images (64 a worker)")
        axes.set_xscale("log", base=2)
        axes.set(xticks=[64, 256, 1024, 4096, 16384], yticks=[1, 2, 5, 10, 20, 50, 90])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        axes.minorticks_off()
        axes.set_title(f"{TITLES[optimizer]}, {base:g} at 256", loc="left")
    panels[0].set_ylabel(f"test error after {measured['epochs']} epoch{'s' * (measured['epochs'] > 1)}, %")
    panels[0].legend(title="learning rate", loc="upper left")
    save(figure, folder / "scaling-batch.svg")


def save(figure: Any, path: Path) -> None:
    """Write a picture that does not say when it was made."""
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


PLOTS = {"allreduce": draw_allreduce, "efficiency": draw_efficiency, "batch": draw_batches}


def main(arguments: Sequence[str]) -> int:
    """Draw the plots; the exit code."""
    options = PARSER.parse_args(arguments)
    names = choose(list(PLOTS), options.only)
    common.require("matplotlib", install="pip install -e '.[report]'")
    import matplotlib as mpl

    mpl.use("Agg")
    with mpl.rc_context(STYLE):
        for name in names:
            PLOTS[name](options.folder)
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)

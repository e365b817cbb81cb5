"""Write docs/results.md and its plots from the lines in benchmarks/results/. It measures nothing.

`mnist-dist repeat --record` writes the lines of recipes (with `--split val` those of ablations), `mnist-dist ensemble
--record` those of ensembles, benchmarks/robustness.py those of corrupted test sets. The plots need matplotlib: pip
install -e '.[report]'

examples:
  python benchmarks/results_page.py                         docs/results.md and docs/results-*.svg anew: seconds
  python benchmarks/results_page.py --check                 is the page that of the lines? exit code 1 if not
  python benchmarks/results_page.py --docs /tmp             elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
from common.cli import build_parser, run_script
from common.recorded import read_recorded
from common.result_plots import Plot, stamp_of, to_svg
from common.result_tables import make_page, make_plots
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED
from mnist_dist.utils.files import atomic_write

ROOT = Path(__file__).parents[1]
PAGE = "results.md"
PARSER = build_parser(__file__, __doc__)
PARSER.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the lines")
PARSER.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
PARSER.add_argument("--check", action="store_true", help="write nothing; name what is stale")


def stale_files(page: str, plots: Sequence[Plot], folder: Path) -> list[str]:
    """Names of the files that are missing, or not what the lines give. It needs no matplotlib."""
    found = [] if read(folder / PAGE) == page else [PAGE]
    return found + [plot.file for plot in plots if stamp_of(read(folder / plot.file))[0] != plot.digest]


def read(path: Path) -> str:
    """The text of a file; empty if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(arguments: Sequence[str]) -> int:
    """Write or check the page; the exit code."""
    options = PARSER.parse_args(arguments)
    recorded = read_recorded(options.results)
    page, plots = make_page(recorded), make_plots(recorded)
    if options.check:
        stale = stale_files(page, plots, options.docs)
        print(f"stale: {', '.join(stale)}; run python benchmarks/results_page.py" if stale else "nothing is stale")
        return EXIT_FAILED if stale else EXIT_DONE
    common.require("matplotlib", install="pip install -e '.[report]'")
    for name, text in [*((plot.file, to_svg(plot)) for plot in plots), (PAGE, page)]:
        with atomic_write(options.docs / name) as target:
            target.write_text(text, encoding="utf-8")
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)

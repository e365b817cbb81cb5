"""Write docs/results.md, its plots, and the table in README.md, from the lines in benchmarks/results/.

It measures nothing.

`mnist-dist repeat --record` writes the lines of recipes (with `--split val` those of ablations), `mnist-dist ensemble
--record` those of ensembles, benchmarks/robustness.py those of corrupted test sets. The plots need matplotlib: pip
install -e '.[report]'

examples:
  python benchmarks/results_page.py                         docs/results.md and docs/results-*.svg anew: seconds
  python benchmarks/results_page.py --check                 is the page that of the lines? exit code 1 if not
  python benchmarks/results_page.py --docs /tmp             elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import common
from common.cli import build_parser, run_script
from common.recorded import Recorded, read_recorded
from common.result_plots import Plot, stamp_of, to_svg
from common.result_tables import make_page, make_plots, short_table
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, UserError
from mnist_dist.utils.files import atomic_write

ROOT = Path(__file__).parents[1]
PAGE = "results.md"
BEGIN, END = "<!-- written by benchmarks/results_page.py -->\n", "<!-- end -->\n"
"""Lines around the table in README.md."""
PARSER = build_parser(__file__, __doc__)
PARSER.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the lines")
PARSER.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
PARSER.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file with the short table")
PARSER.add_argument("--check", action="store_true", help="write nothing; name what is stale")


def texts_of(recorded: Recorded, docs: Path, readme: Path) -> dict[Path, str]:
    """The page and README.md as they should be.

    Raises:
        UserError: README.md lacks the lines around the table.
    """
    text = read(readme)
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise UserError(f"{readme}: needs the lines {BEGIN.strip()} and {END.strip()}, for the table between them")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return {docs / PAGE: make_page(recorded), readme: f"{before}{BEGIN}\n{short_table(recorded)}\n{END}{after}"}


def stale_files(texts: Mapping[Path, str], plots: Sequence[Plot], docs: Path) -> list[str]:
    """Names of the files that are missing, or not what the lines give. It needs no matplotlib."""
    found = [path.name for path, text in texts.items() if read(path) != text]
    return found + [plot.file for plot in plots if stamp_of(read(docs / plot.file))[0] != plot.digest]


def read(path: Path) -> str:
    """The text of a file; empty if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(arguments: Sequence[str]) -> int:
    """Write or check the page; the exit code."""
    options = PARSER.parse_args(arguments)
    recorded = read_recorded(options.results)
    texts, plots = texts_of(recorded, options.docs, options.readme), make_plots(recorded)
    if options.check:
        stale = stale_files(texts, plots, options.docs)
        print(f"stale: {', '.join(stale)}; run python benchmarks/results_page.py" if stale else "nothing is stale")
        return EXIT_FAILED if stale else EXIT_DONE
    common.require("matplotlib", install="pip install -e '.[report]'")
    for path, text in [*((options.docs / plot.file, to_svg(plot)) for plot in plots), *texts.items()]:
        with atomic_write(path) as target:
            target.write_text(text, encoding="utf-8")
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)

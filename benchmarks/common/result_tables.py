"""The text of docs/results.md: tables in Markdown, and the plots between them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from common.beyond_tables import mean_shares, robustness_section
from common.corruptions import CORRUPTIONS
from common.markdown import ACCURACY, accuracy_cells, between, duration, joined, optional, percent, short_commit, table
from common.published import PUBLISHED, TARGETS, TUTORIALS, Target
from common.recorded import Difference, Recorded, Variant, describe_changes, describe_recipe, difference
from common.result_plots import Plot, Point, robustness_plot, scatter
from common.robustness_lines import CLEAN
from mnist_dist.tracking.results import Ensemble, Statistics, summarize

TIME, SIZE, ROBUSTNESS = "results-time.svg", "results-parameters.svg", "results-robustness.svg"
INTRODUCTION = """\
# Results

This page is written by `python benchmarks/results_page.py` from the lines in `benchmarks/results/`; a test says when
it is stale. Nothing on it was chosen by the test set:

- **Tuning** is on 55,000 images, judged by 5,000 held-out ones, with seeds from 1000 on (`mnist-dist repeat --split
  val`).
- **Results** are of fresh seeds from 0 on, which all count, with `train.protocol=honest`: the test set is evaluated
  once, after the last step.
- **Statistics.** The interval is the 95 % interval of the mean over seeds, by Student's t distribution; p is
  one-sided, of the mean being above the target. What all seeds share, such as this one test set, is not in them.
- **Training seconds** are the median over the seeds: no start, no evaluation, no checkpoint.

`mnist-dist repeat --config NAME --seeds N --record` trains the seeds and adds their lines: config digest, seed,
accuracy, versions, machine, commit and the SHA-256 of the weights, which the same settings, with the same number of
threads, give again on the same kind of machine.
"""
STALE_NOTE = "\n† The recipe's settings have changed since these runs.\n"


def make_page(recorded: Recorded) -> str:
    """The whole page."""
    plots = {plot.file: plot for plot in make_plots(recorded)}
    sections = [
        INTRODUCTION,
        "## Records\n\n" + records_table(recorded) + picture(plots, TIME) + picture(plots, SIZE),
        "## How they were measured\n\n" + origins_table(recorded),
        "## Beside public figures\n\n" + public_table(recorded),
        "## The tutorials\n\n" + tutorials_table(recorded),
        "## Ensembles\n\n" + ensembles_table(recorded.ensembles),
        "## Ablations\n\n" + ablation_tables(recorded),
        "## Beyond the test set\n\n" + robustness_section(recorded, picture(plots, ROBUSTNESS)),
        "## Searches\n\n" + search_list(recorded),
    ]
    return "\n".join(sections)


def make_plots(recorded: Recorded) -> list[Plot]:
    """The plots that there are figures for."""
    plots = []
    if recorded.records:
        found = {name: variant.statistics for name, variant in recorded.records.items()}
        timed = [point_of(name, each, each.train_seconds) for name, each in found.items()]
        sized = [point_of(name, each, each.parameters) for name, each in found.items()]
        summary = "; ".join(
            f"{name} {percent(1 - each.mean)} in {duration(each.train_seconds)}" for name, each in found.items()
        )
        sizes = "; ".join(f"{name} {percent(1 - each.mean)} with {each.parameters:,}" for name, each in found.items())
        plots = [
            scatter(TIME, f"Test error against training time: {summary}", [*timed, *public("seconds")], "training, s"),
            scatter(SIZE, f"Test error against parameters: {sizes}", [*sized, *public("parameters")], "parameters"),
        ]
    if recorded.robustness:
        shares = {
            recipe: {name: mean_shares(lines, name) for name in (CLEAN, *CORRUPTIONS)}
            for recipe, lines in recorded.robustness.items()
        }
        sizes_of = {name: list(corruption.sizes) for name, corruption in CORRUPTIONS.items()}
        units = {name: f"{corruption.unit}" for name, corruption in CORRUPTIONS.items()}
        alt = f"Test accuracy of {', '.join(shares)} by size of six corruptions; the tables below have the figures"
        plots.append(robustness_plot(ROBUSTNESS, alt, shares, sizes_of, units))
    return plots


def picture(plots: dict[str, Plot], file: str) -> str:
    """The Markdown of a plot, with its alternative text; empty if there is no such plot."""
    return f"\n![{plots[file].alt}]({file})\n" if file in plots else ""


def point_of(name: str, found: Statistics, x: float) -> Point:
    """A recipe on a plot, with the interval of its mean."""
    low, high = found.interval or (found.mean, found.mean)
    return Point(name, x, 1 - found.mean, 1 - min(high, 1), 1 - low)


def public(what: str) -> list[Point]:
    """The public figures: at their place, or as a line across the plot of times if no time is known."""
    points = []
    for each in PUBLISHED:
        x, error = getattr(each, what), 1 - each.accuracy
        if x or (what == "seconds" and each.parameters is None):
            spread = each.deviation or 0
            points.append(Point(each.name, x or 0, error, error - spread, error + spread, is_public=True))
    return points


def records_table(recorded: Recorded) -> str:
    """Accuracy over seeds, and whether the target is met."""
    rows = []
    for name, variant in recorded.records.items():
        target = TARGETS.get(name)
        found = summarize(variant.results, target.accuracy if target else None)
        aim = (
            [describe_target(target), optional("{:.2g}".format, found.p), verdict(target, found)]
            if target
            else [""] * 3
        )
        size, seconds = f"{found.parameters:,}", f"{found.train_seconds:.2f}"
        rows.append([variant.name, size, *accuracy_cells(found), optional(between, found.interval), seconds, *aim])
    headings = ("recipe", "parameters", *ACCURACY, "95 % interval of the mean", "training, s", "target", "p", "met")
    return (table(headings, rows) + stale_note(recorded.records.values())) if rows else "Nothing is recorded yet.\n"


def short_table(recorded: Recorded) -> str:
    """The records in a few columns, for README.md."""
    rows = []
    for name, variant in recorded.records.items():
        found, target = variant.statistics, TARGETS.get(name)
        spread = f"± {percent(found.deviation)}" if found.deviation is not None else ""
        met = "" if target is None else verdict(target, summarize(variant.results, target.accuracy))
        cells = [f"**{percent(found.mean)}** {spread}".strip(), str(found.count), f"{found.parameters:,}"]
        aim = "" if target is None else f"{describe_target(target)}: {met}"
        rows.append([variant.name, *cells, f"{found.train_seconds:.2f}", aim])
    headings = ("recipe", "mean ± deviation over seeds", "seeds", "parameters", "training, s", "target, met?")
    return (table(headings, rows) + stale_note(recorded.records.values())) if rows else "Nothing is recorded yet.\n"


def describe_target(target: Target) -> str:
    """A target in words."""
    further = [f"{target.seeds} seeds"] if target.seeds > 1 else []
    further += [f"p < {target.p:g}"] if target.p else []
    further += [f"< {target.parameters:,} parameters"] if target.parameters else []
    further += [f"< {target.seconds:g} s"] if target.seconds else []
    return ", ".join([f"≥ {percent(target.accuracy)}", *further])


def verdict(target: Target, found: Statistics) -> str:
    """Whether a target is met; otherwise what is missing."""
    missing = {
        "mean": found.mean < target.accuracy,
        "p": target.p is not None and (found.p is None or found.p >= target.p),
        "seeds": found.count < target.seeds,
        "parameters": target.parameters is not None and found.parameters >= target.parameters,
        "time": target.seconds is not None and found.train_seconds >= target.seconds,
    }
    failed = [name for name, is_missing in missing.items() if is_missing]
    return f"no: {', '.join(failed)}" if failed else "yes"


def origins_table(recorded: Recorded) -> str:
    """What each recipe is, and on what it was measured."""
    rows = []
    for name, variant in recorded.records.items():
        results = variant.results
        at_once = {result.concurrent for result in results}
        setup = {f"{each.processes} × {each.threads} threads, {each.precision}" for each in results}
        machine = {
            f"{each.machine.cpu}, {each.machine.cores} cores, {each.machine.memory_gib:g} GiB" for each in results
        }
        alone = "" if at_once == {1} else f"; {max(at_once)} runs at once"
        cells = [describe_recipe(name), joined(machine), joined(setup) + alone]
        cells += [joined({f"torch {each.versions['torch']}" for each in results})]
        cells += [joined({short_commit(each.commit) for each in results}), joined({each.date[:10] for each in results})]
        rows.append([variant.name, *cells])
    headings = ("recipe", "what it is", "machine", "a run", "versions", "commit", "date")
    return table(headings, rows, left=len(headings)) if rows else "Nothing is recorded yet.\n"


def public_table(recorded: Recorded) -> str:
    """What stands in public, beside what was measured here."""
    rows = []
    for each in PUBLISHED:
        variant = recorded.records.get(each.beside)
        own = f"`{each.beside}`: not measured here"
        if variant:
            found = variant.statistics
            seeds = "1 seed" if found.count == 1 else f"mean of {found.count} seeds"
            own = f"`{each.beside}`: {percent(found.mean)}, {seeds}"
        rows.append([percent(each.accuracy), each.how, each.source, own])
    return table(("accuracy", "what it is", "source", "here"), rows, left=4)


def tutorials_table(recorded: Recorded) -> str:
    """The recipes of the tutorials."""
    rows = []
    for name, report in TUTORIALS.items():
        if variant := recorded.records.get(name):
            found, first = variant.statistics, [each.accuracy for each in variant.results if each.seed == 1]
            seed_1 = percent(first[0]) if first else ""
            rows.append([variant.name, report, *accuracy_cells(found), seed_1])
    headings = ("recipe", "its tutorial reports", *ACCURACY, "seed 1")
    text = (
        "The recipes `seeds/*` are the five tutorials that this package grew from, with their own hyperparameters.\n\n"
    )
    return text + (table(headings, rows, left=2) if rows else "They are not measured here yet.\n")


def ensembles_table(ensembles: Sequence[Ensemble]) -> str:
    """Ensembles: all members count."""
    rows = []
    for each in ensembles:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(each.recipes))
        members = [str(len(each.seeds)), percent(statistics.fmean(each.accuracies)), percent(max(each.accuracies))]
        rows.append([names, *members, f"**{percent(each.accuracy)}**", short_commit(each.commit), each.date[:10]])
    headings = ("recipe", "members", "their mean", "their best", "ensemble", "commit", "date")
    text = "The members' probabilities are averaged (`mnist-dist ensemble RUN...`); no run of a recipe is left out.\n\n"
    return text + (table(headings, rows) if rows else "None is recorded yet.\n")


def ablation_tables(recorded: Recorded) -> str:
    """One table a recipe: each change alone, on the validation split."""
    text = (
        "One change at a time, on the held-out images, with seeds from 1000 on. The difference is that to the recipe "
        "as it is, in percentage points, paired by seed; where its interval holds 0, neither is known to be better. "
        "Where the recipe takes too long, all rows have fewer epochs.\n"
    )
    for recipe, variants in recorded.ablations.items():
        base = recorded.bases[recipe]
        found, common = base.statistics, describe_changes(base.changes)
        first = f"as it is{f', with {common}' if common else ''}{'' if base.is_current else ' †'}"
        rows = [[first, str(found.count), percent(found.mean), "", ""]]
        for variant in sorted(variants, key=lambda each: each.change):
            count, mean, reach = difference_cells(difference(variant, base))
            change = {key: value for key, value in variant.changes.items() if key not in base.changes}
            name = describe_changes(change) + ("" if variant.is_current else " †")
            rows.append([name, count, percent(variant.statistics.mean), mean, reach])
        text += f"\n### {recipe}\n\n" + table(("change", "seeds", "mean", "difference", "95 % interval"), rows)
        text += stale_note([base, *variants])
    return text if recorded.ablations else text + "\nNone is recorded yet.\n"


def difference_cells(found: Difference | None) -> tuple[str, str, str]:
    """Seeds, mean and interval of a difference."""
    if found is None:
        return "0", "no seeds in common", ""
    reach = f"{100 * found.interval[0]:+.3f} to {100 * found.interval[1]:+.3f}" if found.interval else ""
    return str(found.seeds), f"{100 * found.mean:+.3f}", reach


def search_list(recorded: Recorded) -> str:
    """The logs of searches, by name."""
    text = "What was tried on the way, with its seeds and results; what did not help stays in:\n\n"
    names = [f"- `benchmarks/results/search/{path.name}`\n" for path in recorded.searches]
    return text + "".join(names) if names else "No search is recorded yet.\n"


def stale_note(variants: Iterable[Variant]) -> str:
    """What the mark means, if one of them has it."""
    return STALE_NOTE if any(not variant.is_current for variant in variants) else ""

"""docs/results.md and its plots are those of the recorded lines, and say what these say."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import results_page
from common.beyond_tables import mean_errors, mean_shares
from common.corruptions import CORRUPTIONS
from common.published import Target
from common.recorded import Recorded, difference, read_recorded
from common.result_plots import Plot, Point, place_labels, stamp_of, to_svg
from common.result_tables import TIME, make_page, make_plots, verdict
from common.robustness_lines import Robustness, record_robustness
from mnist_dist.config.digest import config_sha256
from mnist_dist.config.schema import Config
from mnist_dist.tracking.results import ENSEMBLES, Ensemble, Machine, Result, add_line, add_result, summarize
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, UserError

ROOT = Path(__file__).parents[2]


def result(recipe: str, seed: int, correct: int, **other: Any) -> Result:
    """A recorded run of a recipe as it is now; with `changes` and the split that are given."""
    changes = other.pop("changes", {})
    split = other.pop("split", "test")
    held_out = {"data.val_size": 5000} if split == "val" else {}
    return Result(
        recipe=recipe,
        changes=changes,
        config_sha256=other.pop("config_sha256", config_sha256(Config.from_recipe(recipe, changes | held_out))),
        seed=seed,
        split=split,
        accuracy=correct / 10000,
        loss=0.03,
        count=10000,
        correct=correct,
        parameters=25000,
        train_seconds=other.pop("train_seconds", 0.75),
        epochs=1,
        steps=118,
        processes=1,
        threads=2,
        precision=other.pop("precision", "bf16"),
        weights_sha256=f"{seed:064x}",
        train_sha256="a" * 64,
        test_sha256="b" * 64,
        versions={"python": "3.11.9", "torch": "2.14.1", "accelerate": "1.15.0", "mnist_dist": "0.2.0"},
        machine=Machine("A processor", 2, 7.8),
        concurrent=1,
        commit="c" * 40,
        date=other.pop("date", "2026-11-26T06:00:00Z"),
        protocol="honest",
    )


def robustness(recipe: str, seed: int, least: int, precision: str = "bf16") -> Robustness:
    """A line whose counts fall from 9900 by severity, down to `least`."""
    names = {name: list(map(float, each.sizes)) for name, each in CORRUPTIONS.items()}
    falling = [9900 - (9900 - least) * severity // 5 for severity in range(1, 6)]
    return Robustness(
        recipe=recipe,
        config_sha256=config_sha256(Config.from_recipe(recipe)),
        seed=seed,
        weights_sha256="d" * 64,
        test_sha256="b" * 64,
        precision=precision,
        count=10000,
        sizes={"clean": [0.0]} | names,
        correct={"clean": [9900]} | dict.fromkeys(names, falling),
        calibration_error={"clean": [0.09]} | {name: [0.1, 0.11, 0.12 + seed / 100, 0.13, 0.14] for name in names},
        versions={"torch": "2.14.1"},
        commit="c" * 40,
        date="2026-11-26T06:00:00Z",
    )


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A folder of results: two recipes, an ablation, Fashion-MNIST, an ensemble, robustness, a log of a search."""
    folder = tmp_path / "results"
    recipes = folder / "recipes"
    for seed in range(3):
        add_result(recipes, result("speed99", seed, 9905 + seed))
        add_result(recipes, result("seeds/convnet", seed, 9780 + 10 * seed))
        add_result(recipes, result("seeds/adam", seed, 9700, changes={"train.eval_steps": 0}))
        add_result(recipes, result("speed99", seed, 8800, changes={"data.name": "fashion"}))
        add_result(recipes, result("speed99", 1000 + seed, 9900, split="val"))
        worse = 9890 - seed
        add_result(recipes, result("speed99", 1000 + seed, worse, split="val", changes={"optim.label_smoothing": 0.0}))
        record_robustness(folder / "robustness", robustness("speed99", seed, 5000 + 1000 * seed))
    ensemble = Ensemble(
        recipes=["speed99"] * 3,
        seeds=[0, 1, 2],
        config_sha256=["e" * 64] * 3,
        weights_sha256=["1", "2", "3"],
        accuracies=[0.9905, 0.9906, 0.9907],
        accuracy=0.9923,
        loss=0.02,
        count=10000,
        correct=9923,
        test_sha256="b" * 64,
        versions={"torch": "2.14.1"},
        commit="c" * 40,
        date="2026-11-26T06:00:00Z",
    )
    add_line(recipes / ENSEMBLES, ensemble, [])
    (folder / "search").mkdir()
    (folder / "search" / "speed99.md").write_text("# What was tried\n")
    return folder


def row(page: str, start: str) -> list[str]:
    """The cells of the only row that starts so."""
    (found,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def section(page: str, heading: str) -> str:
    """A part of the page, up to the next heading of the second level."""
    return page.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_the_page_of_this_repository_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert results_page.main(["--check"]) == EXIT_DONE, capsys.readouterr().out


def test_the_plots_of_this_repository_are_what_this_matplotlib_draws() -> None:
    """Another version may draw other bytes of the same figures: then only the digest is compared, above."""
    mpl = pytest.importorskip("matplotlib")
    for plot in make_plots(read_recorded(ROOT / "benchmarks" / "results")):
        svg = (ROOT / "docs" / plot.file).read_text()
        if stamp_of(svg)[1] == mpl.__version__:
            assert to_svg(plot) == svg


def test_records_have_their_statistics_and_target(lines: Path) -> None:
    records = section(make_page(read_recorded(lines)), "Records")
    cells = row(records, "`speed99`")
    assert cells[:7] == ["`speed99`", "25,000", "3", "**99.06 %**", "0.010 %", "99.05 %", "99.07 %"]
    low, high = summarize([result("speed99", seed, 9905 + seed) for seed in range(3)]).interval or (0, 0)
    assert cells[7] == f"{100 * low:.2f} to {100 * high:.2f} %"
    assert cells[8:10] == ["0.75", "≥ 99.00 %, 30 seeds, p < 0.01"]
    assert float(cells[10]) == pytest.approx(0.0046, abs=1e-4)
    assert cells[11] == "no: seeds"
    assert row(records, "`seeds/convnet`")[9:] == ["", "", ""]


def test_a_recipe_that_changed_since_is_marked(lines: Path) -> None:
    for seed in range(2):
        changed = result("seeds/convnet", seed, 9999, config_sha256="f" * 64, date="2026-12-01T00:00:00Z")
        add_result(lines / "recipes", changed)
    page = make_page(read_recorded(lines))
    assert row(section(page, "Records"), "`seeds/convnet` †")[2:4] == ["2", "**99.99 %**"]
    assert "† The recipe's settings have changed since" in section(page, "Records")
    assert "†" not in section(page, "Ablations")


def test_runs_of_another_precision_are_not_in_one_mean(lines: Path) -> None:
    """train.precision=auto is fp32 where the processor has no bf16, with the same digest."""
    later = result("seeds/convnet", 0, 9999, precision="fp32", date="2026-12-01T00:00:00Z")
    assert add_result(lines / "recipes", later)
    page = make_page(read_recorded(lines))
    assert row(section(page, "Records"), "`seeds/convnet`")[2:4] == ["1", "**99.99 %**"]


def test_robustness_is_also_of_a_run_with_other_evaluations_than_the_recorded_ones(lines: Path) -> None:
    record_robustness(lines / "robustness", robustness("seeds/adam", 0, 5000))
    assert [line.seed for line in read_recorded(lines).robustness["seeds/adam"]] == [0]
    record_robustness(lines / "robustness", robustness("seeds/convnet", 0, 5000, precision="fp32"))  # recorded in bf16
    assert "seeds/convnet" not in read_recorded(lines).robustness


def test_verdicts_name_all_that_is_missing() -> None:
    found = summarize([result("speed99", seed, 9905 + seed) for seed in range(3)], 0.99)
    assert verdict(Target(0.99, 3, p=0.01), found) == "yes"
    every = Target(0.995, 4, p=0.001, parameters=25000, seconds=0.75)
    assert verdict(every, replace(found, p=0.5)) == "no: mean, p, seeds, parameters, time"


def test_the_tutorials_stand_beside_what_they_report(lines: Path) -> None:
    page = make_page(read_recorded(lines))
    assert row(section(page, "The tutorials"), "`seeds/adam`")[2:4] == ["3", "**97.00 %**"]
    assert row(section(page, "The tutorials"), "`seeds/convnet`") == [
        *("`seeds/convnet`", "97.97 %, seed 1", "3", "**97.90 %**", "0.100 %", "97.80 %", "98.00 %", "97.90 %")
    ]


def test_differences_are_paired_by_seed(lines: Path) -> None:
    recorded = read_recorded(lines)
    (variant,) = recorded.ablations["speed99"]
    base = recorded.bases["speed99"]
    found = difference(variant, base)
    assert found is not None
    assert found.seeds == 3
    assert found.mean == pytest.approx(-0.0011)
    # The same, after a seed was left out of one side: only pairs count.
    fewer = difference(variant, replace(base, results=base.results[1:]))
    assert fewer is not None
    assert (fewer.seeds, fewer.mean) == (2, pytest.approx(-0.00115))
    assert difference(variant, replace(base, results=[])) is None
    cells = row(section(make_page(recorded), "Ablations"), "`optim.label_smoothing=0.0`")
    assert cells[1:4] == ["3", "98.89 %", "-0.110"]
    assert cells[4].startswith("-0.135 to -0.085")


def test_ablations_of_a_shorter_recipe_are_compared_with_it(lines: Path) -> None:
    fewer: dict[str, Any] = {"train.epochs": 10}
    changes = ({}, {"data.shift": 0.0}, {"optim.betas": [0.9, 0.999]})
    for correct, change in zip((9960, 9950, 9955), changes, strict=True):
        add_result(lines / "recipes", result("strong", 1000, correct, split="val", changes=fewer | change))
    page = section(make_page(read_recorded(lines)), "Ablations")
    assert row(page, "as it is, with `train.epochs=10`")[1:3] == ["1", "99.60 %"]
    assert row(page, "`data.shift=0.0`")[1:4] == ["1", "99.50 %", "-0.100"]
    assert row(page, "`optim.betas=[0.9, 0.999]`")[1:4] == ["1", "99.55 %", "-0.050"]
    # A change of the full recipe alone: nothing that all have in common.
    add_result(lines / "recipes", result("strong", 1000, 9000, split="val", changes={"data.scale": 0.0}))
    assert "### strong" not in section(make_page(read_recorded(lines)), "Ablations")


def test_ensembles_searches_fashion_and_public_figures_are_there(lines: Path) -> None:
    page = make_page(read_recorded(lines))
    assert row(section(page, "Ensembles"), "`speed99`")[1:5] == ["3", "99.06 %", "99.07 %", "**99.23 %**"]
    assert "`benchmarks/results/search/speed99.md`" in section(page, "Searches")
    fashion = section(page, "Beyond the test set").split("### Fashion-MNIST")[1]
    assert row(fashion, "`speed99`")[1:3] == ["3", "**88.00 %**"]
    assert "`speed99`: 99.06 %, mean of 3 seeds" in section(page, "Beside public figures")
    assert "`strong`: not measured here" in section(page, "Beside public figures")


def test_robustness_is_the_mean_over_seeds(lines: Path) -> None:
    recorded = read_recorded(lines)
    runs = recorded.robustness["speed99"]
    assert mean_shares(runs, "blur")[-1] == pytest.approx(0.6)
    assert mean_errors(runs, "blur")[2] == pytest.approx(0.13)
    beyond = section(make_page(recorded), "Beyond the test set")
    blur = beyond.split("### blur\n")[1].split("### ")[0]
    assert row(blur, "`speed99`")[1:3] == ["3", "99.00 %"]
    assert row(blur, "`speed99`")[-1] == "60.00 %"
    assert row(beyond.split("### Calibration")[1].split("### ")[0], "`speed99`")[2:4] == ["9.00", "13.00"]


def test_a_run_that_is_measured_again_replaces_its_line(lines: Path) -> None:
    record_robustness(lines / "robustness", robustness("speed99", 1, 1000))
    assert [run.correct["blur"][-1] for run in read_recorded(lines).robustness["speed99"]] == [5000, 1000, 7000]


def test_robustness_of_other_settings_than_the_record_is_left_out(lines: Path) -> None:
    other = replace(robustness("speed99", 7, 0), config_sha256="f" * 64)
    record_robustness(lines / "robustness", other)
    assert [run.seed for run in read_recorded(lines).robustness["speed99"]] == [0, 1, 2]


def test_a_recipe_that_leaves_the_precision_to_the_machine_is_the_one_that_named_it(lines: Path) -> None:
    """Recipes named the precision before; the runs are the same."""
    named = config_sha256(Config.from_recipe("speed99", {"train.precision": "bf16"}))
    assert named != config_sha256(Config.from_recipe("speed99"))
    for seed in range(3):
        newer = result("speed99", seed, 9906, config_sha256=named, date="2026-12-01T00:00:00Z")
        add_result(lines / "recipes", newer)
    recorded = read_recorded(lines)
    assert recorded.records["speed99"].results[0].config_sha256 == named
    assert recorded.records["speed99"].is_current
    assert [run.seed for run in recorded.robustness["speed99"]] == [0, 1, 2]


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = make_page(read_recorded(tmp_path))
    assert "Nothing is recorded yet." in section(page, "Records")
    assert "Not measured here." in section(page, "Beyond the test set")
    assert make_plots(read_recorded(tmp_path)) == []


def test_a_line_that_is_none_is_named(lines: Path) -> None:
    with (lines / "robustness" / "speed99.jsonl").open("a") as file:
        file.write('{"recipe": "speed99"}\n')
    with pytest.raises(UserError, match=r"speed99\.jsonl:4: "):
        read_recorded(lines)


@pytest.fixture
def docs(lines: Path, tmp_path: Path) -> Path:
    """The page and plots of the lines."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "README.md").write_text(f"# Before\n{results_page.BEGIN}{results_page.END}after\n")
    assert results_page.main(arguments_of(lines, folder)) == EXIT_DONE
    return folder


def arguments_of(lines: Path, docs: Path) -> list[str]:
    """Of results_page, with README.md beside the page."""
    return ["--results", str(lines), "--docs", str(docs), "--readme", str(docs / "README.md")]


def check(lines: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What --check says."""
    capsys.readouterr()
    return results_page.main([*arguments_of(lines, docs), "--check"]), capsys.readouterr().out


def test_a_new_line_makes_page_and_plots_stale(lines: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(lines, docs, capsys) == (EXIT_DONE, "nothing is stale\n")
    add_result(lines / "recipes", result("speed99", 3, 9950))
    code, said = check(lines, docs, capsys)
    assert code == EXIT_FAILED
    files = "results.md, README.md, results-time.svg, results-parameters.svg"
    assert said == f"stale: {files}; run python benchmarks/results_page.py\n"


def test_an_edited_page_and_a_missing_plot_are_stale(
    lines: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = docs / "results.md"
    page.write_text(page.read_text().replace("99.06", "99.96"))
    (docs / TIME).unlink()
    assert check(lines, docs, capsys)[1].startswith("stale: results.md, results-time.svg;")


def test_the_records_are_in_the_readme(lines: Path, docs: Path) -> None:
    before, found = (docs / "README.md").read_text().split(results_page.BEGIN)
    written, after = found.split(results_page.END)
    assert (before, after) == ("# Before\n", "after\n")
    cells = ["`speed99`", "**99.06 %** ± 0.010 %", "3", "25,000", "0.75", "≥ 99.00 %, 30 seeds, p < 0.01: no: seeds"]
    assert row(written, "`speed99`") == cells
    assert "`seeds/convnet`" in written


def test_a_readme_without_a_place_for_the_table_is_named(lines: Path, docs: Path) -> None:
    (docs / "README.md").write_text("text\n")
    with pytest.raises(UserError, match=r"README\.md: needs the lines "):
        results_page.main(arguments_of(lines, docs))


def plots_of(recorded: Recorded) -> list[Plot]:
    """All three plots."""
    plots = make_plots(recorded)
    assert len(plots) == 3
    return plots


def test_plots_are_the_same_each_time_and_say_nothing_of_the_day(lines: Path) -> None:
    pytest.importorskip("matplotlib")
    for first, second in zip(plots_of(read_recorded(lines)), plots_of(read_recorded(lines)), strict=True):
        svg = to_svg(first)
        assert svg == to_svg(second)
        assert "<dc:date>" not in svg
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_plots_have_an_alternative_text_and_colours_for_dark_pages(lines: Path, docs: Path) -> None:
    page = (docs / "results.md").read_text()
    for plot in plots_of(read_recorded(lines)):
        assert f"![{plot.alt}]({plot.file})" in page
        assert "speed99" in plot.alt
        svg = (docs / plot.file).read_text()
        assert svg.count("@media (prefers-color-scheme: dark)") == 1
        assert "fill: #ffffff" in svg  # the paper, which the rules for dark pages change with the ink
        assert '[style*="fill: #ffffff"]{fill:#0d1117!important}' in svg


def test_public_points_are_on_the_plots(lines: Path) -> None:
    pytest.importorskip("matplotlib")
    time, size, _ = (to_svg(plot) for plot in plots_of(read_recorded(lines)))
    assert "train_mnist_fast" in time
    assert "simple CNNs, ensemble" in time
    assert "Parameter-Efficient-MNIST" in size
    assert "train_mnist_fast" not in size


def test_names_of_points_cover_no_other_name() -> None:
    """Four points in one place: each name on a side of its own. A point at the right end has its name on the left."""
    crowd = [Point("name", 1.0, 0.01, 0.01, 0.01)] * 4
    far = [Point("first", 0.1, 0.02, 0.02, 0.02), Point("a rather long name", 100.0, 0.005, 0.005, 0.005)]
    places = place_labels([*crowd, *far])
    assert len({(*place["xytext"], place["ha"]) for place in places[:4]}) == 4
    assert places[-1]["ha"] == "right"


def test_the_lines_are_those_of_the_fields(lines: Path, tmp_path: Path) -> None:
    """A copy of the folder elsewhere gives the same page: nothing of the path is in it."""
    shutil.copytree(lines, tmp_path / "copy")
    assert make_page(read_recorded(tmp_path / "copy")) == make_page(read_recorded(lines))
    assert set(asdict(robustness("speed99", 0, 0))) >= {"sizes", "correct", "calibration_error", "precision"}

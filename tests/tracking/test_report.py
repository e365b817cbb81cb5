"""The report: all is in one file, what comes from a run is escaped, damaged runs are shown as far as they go."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from kept_run import KEPT, copy_kept_run

from mnist_dist.__main__ import main
from mnist_dist.tracking.media import Example
from mnist_dist.tracking.report import ModelView, render
from mnist_dist.tracking.run_record import read_record
from mnist_dist.training.model_view import draw_filters
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER

draw_curves = pytest.importorskip("mnist_dist.tracking.report_figures", reason="needs the extra `report`").draw_curves


class Page(HTMLParser):
    """The parts of a page that the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


def test_one_run_has_all_sections_and_needs_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_kept_run(tmp_path))
    assert main(["report", "run"]) == EXIT_DONE
    assert capsys.readouterr().out == "written: run/report.html\n"
    text = (tmp_path / "run" / "report.html").read_text()
    page = Page(text)
    for heading in ("Results", "Curves", "By time", "Classes", "Feature maps", "Filters", "Layers", "Environment"):
        assert heading in page.text
    assert "100.00%" in "".join(page.text)
    summary = json.loads((KEPT / "summary.json").read_text())
    assert summary["weights_sha256"] in text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "xlink:href") if attrs.get(name)]
    assert links
    assert all(link and link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids()) == len(set(page.ids()))
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert {link[1:] for link in links if link and link.startswith("#")} <= set(page.ids())


def test_several_runs_lie_over_each_other_and_what_differs_comes_first(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(KEPT, tmp_path / name)
    settings = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    settings["optim"]["lr"] = 0.125
    (tmp_path / "two" / "config.yaml").write_text(yaml.safe_dump(settings))
    records = [read_record(tmp_path / name) for name in ("one", "two")]
    text = render(records, [ModelView(), ModelView()])
    assert text.index("What differs") < text.index("By step")
    table = text[text.index("Settings that are not the same") : text.index("By step")]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["optim.lr"]
    assert "0.125" in table
    page = Page(text)
    assert len(page.ids()) == len(set(page.ids()))
    assert re.findall(r"</svg>(.*?)</li>", text[: text.index("By step")]) == ["one", "two", "train", "test"]
    last = read_record(tmp_path / "two").series("train.loss")[1][-1]
    assert f"two train {last:.4g}" in next(attrs["aria-label"] or "" for _, attrs in page.tags if is_loss(attrs))


def is_loss(attrs: dict[str, str | None]) -> bool:
    """Whether attributes are those of the chart of the loss."""
    return (attrs.get("aria-label") or "").startswith("Line chart of loss by step")


def test_a_curve_that_reaches_zero_is_drawn_down_to_it(tmp_path: Path) -> None:
    """On a logarithmic axis it would fall out of the picture; the numbers at the axis are plain ones."""
    shutil.copytree(KEPT, tmp_path / "run")
    rows = [{"step": step, "train.accuracy": right} for step, right in ((1, 0.5), (2, 0.9), (3, 1.0))]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = draw_curves([read_record(tmp_path / "run")], by_time=False)[0]
    assert error.text == "train 0"
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", error.svg)
    assert "0" in labels
    assert "10" in labels
    height = float(re.findall(r'viewBox="0 0 \S+ (\S+)"', error.svg)[0])
    points = re.findall(r"[ML] (\S+) (\S+)", max(re.findall(r'd="(M[^"]*L[^"]*L[^"]*)"', error.svg), key=len))
    assert points
    assert all(0 <= float(y) <= height for _, y in points)


def test_no_figure_has_a_ground_of_its_own(tmp_path: Path) -> None:
    """The page is dark where its reader's system is, and so is the ground of the figures, whose text is light then."""
    shutil.copytree(KEPT, tmp_path / "run")
    text = render([read_record(tmp_path / "run")], [ModelView()])
    assert text.count("<svg") >= 9
    assert "fill: #ffffff" not in text


def test_of_many_filters_the_first_are_shown() -> None:
    caption, picture = draw_filters("conv", torch.rand(64, 32, 3, 3))
    assert caption == "conv, the first 8 of 64"
    assert picture.shape == (8 * 4, 32 * 4)
    assert draw_filters("conv", torch.rand(4, 2, 3, 3))[0] == "conv"


def test_what_comes_from_a_run_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)"
    shutil.copytree(KEPT, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["data"]["classes"] = [f"<b>{label}" for label in range(10)]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    image = np.zeros((28, 28), np.uint8)
    mistake = Example(3, image, 1, 2, tuple([0.05] * 9 + [0.55]), 2.0)
    text = render([read_record(folder)], [ModelView(mistakes=(mistake,))])
    assert "<script>" not in text
    assert "<b>" not in text
    assert "predicted &lt;b&gt;2" in text
    assert "55.00 %" in text


@pytest.mark.parametrize("missing", ["summary.json", "metrics.jsonl", "config.yaml", "checkpoints"])
def test_a_run_without_one_of_its_files_has_a_report(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(KEPT, folder)
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "How to reproduce it" in render([read_record(folder)], [ModelView()])


def test_many_classes_and_one_class_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(KEPT, folder)
    summary = json.loads((folder / "summary.json").read_text())
    confusion = torch.eye(47, dtype=torch.int64) * 3
    confusion[40, 2] = 9
    summary["test.confusion"] = confusion.tolist()
    (folder / "summary.json").write_text(json.dumps(summary))
    text = render([read_record(folder)], [ModelView()])
    assert re.search(r"<td>40</td><td>2</td><td class=\"number\">9</td>", text)


def test_the_matrix_of_more_than_a_hundred_classes_is_made_of_its_cells(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(KEPT, folder)
    summary = json.loads((folder / "summary.json").read_text())
    del summary["test.confusion"]
    (folder / "metrics.jsonl").unlink()  # its rows have matrices
    cells = [[label, label, 3] for label in range(120) if label != 7] + [[40, 2, 9]]
    summary |= {"test.confusion_cells": cells, "test.recall": [1.0] * 120}
    (folder / "summary.json").write_text(json.dumps(summary))
    text = render([read_record(folder)], [ModelView()])
    assert re.search(r"<td>40</td><td>2</td><td class=\"number\">9</td>", text)
    assert "Confusion on the test set" in text
    rows = re.findall(r'<th scope="row">(\d+)</th><td class="number">(\d+)</td><td class="number">(.*?)</td>', text)
    assert [row for row in rows if row[0] in ("2", "7", "40")] == [
        ("2", "3", "25.00%"),
        ("7", "0", "-"),
        ("40", "12", "100.00%"),
    ]
    assert "confusion_cells" not in text
    (folder / "summary.json").write_text(json.dumps(summary | {"test.confusion_cells": [[500, 0, 1], "damaged"]}))
    assert "Confusion on the test set" not in render([read_record(folder)], [ModelView()])


def test_the_classes_are_named_by_the_data_set(tmp_path: Path) -> None:
    shutil.copytree(KEPT, tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["data"] |= {"name": "fashion", "classes": []}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    assert '<th scope="row">Ankle boot</th>' in render([read_record(tmp_path / "run")], [ModelView()])


def test_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_kept_run(tmp_path))
    (tmp_path / "empty").mkdir()
    for arguments, what in (
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: holds no run"),
        (["run", "--out", "run/config.yaml/x.html"], "cannot be written"),
    ):
        assert main(["report", *arguments]) == EXIT_USER
        assert what in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree("digits")
    assert main(["report", "run"]) == EXIT_DONE
    assert "the report has no pictures of this run's model" in capsys.readouterr().err

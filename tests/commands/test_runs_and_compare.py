"""`mnist-dist runs` and `mnist-dist compare`: what they say of folders of runs, also of runs that never finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kept_run import KEPT

from mnist_dist.__main__ import main
from mnist_dist.checkpoint.run_lock import RunLock
from mnist_dist.commands.nearest_recipe import nearest_recipe
from mnist_dist.config.loader import load
from mnist_dist.config.schema import flat
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER

Json = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with `runs/one` and `runs/two`, the same run twice."""
    for name in ("one", "two"):
        shutil.copytree(KEPT, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def json_of(capsys: pytest.CaptureFixture[str]) -> Json:
    """Runs a command with --json, and returns what it prints."""

    def run(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) == EXIT_DONE
        return json.loads(capsys.readouterr().out)

    return run


def change_summary(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {key.replace("_", ".", 1): value for key, value in values.items()})
    )


def change_config(folder: Path, section: str, **values: Any) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings[section] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def change_rows(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# runs


def test_runs_tells_state_step_accuracy_and_what_differs(runs: Path, json_of: Json) -> None:
    change_config(runs / "two", "optim", lr=0.5)
    change_rows(runs / "two", lambda row: row.update(time=row["time"] + 1))
    (runs / "two" / "summary.json").unlink()
    shutil.copytree(runs / "two", runs / "sweep" / "three")
    shutil.rmtree(runs / "sweep" / "three" / "checkpoints")
    change_rows(runs / "sweep" / "three", lambda row: row.update(time=row["time"] + 1))
    one, two, three = json_of("runs")
    assert [line["run"] for line in (one, two, three)] == ["runs/one", "runs/two", "runs/sweep/three"]
    assert [line["state"] for line in (one, two, three)] == ["finished", "unfinished", "unfinished"]
    assert [line["step"] for line in (one, two, three)] == [6, 6, 6]
    assert [line["differs"] for line in (one, two, three)] == [{}, {"optim.lr": 0.5}, {"optim.lr": 0.5}]
    assert one["accuracy"] == 1.0
    assert one["processes"] == 1
    assert "changed" in one["recipe"]


def test_a_run_in_progress_is_running(runs: Path, json_of: Json) -> None:
    lock = RunLock()
    with lock:
        lock.acquire(runs / "one", print)
        lock.mark_started()
        assert [line["state"] for line in json_of("runs", "runs/one")] == ["running"]


def test_runs_are_sorted_and_those_without_a_value_come_last(runs: Path, json_of: Json) -> None:
    shutil.copytree(runs / "one", runs / "none")
    for name in ("summary.json", "metrics.jsonl"):
        (runs / "none" / name).unlink()
    change_summary(runs / "two", test_accuracy=0.5)
    names = [line["run"] for line in json_of("runs", "--sort", "accuracy")]
    assert names == ["runs/one", "runs/two", "runs/none"]
    assert [line["run"] for line in json_of("runs", "--sort", "name")] == ["runs/none", "runs/one", "runs/two"]


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_table_fits(
    runs: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    change_config(runs / "two", "optim", lr=0.5)
    assert main(["runs"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert "optim.lr=0.5" in "".join(lines)


def test_a_long_value_is_cut_in_tables_only(runs: Path, json_of: Json, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class {number}" for number in range(150)]
    change_config(runs / "two", "data", name="idx", classes=names)
    for command in (["runs"], ["compare", "runs/one", "runs/two"]):
        assert main(command) == EXIT_DONE
        assert "class 149" not in capsys.readouterr().out
    assert json_of("runs")[1]["differs"]["data.classes"] == names


@pytest.mark.parametrize(
    ("folder", "what"),
    [("nothing", "no such folder"), ("runs/one/config.yaml", "is a file"), ("empty", "holds no run")],
)
def test_no_run_is_one_line(runs: Path, folder: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    (runs.parent / "empty").mkdir()
    assert main(["runs", folder]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert folder in line
    assert what in line


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "metrics.jsonl"])
def test_a_damaged_file_counts_as_missing(runs: Path, name: str, damage: bytes, json_of: Json) -> None:
    (runs / "two" / name).write_bytes(damage)
    assert {line["run"] for line in json_of("runs")} == {"runs/one", "runs/two"}
    assert json_of("compare", "runs/one", "runs/two")["rows"]["compared"] == (0 if name == "metrics.jsonl" else 36)


def test_the_nearest_recipe_is_the_one_with_the_fewest_changes() -> None:
    config = flat(load(["--config=speed99", "--run.seed=7", "--run.dir=x", "--tracking.mode=offline"]).config)
    assert nearest_recipe(config) == "speed99"
    assert nearest_recipe(config | {"optim.lr": 9.0}) == "speed99, 1 changed"
    assert nearest_recipe({}) == "-"


# compare


def test_equal_runs_are_equal_in_all(runs: Path, json_of: Json, capsys: pytest.CaptureFixture[str]) -> None:
    change_rows(runs / "two", lambda row: row.update(time=0.0, step_seconds=9.0))
    change_summary(runs / "two", train_seconds=99.0, train_images_per_second=1.0)
    found = json_of("compare", "runs/one", "runs/two")
    assert found["settings"] == found["data"] == found["versions"] == found["results"] == {}
    assert found["rows"] == {"compared": 36, "equal": 36, "first": None}
    assert found["weights"] == {"final": True, "same_steps": [6], "other_steps": []}
    assert main(["compare", "runs/one", "runs/two"]) == EXIT_DONE
    assert "weights: the same bits; checkpoints: the same at step 6" in capsys.readouterr().out


def test_it_says_from_which_step_on_two_runs_differ(
    runs: Path, json_of: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["step"] == 6 and "train.loss" in row:
            row["train.loss"] += 1

    change_rows(runs / "two", change)
    change_config(runs / "two", "run", seed=5)
    change_summary(runs / "two", versions_torch="9.9")
    path = runs / "two" / "summary.json"
    path.write_text(path.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    manifest = runs / "two" / "checkpoints/step-00000006/manifest.json"
    found = json.loads(manifest.read_text())
    found["files"]["model.safetensors"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(found))
    found = json_of("compare", "runs/one", "runs/two")
    assert found["settings"] == {"run.seed": [0, 5]}
    assert found["versions"]["versions.torch"][1] == "9.9"
    assert found["rows"]["first"]["step"] == 6
    assert found["rows"]["first"]["key"] == "train.loss"
    assert found["weights"] == {"final": False, "same_steps": [], "other_steps": [6]}
    assert main(["compare", "runs/one", "runs/two"]) == EXIT_DONE
    assert "from step 6 on they differ (train.loss:" in " ".join(capsys.readouterr().out.split())


def test_a_setting_that_a_run_does_not_know_has_its_default(runs: Path, json_of: Json) -> None:
    settings = yaml.safe_load((runs / "two" / "config.yaml").read_text())
    for key in ("label_smoothing", "clip"):
        del settings["optim"][key]
    settings["run"] |= {"resume": "never", "dir": "elsewhere"}
    (runs / "two" / "config.yaml").write_text(yaml.safe_dump(settings))
    assert json_of("compare", "runs/one", "runs/two")["settings"] == {}
    assert [line["differs"] for line in json_of("runs")] == [{}, {}]


def test_classes_that_are_named_as_the_data_set_names_them_are_no_difference(runs: Path, json_of: Json) -> None:
    """Version 0.1.0 wrote the ten digits into config.yaml; later ones leave them to the data set."""
    change_config(runs / "two", "data", name="mnist", classes=[])
    assert json_of("compare", "runs/one", "runs/two")["settings"] == {}
    assert [line["differs"] for line in json_of("runs")] == [{}, {}]
    change_config(runs / "two", "data", classes=list("abcdefghij"))
    assert json_of("compare", "runs/one", "runs/two")["settings"] == {"data.classes": [[], list("abcdefghij")]}


def test_last_is_the_newest_run(runs: Path, json_of: Json) -> None:
    change_config(runs / "two", "optim", lr=0.5)
    os.utime(runs / "one" / "config.yaml", (1, 1))
    assert json_of("compare", "runs/one", "last")["settings"] == {"optim.lr": [0.05, 0.5]}
    assert json_of("compare", "last", "last")["settings"] == {}
    assert [line["run"] for line in json_of("runs", "last")] == ["runs/two"]


def test_a_folder_that_only_looks_like_a_checkpoint_is_none(runs: Path, json_of: Json) -> None:
    (runs / "one" / "checkpoints" / "step-\N{SUPERSCRIPT TWO}").mkdir()
    (runs / "one" / "checkpoints" / "step-00000009.partial").mkdir()
    assert json_of("compare", "runs/one", "runs/two")["weights"]["same_steps"] == [6]
    assert json_of("status", "runs/one")["checkpoint_step"] == 6

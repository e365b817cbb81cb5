"""One real run, then the commands that a user gives next, as a user gives them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_checkpoint import replace_file

from mnist_dist import __version__
from mnist_dist.__main__ import COMMANDS, main
from mnist_dist.checkpoint.load_model import load_model
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.data import dataset
from mnist_dist.data.idx import write_idx
from mnist_dist.data.prepare import FILES
from mnist_dist.models import list_models
from mnist_dist.models.feature_maps import feature_maps, montage
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER, UserError

TRAIN, TEST = 600, 207
QUICK = ("--model.name=basic", "--train.epochs=2", "--train.batch_size=50", "--data.val_size=100", "--run.threads=1")


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS` to its end."""
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def write_set(folder: Path) -> None:
    """Images whose bright row says their class, so that a net learns them at once."""
    generator = torch.Generator().manual_seed(0)
    for name in FILES:
        count = TEST if name.startswith("t10k") else TRAIN
        labels = torch.arange(count) % 10
        images = torch.randint(0, 60, (count, 28, 28), generator=generator)
        images[torch.arange(count), 4 + 2 * labels] = 255
        write_idx(folder / name, (images if "images" in name else labels).to(torch.uint8))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data in `data` and a finished run in `run`."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    write_set(home / "data")
    options = ["--data.root=data", "--data.source=local", "--run.dir=run", "--tracking.mode=disabled", *QUICK]
    done = command("mnist_dist.train", *options, "--optim.ema=0.9", cwd=home)
    assert done.returncode == EXIT_DONE, done.stderr
    return home


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The run's folder, from the folder it was trained from."""
    monkeypatch.chdir(home)
    return "run"


def test_the_folder_holds_what_it_should(home: Path) -> None:
    assert {path.name for path in (home / "run").iterdir()} == {
        "checkpoints", "config.yaml", "metrics.jsonl", "status.json", "summary.json"
    }  # fmt: skip
    summary = json.loads((home / "run/summary.json").read_text())
    assert summary["test.count"] == TEST
    assert summary["val.count"] == 100
    assert (summary["train.steps"], summary["train.images"]) == (20, 1000)
    assert (summary["world_size"], summary["machines"], summary["device"]) == (1, 1, "cpu")
    assert summary["resumed_from"] is None
    assert summary["train.step_seconds"] * summary["train.images_per_second"] == pytest.approx(50, rel=0.01)
    assert summary["train.flops_per_second"] > 0
    assert summary["memory.peak_bytes"] > 1e7
    rows = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    assert all({"step", "epoch", "time"} <= row.keys() for row in rows)


def test_the_config_starts_the_same_run_again(home: Path) -> None:
    """Same configuration, same weights; and the same command on a finished run changes nothing."""
    done = command("mnist_dist.train", "--config=run/config.yaml", "--run.dir=again", cwd=home)
    assert done.returncode == EXIT_DONE, done.stderr
    first, second = (json.loads((home / name / "summary.json").read_text()) for name in ("run", "again"))
    assert first["weights_sha256"] == second["weights_sha256"]
    before = (home / "again/summary.json").stat().st_mtime_ns
    done = command("mnist_dist.train", "--config=run/config.yaml", "--run.dir=again", cwd=home)
    assert done.returncode == EXIT_DONE
    assert "finished" in done.stdout
    assert (home / "again/summary.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_nothing_changes(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "run").rglob("*") if path.is_file()}
    done = command("mnist_dist.train", "--config=run/config.yaml", "--run.dir=run", "--optim.lr=0.5", cwd=home)
    assert done.returncode == EXIT_USER
    assert len(done.stderr.splitlines()) == 1
    assert "optim.lr=0.5 (was 0.003)" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (home / "run").rglob("*") if path.is_file()}


def test_an_evaluation_ends_at_the_first_ctrl_c(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset.ImageSet, "to", lambda data, device: os.kill(os.getpid(), signal.SIGINT) or data)
    assert main(["evaluate", run]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert err == "mnist_dist: error: interrupted\n"
    assert "accuracy" not in out


def test_a_resume_that_is_not_there_leaves_no_folder(home: Path) -> None:
    done = command("mnist_dist.train", "--config=run/config.yaml", "--run.dir=new", "--run.resume=nowhere", cwd=home)
    assert (done.returncode, len(done.stderr.splitlines())) == (EXIT_USER, 1)
    assert "run.resume=nowhere" in done.stderr
    assert not (home / "new").exists()


def test_evaluate_gives_the_summary_again(home: Path) -> None:
    summary = json.loads((home / "run/summary.json").read_text())
    done = command("mnist_dist", "evaluate", "run", "--json", cwd=home)
    result = json.loads(done.stdout)
    for key in ("test.count", "test.correct", "test.loss", "test.top2", "test.recall", "test.confusion"):
        assert result[key] == summary[key]
    assert sum(map(sum, result["test.confusion"])) == TEST
    shown = command("mnist_dist", "evaluate", "run", "--split=val", cwd=home)
    assert f"val accuracy: {summary['val.accuracy']:.2%}".replace("%", " %") in shown.stdout
    assert f"{summary['val.correct']} of 100" in shown.stdout
    assert "test" not in shown.stdout


def test_loaded_weights_are_the_evaluated_ones(run: str) -> None:
    """With a moving average, that is what the summary's digest is of."""
    loaded = load_model(run)
    assert loaded.step == 20
    assert weights_sha256(loaded.model) == json.loads(Path("run/summary.json").read_text())["weights_sha256"]
    assert not loaded.model.training


def test_each_way_to_name_a_checkpoint(run: str) -> None:
    for name in ("10", "step-00000010", "step-10", "run/checkpoints/step-00000010"):
        assert load_model(run, name).step == 10
    assert load_model("run/checkpoints/step-00000010").step == 10
    for name in ("last", "latest", "20"):
        assert load_model(run, name).step == load_model("run/checkpoints", name).step == 20
    assert load_model(run, "best").step in (10, 20)


def test_the_last_run_is_the_newest_in_runs(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert load_model("last").step == 20
    assert load_model("last", "10").step == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "no such folder"),
        (("run/config.yaml",), "is a file"),
        (("data",), "no complete checkpoint"),
        (("last",), "last: no run in .*/runs; give the folder of a run"),
        (("run", "7"), "has no checkpoint step-00000007; it has step-00000010, step-00000020"),
        (("run", "newest"), "no such checkpoint; give last, best, .*: it has step-00000010, step-00000020"),
        (("run/checkpoints/step-00000010", "best"), "names a checkpoint, and --checkpoint best another one"),
        (("run/checkpoints/step-00000011",), "no such folder"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(run: str, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_model(*arguments)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run/checkpoints/step-00000020/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert load_model(str(tmp_path / "run")).step == 10
    assert "step-00000020" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("model", "name", "nonet", "model.name must be one of unshuffle, "),
        ("model", "name", ["cnn"], "model.name must be one of unshuffle, "),
        ("model", "code", "x", "model.code is unknown"),
        ("data", "classes", ["\x1b[2J"] * 10, "data.classes must be a list of texts"),
        ("train", "eval_batch_size", 0, "train.eval_batch_size must be at least 1"),
        ("optim", "betas", [0.9], "optim.betas must be a list of 2 numbers"),
        ("optim", "lr", "fast", "optim.lr must be a number, as in "),
        ("run", "seed", 1.0, "run.seed must be a whole number"),
        ("run", "seed", "1", "run.seed must be a whole number"),
    ],
)
def test_a_forged_configuration_is_one_line(
    run: str, section: str, key: str, value: object, said: str, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run/checkpoints/step-00000020"
    state = json.loads((folder / "state.json").read_text())
    state["config"][section][key] = value
    replace_file(folder, "state.json", json.dumps(state).encode())
    with pytest.raises(UserError, match=rf"was written by another version of mnist_dist \(.*{said}") as error:
        load_model(str(tmp_path / "run"))
    assert len(str(error.value).splitlines()) == 1


def test_predict_pictures_indices_and_rows(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "seven.png"
    Image.new("L", (60, 90), 255).save(picture)
    assert main(["predict", run, str(picture)]) == EXIT_USER
    assert "seven.png" in capsys.readouterr().err
    assert main(["predict", run, "--index", "3", "--maps", "--first", "30"]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "test image 3" in shown
    assert "conv 10@5x5 pad 0, 10 x 24 x 24" in shown
    assert "conv 20@5x5 pad 0, 20 x 8 x 8" in shown
    assert "of 30 right" in shown


def test_models_lists_every_model_with_its_walk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in list_models())
    assert "28,938 parameters, 5.68 MFLOPs" in shown
    assert main(["models", "cnn", "nonet"]) == EXIT_USER
    assert "nonet: no such model" in capsys.readouterr().err


def test_the_command_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["evalute"]) == EXIT_USER
    assert "did you mean evaluate?" in capsys.readouterr().err
    assert main(["--version"]) == EXIT_DONE
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_without_torch(name: str, tmp_path: Path) -> None:
    script = (
        "import sys; from mnist_dist.__main__ import main\n"
        f"try: main(['{name}', '--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == EXIT_DONE
    assert done.stdout.splitlines()[-1] == "False"
    assert "usage: " in done.stdout


def test_feature_maps_are_the_convolutions_own_output(run: str) -> None:
    model = load_model(run).model
    image = torch.rand(1, 28, 28)
    (name, first), (_, second) = feature_maps(model, image)
    assert name == "body.0"
    assert torch.equal(first, model.body[0](image[None])[0].detach())
    assert second.shape == (20, 8, 8)


def test_montage_places_maps_side_by_side() -> None:
    maps = torch.stack([torch.tensor([[float(k), 9.0, 9.0]] * 3) for k in range(5)])
    drawn = montage(maps, width=8, rows=2)  # two across
    assert drawn.shape == (2 * 4, 2 * 4)
    assert drawn[0].tolist() == [0, 255, 255, 0, 0, 255, 255, 0]
    assert drawn[3].tolist() == [0] * 8

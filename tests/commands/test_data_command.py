"""`mnist-dist data`: fetch, check and show."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnist_dist.commands.data import main
from mnist_dist.data.idx import write_idx
from mnist_dist.data.prepare import FILES
from mnist_dist.utils.errors import EXIT_DONE, UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of 12 training and 10 test images; training image 1 is white all over."""
    for name in FILES:
        count = 12 if name.startswith("train") else 10
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        images[1] = 255
        write_idx(tmp_path / name, images if "images" in name else torch.arange(count, dtype=torch.uint8) % 10)
    return tmp_path


def wanted(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Make the data set in `root` the original one."""
    for name in FILES:
        monkeypatch.setitem(FILES, name, hashlib.md5((root / name).read_bytes()).hexdigest())


def test_fetch_says_where_the_files_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", f"--data.root={root}"]) == EXIT_DONE
    assert capsys.readouterr().out.splitlines() == [str(root / name) for name in FILES]


def test_fetch_takes_the_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set in"):
        main(["fetch", "--data.root", str(tmp_path), "--data.source", "local"])


def test_check_never_fetches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set in"):
        main(["check", f"--data.root={tmp_path}"])


def test_check_tells_what_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = root / "train-images-idx3-ubyte"
    digest = hashlib.md5(packed.read_bytes()).hexdigest()
    packed.with_name(f"{packed.name}.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    assert main(["check", f"--data.root={root}"]) == EXIT_DONE
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith(f"{packed.name}.gz"))
    assert line.split() == [f"{packed.name}.gz", str((root / f"{packed.name}.gz").stat().st_size), digest, "no"]
    # One image of 12 is 1, the others 0: mean 1/12, std sqrt(1/12 - 1/144).
    assert "train: 12 images, pixel mean 0.0833, std 0.2764; per class 0:2 1:2 2:1 3:1" in out
    assert "test: 10 images, pixel mean 0.1000, std 0.3000; per class 0:1" in out
    assert out.endswith("a complete data set, but not the original MNIST\n")


def test_check_knows_the_original(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted(monkeypatch, root)
    assert main(["check", f"--data.root={root}"]) == EXIT_DONE
    assert capsys.readouterr().out.endswith("the original MNIST\n")
    damaged = root / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte: not the original MNIST"):
        main(["check", f"--data.root={root}"])


def test_check_finds_damage(root: Path) -> None:
    labels = root / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(UserError, match="train-labels-idx1-ubyte: truncated"):
        main(["check", f"--data.root={root}"])


def test_show_draws_images_with_labels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "1", "11", f"--data.root={root}"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train image 1: label 1"
    assert lines[1:15] == ["@" * 28] * 14
    assert lines[15] == "train image 11: label 1"
    assert len(lines) == 30
    assert main(["show", "9", "--split", "test", f"--data.root={root}"]) == EXIT_DONE
    assert capsys.readouterr().out.startswith("test image 9: label 9\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fecth"], "invalid choice: 'fecth'"),
        (["fetch", "--data.roo=x"], "unrecognized arguments: --data.roo=x"),
        (["fetch", "--data.source=web"], "--data.source: invalid choice: 'web'"),
        (["show"], "required: INDEX"),
        (["show", "one"], "invalid int value: 'one'"),
        (["show", "1", "--spli", "test"], "unrecognized arguments: --spli test"),
        (["show", "12"], "index 12: the train split has images 0 to 11"),
        (["show", "3", "-1"], "index -1: the train split has images 0 to 11"),
        (["show", "10", "--split=test"], "index 10: the test split has images 0 to 9"),
        (["show", "a\nb"], r"invalid int value: 'a\nb'"),
        (["fetch", "a\nb"], "unrecognized arguments: a b"),
    ],
)
def test_wrong_arguments_cost_one_line(root: Path, arguments: list[str], message: str) -> None:
    place = [f"--data.root={root}"] if arguments[:1] in (["show"], ["fetch"]) else []
    with pytest.raises(UserError) as caught:
        main([*arguments, *place])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["data", "predict"])
def test_help_comes_without_torch(module: str) -> None:
    program = f"""
import sys
from mnist_dist.commands.{module} import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert not {{"torch", "torchvision", "accelerate", "wandb"}} & set(sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    assert output.stdout.startswith(f"usage: mnist-dist {module}")

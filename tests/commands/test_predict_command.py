"""`mnist-dist predict`, with a network whose answers are known."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mnist_dist.commands.predict import main
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.idx import write_idx
from mnist_dist.data.prepare import FILES
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, UserError

MEAN, STD = 0.25, 0.5
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class RowReader(nn.Module):
    """Logit k is the mean of row 4 + 2k, in pixels of 0 to 1; its probabilities are of 4 times the logits."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.float32
        return (images * STD + MEAN)[:, 0, 4:24:2].mean(2)

    def probabilities(self, logits: Tensor) -> Tensor:
        return (4 * logits).softmax(1)


def image_of(label: int) -> Tensor:
    """An image that RowReader takes for `label`."""
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[4 + 2 * label] = 255
    return image


# exp(4) against nine times exp(0)
SURE = "85.85 %"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A run whose test set is 0 to 9 four times, each seventh label wrong; what `load_model` was asked for."""
    true = torch.arange(40, dtype=torch.uint8) % 10
    labels = torch.where(torch.arange(40) % 7 == 6, (true + 1) % 10, true)
    for name in FILES:
        write_idx(tmp_path / name, torch.stack([image_of(int(k)) for k in true]) if "images" in name else labels)
    return stand_in(monkeypatch, DataConfig(root=str(tmp_path), source="local", mean=MEAN, std=STD))


def stand_in(monkeypatch: pytest.MonkeyPatch, data: DataConfig) -> list[tuple[str, str]]:
    """Make `load_model` give RowReader with this configuration; records what it is asked for."""
    asked: list[tuple[str, str]] = []

    def load_model(run: str, checkpoint: str, model: str | None, trust: bool) -> types.SimpleNamespace:
        assert (model, trust) == (None, False)
        asked.append((run, checkpoint))
        return types.SimpleNamespace(config=Config(data=data), model=RowReader().eval(), step=1, digests={})

    monkeypatch.setattr("mnist_dist.checkpoint.load_model.load_model", load_model)
    return asked


def test_indices_are_drawn_beside_their_probabilities(
    asked: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["my/run", "--index", "3", "6", "--checkpoint", "best"]) == EXIT_DONE
    assert asked == [("my/run", "best")]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30
    assert lines[0] == f"test image 3: 3 ({SURE}), right"
    assert lines[15] == f"test image 6: 6 ({SURE}), wrong: 7"
    assert lines[1 + 5].startswith("=" * 28)  # rows 10 and 11 of the image, one of them white
    assert lines[1 + 2 + 3].split() == ["=" * 28, ">", "3", "#" * 17 + "...", *SURE.split(), "true"]
    assert lines[16 + 2 + 7].split()[-3:] == ["1.57", "%", "true"]


def test_the_first_thirty_against_the_truth(asked: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--first", "30"]) == EXIT_DONE
    assert capsys.readouterr().out == (
        "predicted 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9\n"
        "true      0 1 2 3 4 5 7 7 8 9 0 1 2 4 4 5 6 7 8 9 1 1 2 3 4 5 6 8 8 9\n"
        "mistake   0 0 0 0 0 0 1 0 0 0 0 0 0 1 0 0 0 0 0 0 1 0 0 0 0 0 0 1 0 0\n"
        "\n"
        "26 of 30 right (86.67 %), mistakes: 4\n"
    )


def test_more_than_thirty_go_on_in_new_rows(asked: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--first=40", "--split", "train"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line] == ["predicted", "true", "mistake"] * 2 + ["35"]
    assert all(len(line) <= 80 for line in lines)


def test_pictures_are_drawn_as_the_network_sees_them(
    asked: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for label in (2, 8):
        picture = Image.frombytes("L", (28, 28), bytes(image_of(label).flatten().tolist()))
        paths.append(str(tmp_path / f"[bold]{label}.png"))
        picture.save(paths[-1])
    assert main(["run", paths[0], "--first", "2", paths[1]]) == EXIT_DONE  # pictures may stand before and after options
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{paths[0]}: 2 ({SURE})"
    assert lines[15] == f"{paths[1]}: 8 ({SURE})"
    assert lines[30].startswith("predicted 0 1")


def test_a_bad_picture_hides_no_good_one(
    asked: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.gif", tmp_path / "bad.png"
    pages = [Image.frombytes("L", (28, 28), bytes(image_of(label).flatten().tolist())) for label in (4, 5)]
    pages[0].save(good, save_all=True, append_images=pages[1:])
    bad.write_text("4")
    assert main(["run", str(bad), "absent.png", str(good)]) == EXIT_FAILED
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{good}: 4 ({SURE})\n")
    assert captured.out.endswith("note: the file has several pages or frames; this is the first\n")
    assert [line.split(": ")[2] for line in captured.err.splitlines()] == [str(bad), "absent.png"]


def test_pictures_need_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, DataConfig(root=str(tmp_path / "absent"), source="local", mean=MEAN, std=STD))
    Image.frombytes("L", (28, 28), bytes(image_of(4).flatten().tolist())).save(tmp_path / "four.png")
    assert main(["run", str(tmp_path / "four.png")]) == EXIT_DONE
    assert f": 4 ({SURE})" in capsys.readouterr().out
    with pytest.raises(UserError, match="no data set in"):
        main(["run", "--index", "1"])


def test_other_classes_are_named(
    asked: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, DataConfig(root=str(tmp_path), source="local", mean=MEAN, std=STD, classes=FASHION))
    assert main(["run", "--index", "6", "--first", "3"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert out.startswith(f"test image 6: shirt ({SURE}), wrong: sneaker\n")
    assert "> shirt" in out
    assert "0 T-shirt, 1 trouser" in out
    assert all(len(line) <= 80 for line in out.splitlines()[:15])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN is required, or an exported model by --model FILE.onnx or FILE.pt2"),
        (["run"], "nothing to predict; give picture files, --index I or --first N"),
        (["run", "--first", "0"], "--first 0: must be at least 1"),
        (["run", "--first", "41"], "--first 41: the test split has 40 images"),
        (["run", "--index", "40"], "index 40: the test split has images 0 to 39"),
        (["run", "--index", "-1"], "index -1: the test split has images 0 to 39"),
        (["run", "--index", "x"], "--index: invalid int value: 'x'"),
        (["run", "--inde", "1"], "unrecognized arguments: --inde"),
        (["run", "--split=val", "--first=1"], "--split: invalid choice: 'val'"),
        (["run", "absent.png"], "absent.png: no such file"),
    ],
)
def test_wrong_arguments_cost_one_line(asked: list[tuple[str, str]], arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

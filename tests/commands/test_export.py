"""`mnist-dist export`: what is written classifies as the run does, and is refused otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_run import copy_kept_run

from mnist_dist.__main__ import main
from mnist_dist.checkpoint.hub_model import HubModel
from mnist_dist.checkpoint.load_model import load_model, read_config
from mnist_dist.commands import export, export_formats, hub_folder
from mnist_dist.commands.exported_model import open_exported
from mnist_dist.data.identity import content_digest
from mnist_dist.data.idx import read_pair
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER

HAS_ONNX = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra `export`")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_kept_run(tmp_path))
    return tmp_path


def images_of(work: Path) -> torch.Tensor:
    folder = work / "digits"
    return read_pair(folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte")[0]


@pytest.mark.parametrize("input", ["uint8", "float"])
@pytest.mark.parametrize("to", [pytest.param("onnx", marks=needs_onnx), "torch-export"])
def test_a_graph_gives_the_logits_of_the_run_for_any_number_of_images(
    work: Path, to: str, input: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "run", "--to", to, "--input", input]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test accuracy in float32: 100.00 % (50 of 50), the same prediction for each image"
    path = work / ("model.onnx" if to == "onnx" else "model.pt2")
    assert lines[-1] == f"written: {path.name}"
    assert sorted(entry.name for entry in work.iterdir()) == sorted(["digits", path.name, "run"])
    exported, images = open_exported(path), images_of(work)
    expected = export_formats.reference_logits(load_model("run"), images)
    for count in (0, 1, 3, 50):
        logits, probabilities = exported(images[:count])
        torch.testing.assert_close(logits, expected[:count], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(probabilities, expected[:count].softmax(1), atol=1e-5, rtol=1e-4)
    assert exported.classes == tuple("0123456789")
    assert exported.facts["input"] == input
    assert exported.facts["step"] == 6


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=needs_onnx), "torch-export"])
def test_predict_gives_the_same_table_with_the_exported_model(
    work: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export.FORMATS[to]
    assert main(["export", "run", "--to", to]) == EXIT_DONE
    tables = []
    for source in (["run"], ["--model", path, "--data.root=digits"]):
        capsys.readouterr()
        assert main(["predict", *source, "--first", "30", "--index", "3"]) == EXIT_DONE
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert main(["predict", "--model", path, "--index", "1", "--maps"]) == EXIT_USER
    assert "--maps: " in capsys.readouterr().err
    assert main(["predict", "--first", "3"]) == EXIT_USER
    assert "RUN is required" in capsys.readouterr().err


@needs_onnx
def test_int8_says_what_it_costs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "--to", "onnx", "--int8", "--out", "small.onnx"]) == EXIT_DONE
    assert "int8: " in capsys.readouterr().out
    model = open_exported(work / "small.onnx")
    assert model.facts["int8"] is True
    assert int((model(images_of(work))[0].argmax(1) == torch.arange(50) % 10).sum()) > 40
    assert sorted(entry.name for entry in work.iterdir()) == ["digits", "run", "small.onnx"]


def test_safetensors_have_the_weights_and_the_settings(work: Path) -> None:
    from safetensors import safe_open

    assert main(["export", "run", "--to", "safetensors"]) == EXIT_DONE
    loaded = load_model("run")
    with safe_open(work / "model.safetensors", "pt") as file:
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in loaded.model.state_dict().items()
        }
        settings = json.loads(file.metadata()["config"])
    assert loaded.config.run.dir
    assert loaded.config.data.root
    assert (settings["model"]["name"], settings["run"]["dir"], settings["data"]["root"]) == ("basic", "", "")


def test_a_hub_folder_is_loaded_by_from_pretrained(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "--to", "hub", "--out", "digits-model"]) == EXIT_DONE
    assert capsys.readouterr().out.splitlines()[-1] == "written: digits-model/"
    folder = work / "digits-model"
    assert sorted(entry.name for entry in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model, images = HubModel.from_pretrained(str(folder)), images_of(work)
    expected = load_model("run")
    torch.testing.assert_close(model(images), export_formats.reference_logits(expected, images), atol=0, rtol=0)
    assert not model.training
    card = (folder / "README.md").read_text()
    assert "100.00 % (50 of 50)" in card
    assert model.weights_sha256 in card
    assert str(work) not in card + (folder / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "title", "tags", "sets"),
    [
        ("mnist", "a set of its own", ["image-classification"], None),  # ten classes under MNIST's file names
        ("fashion", "Fashion-MNIST", ["fashion", "image-classification"], ["zalando-datasets/fashion_mnist"]),
        ("kmnist", "KMNIST", ["kmnist", "image-classification"], None),
        ("idx", "a set of its own", ["image-classification"], None),
    ],
)
def test_the_card_names_the_data_of_the_run(
    work: Path, name: str, title: str, tags: list[str], sets: list[str] | None
) -> None:
    card = card_of(work, data={"name": name, "classes": list("abcdefghij")})
    assert (card.data.datasets, card.data.tags[:-2]) == (sets, tags)
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.metric_value) == (title, tags[0] if tags[1:] else "idx", 1)
    assert f"| data | {title} |" in card.text
    assert "| recipe | default, " in card.text
    assert "20x20" not in card.text
    assert "MNIST" not in card.text.replace(title, "")


def card_of(work: Path, **changes: dict[str, Any]) -> Any:
    """The model card of a Hub folder that is written from the run, as if it had had other settings."""
    from huggingface_hub import ModelCard

    loaded, images = load_model("run"), images_of(work)
    settings = {name: section | changes.get(name, {}) for name, section in loaded.config.to_dict().items()}
    loaded = replace(loaded, config=read_config(settings, "settings"))
    logits, facts = export_formats.reference_logits(loaded, images), export_formats.facts_of(loaded, "uint8")
    hub_folder.write_hub_folder(work / "exported", loaded, facts, logits, images, torch.arange(50) % 10)
    return ModelCard.load(work / "exported" / "README.md")


def test_the_card_of_mnist_is_known_by_its_digest(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(work)
    monkeypatch.setattr(hub_folder, "MNIST_TEST_SHA256", content_digest(images, torch.arange(50) % 10))
    card = card_of(work)
    assert card.data.datasets == ["ylecun/mnist"]
    assert card.data.eval_results[0].dataset_name == "MNIST"
    assert "box of 20x20 pixels" in card.text


def test_the_folder_does_not_say_where_the_run_was(work: Path) -> None:
    card = card_of(work, model={"init_from": "/home/someone/first"}, run={"resume": "/home/someone/second"})
    assert "The first weights were those of another run." in card.text
    assert "someone" not in str(card) + (work / "exported" / "config.json").read_text()


def test_a_model_that_classifies_otherwise_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(self: export_formats.ImageGraph, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = -self.model(images.unsqueeze(1).float())
        return logits, logits.softmax(1)

    monkeypatch.setattr(export_formats.ImageGraph, "forward", forward)
    assert main(["export", "run", "--to", "torch-export"]) == EXIT_FAILED
    assert "are classified otherwise" in capsys.readouterr().err
    assert sorted(entry.name for entry in work.iterdir()) == ["digits", "run"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--to", "torch-export", "--int8"], "--int8: only with --to onnx"),
        (["--to", "torch-export", "--out", "x.bin"], "must end in .pt2"),
        (["--to", "hub", "--out", "digits"], "is there already"),
        (["--to", "torch-export", "--out", "run/config.yaml/x.pt2"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_one_line(
    work: Path, arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "run", *arguments]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line


@pytest.mark.parametrize("name", ["model.pt2", pytest.param("model.onnx", marks=needs_onnx)])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 1000])
def test_another_file_is_no_exported_model(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match="is not a model that `mnist-dist export` wrote") as caught:
        open_exported(tmp_path / name)
    assert type(caught.value).__name__ == "UserError"

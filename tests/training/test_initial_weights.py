"""model.init_from: which weights are loaded, what is refused, and what is said of the images they were trained on."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks
from programs import write_digits
from safetensors.torch import save_file

from mnist_dist.checkpoint.manager import load_verified
from mnist_dist.checkpoint.state import TrainingImages
from mnist_dist.checkpoint.tensors import tensors_sha256
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import ImageSet, Splits, split
from mnist_dist.models import create_model
from mnist_dist.models.registry import list_models
from mnist_dist.train import main
from mnist_dist.training.initial_weights import (
    Source,
    describe_leak,
    describe_other_data,
    find_new_tensors,
    read_source,
)
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER, UserError

COMMON = (
    *("--data.source=local", "--data.val_size=40", "--model.name=basic", "--train.batch_size=40", "--train.epochs=1"),
    *("--train.precision=no", "--run.threads=1", "--run.device=cpu", "--tracking.mode=disabled", "--run.quiet=true"),
    *("--optim.name=sgd", "--optim.schedule=constant", "--optim.warmup=0"),
)
FROZEN = ("--optim.lr=0", "--optim.momentum=0", "--optim.weight_decay=0")
"""The weights at the end are those before the first step."""


def train(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> int:
    """Train in `folder`; ranks other than 0 in an empty one. The data are in `digits` beside it."""
    os.environ.update(environment or {})
    rank = int(os.environ.get("RANK", 0))
    working = folder if rank == 0 else folder / f"rank-{rank}"
    working.mkdir(exist_ok=True)
    os.chdir(working)
    return main([*COMMON, f"--data.root={folder.parent / 'digits'}", *arguments])


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `source`, which has an average of weights."""
    top = tmp_path_factory.mktemp("initial")
    (top / "digits").mkdir()
    write_digits(top / "digits", train=200, test=50)
    (top / "work").mkdir()
    assert run_ranks(1, train, top / "work", "--run.dir=source", "--optim.ema=0.5", "--optim.lr=0.05") == [EXIT_DONE]
    return top / "work"


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_MIN_NUM_PARAMS": "200"}


@pytest.mark.parametrize(
    ("name", "arguments", "environment"),
    [
        ("shards", ["--train.shards=2"], {}),
        ("ddp", ["--train.shards=0", "--optim.ema=0.9"], {}),
        ("fsdp", [], FSDP | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}),
    ],
)
def test_all_ranks_start_from_the_average_that_only_rank_0_can_read(
    work: Path, name: str, arguments: list[str], environment: dict[str, str]
) -> None:
    settings = ("--model.init_from=source", f"--run.dir={name}", *FROZEN, *arguments)
    assert run_ranks(2, train_with, work, settings, environment) == [0, 0]
    source, found = summary(work / "source"), summary(work / name)
    assert found["weights_sha256"] == found["init_sha256"] == source["weights_sha256"]
    assert found["init_from"] == "source/checkpoints/step-00000004"
    assert found["test.loss"] == pytest.approx(source["test.loss"], rel=1e-6)
    assert found["train.steps"] == 4


def train_with(folder: Path, settings: tuple[str, ...], environment: dict[str, str]) -> int:
    return train(folder, *settings, environment=environment)


def test_a_run_resumes_without_its_source(work: Path) -> None:
    """Its state keeps where it began and what that was trained on; another source is refused."""
    shutil.copytree(work / "source", work / "gone")
    settings = ("--model.init_from=gone", "--optim.lr=0.05", "--optim.ema=0.5", "--train.epochs=2")
    assert run_ranks(1, train, work, *settings, "--run.dir=whole") == [EXIT_DONE]
    assert run_ranks(1, train, work, *settings, "--run.dir=parts", "--train.max_steps=3") == [EXIT_DONE]
    shutil.rmtree(work / "gone")
    assert run_ranks(1, train, work, *settings, "--run.dir=parts") == [EXIT_DONE]
    whole, parts = summary(work / "whole"), summary(work / "parts")
    for key in ("weights_sha256", "init_from", "init_sha256", "test.loss"):
        assert parts[key] == whole[key]
    assert parts["resumed_from"] == "parts/checkpoints/step-00000003"
    state = load_verified(work / "parts/checkpoints/step-00000008").parse().state["initial_weights"]
    assert state["trained_on"] == [
        {"sha256": parts["data.train_sha256"], "seed": 0, "val_size": 40, "limit": 0},
    ]
    assert run_ranks(1, train, work, *settings, "--run.dir=parts", "--model.init_from=source") == [EXIT_USER]
    assert run_ranks(1, train, work, *settings, "--run.dir=new") == [EXIT_USER]
    assert not (work / "new").exists()


def test_a_head_with_other_classes_is_new_and_all_else_is_loaded(work: Path) -> None:
    torch.manual_seed(5)
    other = create_model("basic", 7).state_dict()
    save_file(other, work / "seven.safetensors", metadata={"format": "pt"})
    (work / "link.safetensors").symlink_to("seven.safetensors")
    assert run_ranks(1, train, work, "--run.dir=ten", "--model.init_from=link.safetensors", *FROZEN) == [EXIT_DONE]
    found = load_verified(work / "ten/checkpoints/step-00000004").parse().model
    torch.manual_seed(0)
    fresh = create_model("basic").state_dict()
    for name, tensor in found.items():
        assert tensor.equal((fresh if name.startswith("head") else other)[name])
    assert summary(work / "ten")["init_sha256"] == tensors_sha256(other)


@pytest.mark.parametrize("name", list_models())
def test_the_head_of_each_model_is_found(name: str) -> None:
    model, other = create_model(name), create_model(name, 7).state_dict()
    new = find_new_tensors(model, other)
    assert new
    assert {model.state_dict()[name].shape[0] for name in new} == {10}
    assert len({name.rpartition(".")[0] for name in new}) == 1
    assert find_new_tensors(model, create_model(name).state_dict()) == []


def changed(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = create_model("basic").state_dict()
    if tensor is None:
        del tensors[name]
        return tensors
    return tensors | {name: tensor}


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        (changed("head.bias", None), "head.bias is missing"),
        (changed("extra", torch.zeros(1)), "extra is not part of this model"),
        (
            changed("head.bias", torch.zeros(9)) | {"head.weight": torch.zeros(8, 320)},
            "head.weight is (8, 320), ",
        ),
        (changed("head.weight", torch.zeros(10, 319)), "head.weight is (10, 319), the model's is (10, 320)"),
        (
            changed("body.0.weight", torch.zeros(9, 1, 5, 5)) | {"head.bias": torch.zeros(9)},
            "body.0.weight is (9, 1, ",
        ),
        (changed("head.bias", torch.full((10,), torch.nan)), "head.bias holds values that are not finite"),
        (changed("head.bias", torch.zeros(10, dtype=torch.int64)), "head.bias is torch.int64, the model's is torch.fl"),
    ],
)
def test_weights_of_another_model_are_refused(tensors: dict[str, torch.Tensor], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(error)}"):
        find_new_tensors(create_model("basic"), tensors)


# Where they are read from


def config(*arguments: str) -> Config:
    return load(arguments).config


def test_a_run_that_is_named_last_is_another_one(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this run itself, which may have been started before without coming to a checkpoint."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(work / "source", tmp_path / "runs" / "one")
    (tmp_path / "runs" / "own").mkdir()
    (tmp_path / "runs" / "own" / "config.yaml").touch()
    found = read_source(config("--model.init_from=last"), Path("runs/own"))
    assert found.path == "runs/one/checkpoints/step-00000004"
    assert found.is_average
    assert found.model == "--model.name=basic"


@pytest.mark.parametrize(
    ("init_from", "error"),
    [
        ("nowhere", "model.init_from=nowhere: no such folder; give the folder of a run"),
        ("last", "model.init_from=last: no run in "),
        ("empty", "model.init_from=empty: has no complete checkpoint; "),
        ("model.pt", "model.init_from=model.pt: is not a .safetensors file, and no other is loaded, since a pickled"),
        ("gone.safetensors", "model.init_from=gone.safetensors: cannot be read (No such file or directory)"),
        ("~no-such-user/x", "model.init_from=~no-such-user/x: no home folder for ~no-such-user; "),
    ],
)
def test_what_holds_no_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init_from: str, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("model.pt").write_bytes(b"x")
    with pytest.raises(UserError) as found:
        read_source(config(f"--model.init_from={init_from}"), Path("run"))
    assert str(found.value).startswith(error)


def test_a_run_is_not_deleted_to_start_from_itself(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    settings = config("--model.init_from=source", "--run.dir=source", "--run.resume=never")
    with pytest.raises(UserError, match=r"is in run\.dir=source, whose checkpoints run\.resume=never deletes"):
        read_source(settings, Path("source"))
    with pytest.raises(UserError, match=r"model\.init_from=a \(command line\) and run\.resume=b \(command line\) excl"):
        config("--model.init_from=a", "--run.resume=b")


def test_a_damaged_file_is_refused(work: Path) -> None:
    (work / "damaged.safetensors").write_bytes(b"\xff" * 100)
    assert run_ranks(1, train, work, "--run.dir=d", "--model.init_from=damaged.safetensors") == [EXIT_USER]
    assert not (work / "d").exists()


# Which images they were trained on

DIGEST = "a" * 64
ALL = ImageSet(torch.arange(100).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).to(torch.uint8), torch.arange(100))


def splits(settings: Config) -> Splits:
    return replace(split(ALL, ALL, settings.data, settings.run.seed), digests={"train": DIGEST, "test": DIGEST})


def source(*trained_on: TrainingImages) -> Source:
    return Source("runs/a", b"", False, "--model.name=basic", trained_on)


@pytest.mark.parametrize(
    ("images", "seen"),
    [
        ([TrainingImages(DIGEST, 0, 20, 0)], 0),
        ([TrainingImages(DIGEST, 0, 20, 30)], 0),
        ([TrainingImages(DIGEST, 0, 30, 0)], 0),
        ([TrainingImages(DIGEST, 0, 10, 0)], 10),
        ([TrainingImages(DIGEST, 0, 10, 4)], 4),
        ([TrainingImages(DIGEST, 0, 0, 0)], 20),
        ([TrainingImages(DIGEST, 1, 20, 0)], None),
        ([TrainingImages(DIGEST, 0, 10, 0), TrainingImages(DIGEST, 0, 20, 0)], 10),
        ([TrainingImages(DIGEST, 0, 20, 0), TrainingImages("b" * 64, 1, 0, 0)], 0),
        ([TrainingImages("", 1, 0, 0)], 0),
        ([], 0),
    ],
)
def test_validation_images_that_the_weights_were_trained_on_are_counted(
    images: list[TrainingImages], seen: int | None
) -> None:
    settings = config("--data.val_size=20")
    held_out = set(splits(settings).val.labels.tolist())
    if seen is None:
        theirs = splits(config("--data.val_size=20", "--run.seed=1"))
        seen = len(held_out & set(theirs.train.labels.tolist()))
        assert seen
    line = describe_leak(source(*images), splits(settings), settings)
    assert line.startswith(
        f"model.init_from=runs/a: these weights were trained on {seen} of this run's 20 val" if seen else ""
    )
    assert bool(line) == bool(seen)


def test_other_data_are_named() -> None:
    data = splits(config("--data.val_size=20"))
    assert describe_other_data(source(TrainingImages(DIGEST, 0, 20, 0)), data) == ""
    assert describe_other_data(source(), data) == describe_other_data(source(TrainingImages("", 0, 0, 0)), data) == ""
    other = describe_other_data(source(TrainingImages(DIGEST, 0, 20, 0), TrainingImages("b" * 64, 0, 20, 0)), data)
    assert other == f", trained on other data (sha256 {'b' * 12}, this run's is {'a' * 12})"

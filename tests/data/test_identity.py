"""Data have an identity: digests, what a difference means, and which folders are filled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import try_ranks
from programs import write_digits
from tiny_mnist import assert_fetched, fill, npm, said, tiny_set

from mnist_dist.__main__ import main
from mnist_dist.data.find_files import find_files
from mnist_dist.data.identity import check_resumable_data, check_split_data, content_digest
from mnist_dist.data.prepare import FILES, default_root, ensure_files, provide_files, resolve_root
from mnist_dist.train import main as train
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER, UserError

__all__ = ["npm", "said", "tiny_set"]  # fixtures

IMAGES = (torch.arange(3 * 784) % 251).to(torch.uint8).view(3, 28, 28)
LABELS = torch.tensor([3, 1, 2], dtype=torch.uint8)
MINE, OTHER = {"train": "a" * 64, "test": "b" * 64}, {"train": "c" * 64, "test": "d" * 64}
HERE, CHECKPOINT = Path("/new"), Path("run/checkpoints/step-00000007")


# The digest


def test_the_digest_is_of_pixels_labels_and_their_order() -> None:
    digest = content_digest(IMAGES, LABELS)
    assert digest == "178ae45e575b3278a0d9005cd43013a2187481cf9f4fcd6077b4ed3b06fd0a78"
    assert content_digest(IMAGES.unsqueeze(1), LABELS.to(torch.int64)) == digest
    flipped = IMAGES.clone()
    flipped[2, 27, 27] ^= 1
    order = torch.tensor([1, 0, 2])
    others = [(flipped, LABELS), (IMAGES, LABELS.flip(0)), (IMAGES[order], LABELS[order]), (IMAGES[:2], LABELS[:2])]
    others.append((IMAGES.mT, LABELS))
    assert len({digest, *(content_digest(*other) for other in others)}) == 6


# Comparing it


def test_other_training_data_are_refused_and_another_test_set_is_told(said: list[str]) -> None:
    check_resumable_data(MINE, "old", MINE, HERE, CHECKPOINT, said.append)
    check_resumable_data({}, "old", MINE, HERE, CHECKPOINT, said.append)  # written by version 0.1.0
    assert said == []
    with pytest.raises(UserError, match=f"^{CHECKPOINT}: was trained on .* a{{12}} in old, but c{{12}} in /new; name"):
        check_resumable_data(MINE, "old", OTHER, HERE, CHECKPOINT, said.append)
    assert said == []
    check_resumable_data(MINE, "", MINE | {"test": OTHER["test"]}, HERE, CHECKPOINT, said.append)
    (line,) = said
    assert "test set in /new (sha256 dddddddddddd)" in line
    assert "(bbbbbbbbbbbb in the default folder)" in line


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_is_only_evaluated_on_its_own_images(split: str, said: list[str]) -> None:
    used, other = ("test", "train") if split == "test" else ("train", "test")
    check_split_data(split, MINE, MINE, HERE, said.append)
    check_split_data(split, {}, OTHER, HERE, said.append)
    check_split_data(split, MINE, {used: MINE[used]}, HERE, said.append)
    assert said == []
    check_split_data(split, MINE, MINE | {other: OTHER[other]}, HERE, said.append)
    assert len(said) == 1
    with pytest.raises(UserError, match=f"^/new: its {used} set is not the one of this run"):
        check_split_data(split, MINE, MINE | {used: OTHER[used]}, HERE, said.append)


SETTINGS = ["--data.source=local", "--data.val_size=20", "--train.batch_size=40", "--train.epochs=2", "--run.dir=run"]
SETTINGS += ["--model.name=basic", "--tracking.mode=disabled", "--run.threads=1", "--run.device=cpu"]


def train_each_on_its_own(work: Path) -> int:
    """Train on the folder `0` or `1`, by rank, under the same name: as two machines do."""
    os.chdir(work / os.environ["RANK"])
    with open("stderr", "w") as file:
        os.dup2(file.fileno(), 2)
    return train([*SETTINGS, "--data.root=data"])


def test_machines_with_different_data_do_not_train(tmp_path: Path) -> None:
    for rank in ("0", "1"):
        (tmp_path / rank / "data").mkdir(parents=True)
        write_digits(tmp_path / rank / "data", train=120, test=40)
    labels = tmp_path / "1" / "data" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x00")
    ended = try_ranks(2, train_each_on_its_own, tmp_path)
    assert [outcome.value for outcome in ended] == [EXIT_USER, EXIT_USER]
    (line,) = [line for line in (tmp_path / "0" / "stderr").read_text().splitlines() if "error" in line]
    assert "the data set of rank 1 differs from rank 0's: sha256 of train='" in line
    assert not (tmp_path / "0" / "run").exists()


def test_a_run_goes_on_and_is_evaluated_with_its_own_data_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("mine", 120), ("other", 121)):
        (tmp_path / name).mkdir()
        write_digits(tmp_path / name, train=count, test=count)
    assert train([*SETTINGS, "--data.root=mine", "--train.max_steps=4"]) == EXIT_DONE
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.move("mine", "moved")
    shutil.copytree("other", "mine")
    capsys.readouterr()

    assert train([*SETTINGS, "--data.root=mine"]) == EXIT_USER
    for command in (["evaluate", "run"], ["evaluate", "run", "--split=val"], ["predict", "run", "--first=5"]):
        assert main(command) == EXIT_USER
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("not the one of this run: sha256" in line for line in lines[1:])
    assert "was trained on other data: sha256" in lines[0]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before

    assert main(["evaluate", "run", "--data.root=moved", "--split=val"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert "val accuracy: " in out
    assert "test" not in out
    assert main(["predict", "run", "--data.root=moved", "--first=5"]) == EXIT_DONE
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        shutil.copy(f"other/{name}", f"moved/{name}")
    assert main(["evaluate", "run", "--data.root=moved", "--split=val"]) == EXIT_DONE
    assert "its test set is not the one of this run" in capsys.readouterr().err
    assert train([*SETTINGS, "--data.root=moved"]) == EXIT_DONE
    assert "test metrics before and after this step are not of the same images" in capsys.readouterr().err


# Which folders are filled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_set: None) -> Path:
    """The default folder, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return default_root()


def test_only_the_default_folder_is_filled(cache: Path, tmp_path: Path, npm: Path, said: list[str]) -> None:
    with pytest.raises(UserError, match=r"no such folder; download MNIST into it with `mnist-dist data fetch"):
        provide_files(resolve_root(str(tmp_path / "digitz")), "npm", said.append)
    assert not (tmp_path / "digitz").exists()
    assert not (npm / "calls").exists()
    provide_files(resolve_root(""), "npm", said.append)
    assert_fetched(cache)
    assert main(["data", "show", "1", f"--data.root={tmp_path}/digitz"]) == EXIT_USER
    assert main(["data", "fetch", f"--data.root={tmp_path}/digitz", "--data.source=npm"]) == EXIT_DONE
    assert_fetched(tmp_path / "digitz")


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


FASHION = [f"FashionMNIST/raw/{name}" for name in FILES]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["emnist-letters-train-images-idx3-ubyte.gz"],
            "it holds EMNIST (emnist-letters-train-images-idx3-ubyte.gz); n",
        ),
        (["raw/qmnist-test-labels-idx2-int.gz"], "it holds QMNIST (raw/qmnist-test-labels-idx2-int.gz); name a folder"),
        (["k49-train-imgs.npz"], "it holds Kuzushiji-49 in npz files, which are not read (k49-train-imgs.npz)"),
        (["data/train-00000-of-00001.parquet"], "it holds parquet files, which are not read (data/train-00000-of-0"),
        (FASHION, f"it holds Fashion-MNIST ({FASHION[2]}); use it with --data.name=fashion --data.root="),
        ([".hidden"], "it is empty; download MNIST"),
        (["notes.txt", "more/notes.txt"], "it holds notes.txt and 1 more; download MNIST"),
    ],
)
def test_what_a_folder_holds_instead_is_named(
    cache: Path, tmp_path: Path, names: list[str], told: str, said: list[str]
) -> None:
    root = tmp_path / "data"
    for name in names:
        put(root / name)
    with pytest.raises(UserError) as caught:
        provide_files(root, "auto", said.append)
    assert f"no data set in {root}: {told}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_default_folder_with_another_set_is_not_filled(cache: Path, npm: Path, said: list[str]) -> None:
    for name in FASHION:
        put(cache / name)  # in a folder of its own, which is not searched
    put(cache / "raw" / "emnist-digits-train-images-idx3-ubyte")
    with pytest.raises(UserError, match="it holds EMNIST"):
        provide_files(cache, "npm", said.append)
    shutil.rmtree(cache / "raw")
    provide_files(cache, "npm", said.append)
    assert len(find_files(cache) or ()) == len(FILES)


@pytest.mark.parametrize("inner", [str, lambda name: name.replace("-idx", ".idx"), "{}.gz".format])
def test_a_folder_with_a_files_name_may_hold_the_file(tmp_path: Path, inner: Callable[[str], str]) -> None:
    for name in FILES:
        fill(tmp_path / name, [name], inner)
    assert find_files(tmp_path) == {name: tmp_path / name / inner(name) for name in FILES}
    fill(tmp_path, rename=lambda name: name.replace("-idx", ".idx"))  # as Kaggle lays them out: both
    assert find_files(tmp_path) == {name: tmp_path / name.replace("-idx", ".idx") for name in FILES}


def test_a_relative_folder_is_fetched_into(
    tmp_path: Path, tiny_set: None, npm: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ensure_files(Path("new/digits"), "npm", said.append)
    assert_fetched(tmp_path / "new" / "digits")


def test_a_download_that_fails_leaves_no_folder(tmp_path: Path, tiny_set: None, npm: Path, said: list[str]) -> None:
    words = "npm error " + "unreachable " * 60
    (npm / "script").write_text(f"echo '{words}'; exit 1")
    (tmp_path / "there").mkdir()
    for root in ("there", "new/digits"):
        with pytest.raises(UserError, match=r"unreachable \.\.\.\); put train"):  # cut between two words
            ensure_files(tmp_path / root, "npm", said.append)
    assert [(path.name, os.listdir(path)) for path in tmp_path.iterdir()] == [("there", [])]

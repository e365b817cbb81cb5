"""Data sets by name: their layouts, their labels, their digests, and what is said of the wrong one."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from idx_sets import draw_set, idx_bytes, write_known_set

from mnist_dist.__main__ import main
from mnist_dist.config.data_sets import CLASS_NAMES
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import DataConfig
from mnist_dist.data.dataset import name_classes, read_splits
from mnist_dist.data.find_files import find_files
from mnist_dist.data.prepare import default_root, ensure_files, provide_files
from mnist_dist.data.sets import DATA_SETS, ROLES, TRAIN_LABELS, check_named_right, identify
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER, UserError

KNOWN = sorted(CLASS_NAMES)


def read(root: Path, name: str, **settings: object) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Training images (N, 28, 28), labels and class names of a set."""
    config = DataConfig.model_validate({"name": name, "val_size": 0, **settings})
    files = find_files(root, name)
    assert files
    splits = read_splits(files, config, seed=0)
    return splits.train.images.squeeze(1), splits.train.labels, splits.class_names


# Layouts


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("packed", [False, True])
def test_each_set_is_read_as_torchvision_lays_it_out(tmp_path: Path, name: str, packed: bool) -> None:
    names = CLASS_NAMES[name]
    write_known_set(tmp_path / DATA_SETS[name].class_name / "raw", name, len(names), train=70, test=65, packed=packed)
    images, labels, class_names = read(tmp_path, name)
    drawn = draw_set(len(names), 70)
    assert images.equal(drawn[0])
    assert labels.equal(drawn[1])
    assert class_names == names
    assert main(["data", "check", f"--data.name={name}", f"--data.root={tmp_path}"]) == EXIT_DONE


@pytest.mark.parametrize("name", ["fashion", "qmnist", "emnist-letters", "emnist-byclass"])
def test_torchvision_reads_the_same_images_and_labels(tmp_path: Path, name: str) -> None:
    from torchvision import datasets

    data_set = DATA_SETS[name]
    write_known_set(tmp_path / data_set.class_name / "raw", name, len(CLASS_NAMES[name]), train=70, test=65)
    split = {"split": name.removeprefix("emnist-")} if name.startswith("emnist") else {}
    theirs = getattr(datasets, data_set.class_name)(tmp_path, **split)
    images, labels, class_names = read(tmp_path, name)
    assert images.equal(theirs.data.mT if data_set.transposed else theirs.data)
    labels_of_theirs = theirs.targets[:, 0] if data_set.label_columns else theirs.targets
    assert (labels + data_set.first_label).equal(labels_of_theirs)
    if name == "fashion":
        assert list(class_names) == theirs.classes
    if name == "emnist-byclass":
        assert sorted(class_names) == theirs.classes


@pytest.mark.parametrize("folder", ["", "raw", "gzip"])
def test_a_plain_folder_may_hold_several_splits_of_emnist(tmp_path: Path, folder: str) -> None:
    for name in ("emnist-letters", "emnist-balanced"):
        write_known_set(tmp_path / folder, name, len(CLASS_NAMES[name]), train=60, test=60, packed=True)
    assert len(read(tmp_path, "emnist-letters")[2]) == 26
    assert read(tmp_path, "emnist-balanced")[1].max() == 46


@pytest.mark.parametrize(("num_classes", "kind"), [(2, "ubyte"), (47, "byte"), (200, "ubyte"), (1000, "short")])
def test_a_set_of_ones_own_has_the_classes_that_its_labels_say(tmp_path: Path, num_classes: int, kind: str) -> None:
    write_known_set(tmp_path, "idx", num_classes, train=num_classes + 3, test=5, kind=kind)
    files = find_files(tmp_path, "idx")
    assert files
    assert files[TRAIN_LABELS].name == f"train-labels-idx1-{kind}"
    splits = read_splits(files, DataConfig(name="idx", val_size=0), seed=0)
    assert splits.class_names == tuple(map(str, range(num_classes)))
    assert splits.train.labels.equal(draw_set(num_classes, num_classes + 3)[1])
    assert splits.describe().startswith(f"idx, {num_classes} classes: {num_classes + 3} train, 0 val, 5 test, sha256 ")
    config = name_classes(Config(data=DataConfig(name="idx")), splits)
    assert config.data.class_names == splits.class_names
    assert name_classes(config, splits) is config


def test_a_class_may_occur_in_one_of_the_two_files_only(tmp_path: Path) -> None:
    images, few, more = (idx_bytes(draw_set(9, 9)[0]), labels_of(*range(9)), labels_of(*range(1, 10)))
    for number, (train, test) in enumerate([(few, more), (more, few)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for role, content in zip(ROLES, (images, train, images, test), strict=True):
            (folder / role).write_bytes(content)
        assert len(read(folder, "idx")[2]) == 10


def labels_of(*labels: int, kind: str = "int") -> bytes:
    return idx_bytes(torch.tensor(labels), kind)


@pytest.mark.parametrize(
    ("name", "classes", "labels", "told"),
    [
        ("idx", (), labels_of(0, 0, 0), "train-labels-idx1-ubyte: all labels are 0; a data set has at least 2 classes"),
        ("idx", (), labels_of(0, -1, 1), "label 1 is -1; labels must be 0 to 999"),
        ("idx", (), labels_of(0, 1000, 1), "label 1 is 1000; labels must be 0 to 999"),
        ("idx", ("a", "b"), labels_of(0, 1, 2), "label 2 is 2; labels must be 0 to 1, as data.classes has 2 names"),
        ("mnist", (), labels_of(0, 9, 10, kind="ubyte"), "must be 0 to 9; --data.name=idx takes any number of classes"),
        ("mnist", (), labels_of(0, 9, 1), "IDX elements of type 0x0c; only bytes (0x08) are labels"),
        ("idx", (), idx_bytes(torch.zeros(3, 8)), "an IDX file of 2 dimensions, but labels have 1"),
    ],
)
def test_labels_beyond_the_classes_are_one_line(
    tmp_path: Path, name: str, classes: tuple[str, ...], labels: bytes, told: str
) -> None:
    images = idx_bytes(torch.zeros(3, 28, 28))
    for role in ROLES:
        (tmp_path / role).write_bytes(labels if "labels" in role else images)
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, classes=classes)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_labels_must_have_the_columns_of_qmnist(tmp_path: Path) -> None:
    write_known_set(tmp_path, "qmnist", 10, train=12, test=12)
    (tmp_path / "qmnist-test-labels-idx2-int").write_bytes(idx_bytes(torch.zeros(12, 7), "int"))
    with pytest.raises(UserError, match="qmnist-test-labels-idx2-int: labels of 7 columns; only 8 can be used"):
        read(tmp_path, "qmnist")


# Digests


def test_the_digests_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for name in ("mnist", "fashion", "kmnist", "qmnist"):
        listed = getattr(datasets, DATA_SETS[name].class_name).resources
        files = [*listed["train"], *listed["test"]] if name == "qmnist" else listed
        expected = [(url.rpartition("/")[2], md5) for url, md5 in files]
        ours = DATA_SETS[name]
        assert [(f"{ours.name_of(role)}.gz", ours.packed[role]) for role in ROLES] == expected
    every = [md5 for each in DATA_SETS.values() for table in (each.packed, each.unpacked) for md5 in table.values()]
    assert len(set(every)) == len(every) == 4 * (10 + 2)


def make_original(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, packed: bool) -> None:
    """Make the files in a folder those of the original data set."""
    files = find_files(folder, name)
    assert files
    table = DATA_SETS[name].packed if packed else DATA_SETS[name].unpacked
    for role, path in files.items():
        monkeypatch.setitem(table, role, hashlib.md5(path.read_bytes()).hexdigest())  # type: ignore[arg-type]


def rename(folder: Path, name: str, other: str) -> None:
    """Give the files of a set the names that those of another one have."""
    for role in ROLES:
        for suffix in ("", ".gz"):
            path = folder / f"{DATA_SETS[name].name_of(role)}{suffix}"
            if path.exists():
                path.rename(folder / f"{DATA_SETS[other].name_of(role)}{suffix}")


@pytest.mark.parametrize(
    ("name", "packed", "advice"),
    [
        ("fashion", False, "are Fashion-MNIST; use them with --data.name=fashion"),
        ("kmnist", True, "are KMNIST; use them with --data.name=kmnist"),
        ("emnist-digits", True, "are EMNIST digits; rename the files to emnist-digits-train-images-idx3-ubyte, "),
    ],
)
def test_another_known_set_under_the_names_of_mnist_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    packed: bool,
    advice: str,
) -> None:
    write_known_set(tmp_path, name, 10, train=30, test=12, packed=packed)
    make_original(monkeypatch, name, tmp_path, packed)
    assert main(["data", "check", f"--data.name={name}", f"--data.root={tmp_path}"]) == EXIT_DONE
    assert capsys.readouterr().out.endswith(f"the original {DATA_SETS[name].title}\n")
    rename(tmp_path, name, "mnist")
    files = find_files(tmp_path)
    assert files
    assert identify(files[TRAIN_LABELS]) == name
    with pytest.raises(UserError) as caught:
        check_named_right("mnist", files)
    assert str(caught.value).startswith(f"data.name=mnist: the files in {tmp_path} {advice}")
    check_named_right("idx", files)
    check_named_right(name, files)
    assert main(["data", "check", f"--data.root={tmp_path}"]) == EXIT_DONE
    assert capsys.readouterr().out.endswith(f"{DATA_SETS[name].title}: use it with --data.name={name}\n")


def test_an_unpacked_file_is_known_by_the_packed_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision leaves both. KMNIST's MD5 is only known of the packed file."""
    write_known_set(tmp_path, "kmnist", 10, train=30, test=12, packed=True)
    make_original(monkeypatch, "kmnist", tmp_path, packed=True)
    labels = tmp_path / TRAIN_LABELS
    labels.write_bytes(gzip.decompress((tmp_path / f"{TRAIN_LABELS}.gz").read_bytes()))
    assert identify(labels) == "kmnist"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\xff")
    assert identify(labels) is None
    (tmp_path / f"{TRAIN_LABELS}.gz").write_bytes(b"\x1f\x8bdamaged")
    assert identify(labels) is None


def test_a_set_under_a_name_of_its_own_is_not_taken_for_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_known_set(tmp_path, "mnist", 10, train=30, test=12)
    make_original(monkeypatch, "mnist", tmp_path, packed=False)
    command = ["data", "check", "--data.name=fashion", f"--data.root={tmp_path}"]
    assert main(command) == EXIT_DONE
    assert capsys.readouterr().out.endswith("MNIST: use it with --data.name=mnist\n")
    from mnist_dist.train import main as train

    settings = ["--data.name=fashion", f"--data.root={tmp_path}", "--data.val_size=0", "--run.device=cpu"]
    run = tmp_path / "run"
    assert train([*settings, f"--run.dir={run}", "--tracking.mode=disabled", "--train.batch_size=4"]) == EXIT_USER
    assert f"the files in {tmp_path} are MNIST; use them with --data.name=mnist" in capsys.readouterr().err
    assert not run.exists()


# What a folder holds, and which are filled


@pytest.fixture
def said() -> list[str]:
    """Lines of progress."""
    return []


@pytest.mark.parametrize(
    ("path", "wanted", "told"),
    [
        ("EMNIST/raw/{emnist-letters}", "mnist", "use it with --data.name=emnist-letters --data.root={root}"),
        ("EMNIST/raw/{emnist-letters}", "emnist-digits", "use it with --data.name=emnist-letters --data.root={root}"),
        ("deep/er/{qmnist}", "mnist", "use it with --data.name=qmnist --data.root={root}/deep/er"),
        ("MNIST/raw/{mnist}", "fashion", "it holds MNIST (MNIST/raw/t10k-images-idx3-ubyte); use it with"),
        ("KMNIST/raw/{kmnist}", "idx", "it holds KMNIST (KMNIST/raw/t10k-images-idx3-ubyte); use it with"),
        ("some/{mnist}", "qmnist", "it holds files named as MNIST's (some/t10k-images-idx3-ubyte); use it with"),
        ("train.parquet", "kmnist", "it holds parquet files, which are not read (train.parquet); name a folder"),
        ("k49-train-imgs.npz", "kmnist", "it holds Kuzushiji-49 in npz files, which are not read"),
    ],
)
def test_what_is_there_instead_is_named_and_nothing_is_fetched_into_it(
    tmp_path: Path, said: list[str], path: str, wanted: str, told: str
) -> None:
    """Also by `mnist-dist data fetch`, with a source that would fail otherwise."""
    root = tmp_path / "data"
    folder, _, name = path.rpartition("/")
    if name.startswith("{"):
        name = name.strip("{}")
        write_known_set(root / folder, name, len(CLASS_NAMES[name]), train=5, test=5)
    else:
        root.mkdir()
        (root / name).write_bytes(b"")
    before = sorted(root.rglob("*"))
    for provide in (provide_files, ensure_files):
        with pytest.raises(UserError) as caught:
            provide(root, "npm", said.append, wanted)
        assert told.format(root=root) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (said, sorted(root.rglob("*"))) == ([], before)


def test_default_folders_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("fashion", "emnist-letters"):
        write_known_set(default_root(name) / "raw", name, len(CLASS_NAMES[name]), train=5, test=5)
        assert find_files(default_root(name), name)
    assert default_root("emnist-digits") == default_root("emnist-letters") == tmp_path / "mnist_dist" / "emnist"
    assert find_files(default_root()) is None
    with pytest.raises(UserError, match="idx: needs the folder"):
        default_root("idx")
    shutil.rmtree(default_root("fashion"))
    with pytest.raises(UserError, match="no data set in"):
        provide_files(default_root("fashion"), "local", print, "fashion")

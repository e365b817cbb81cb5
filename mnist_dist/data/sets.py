"""The known data sets: their files, where torchvision puts them, and the MD5 digests by which they are recognised.

`mnist-dist data fetch` downloads what torchvision's own addresses serve. The digests of packed files are torchvision's;
those of EMNIST's and of Fashion-MNIST's unpacked files are what several independent projects publish. There are none of
the unpacked files of KMNIST, QMNIST and EMNIST: these are known by their names and where they lie alone. Importing this
module does not import torch.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mnist_dist.utils.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
ROLES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
"""The four files of a set, by the names that MNIST's have. Other sets have others, but each has these four."""

SPLITS = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}
"""Split to the roles of its image file and its label file."""

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class DataSet:
    """A known data set."""

    title: str
    """Its own name."""
    folders: tuple[str, ...]
    """Where below a root its files may be: in it, as downloaded here, or as torchvision and the authors store them."""
    names: tuple[str, str, str, str] = ROLES
    """Names of the four unpacked files, in the order of ROLES."""
    transposed: bool = False
    """Whether rows and columns of the images are exchanged in the files."""
    first_label: int = 0
    """The label of the first class in the files."""
    packed: Mapping[str, str] = field(default_factory=dict)
    """Role to MD5 of its .gz file."""
    unpacked: Mapping[str, str] = field(default_factory=dict)
    """Role to MD5 of its content, as far as it is known."""
    label_columns: int = 0
    """Columns of the label file, of which the first one is the label; 0: it is a list of labels."""
    label_types: tuple[str, ...] = ("ubyte",)
    """Types at the end of a label file's name. With others than bytes, any integers are read."""
    class_name: str = "MNIST"
    """The class in torchvision.datasets that knows where to download it."""
    folder: str = ""
    """Folder below mnist_dist's in the user's cache, into which it is downloaded."""

    def name_of(self, role: str) -> str:
        """The name of the unpacked file for a role."""
        return self.names[ROLES.index(role)]

    def variants(self, role: str) -> tuple[str, ...]:
        """The names that a file may have: with a dash or a dot before idx, gz or raw. A later one is preferred."""
        name = self.name_of(role)
        typed = [name]
        if "labels" in role:
            typed = [f"{name.rpartition('-')[0]}-{kind}" for kind in self.label_types]
        return tuple(
            variant
            for each in typed
            for dotted in [each.replace("-idx", ".idx")]
            for variant in (f"{dotted}.gz", f"{each}.gz", dotted, each)
        )


def digests(*md5s: str) -> dict[str, str]:
    """Role to digest, from four digests in the order of ROLES."""
    return dict(zip(ROLES, md5s, strict=True))


def emnist(split: str, *md5s: str, first_label: int = 0) -> DataSet:
    """A split of EMNIST. `md5s`: of its four packed files, in the order of ROLES."""
    names = [f"emnist-{split}-{part}" for part in ("train-images-idx3", "train-labels-idx1")]
    names += [f"emnist-{split}-{part}" for part in ("test-images-idx3", "test-labels-idx1")]
    train_images, train_labels, test_images, test_labels = (f"{name}-ubyte" for name in names)
    return DataSet(
        f"EMNIST {split}",
        ("", "raw", "EMNIST/raw", "gzip"),
        (train_images, train_labels, test_images, test_labels),
        transposed=True,
        first_label=first_label,
        packed=digests(*md5s),
        class_name="EMNIST",
        folder="emnist",
    )


DATA_SETS: dict[str, DataSet] = {
    "mnist": DataSet(
        "MNIST",
        ("", "raw", "MNIST/raw"),
        packed=digests(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        unpacked=digests(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion": DataSet(
        "Fashion-MNIST",
        ("", "raw", "FashionMNIST/raw", "data/fashion"),
        packed=digests(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        unpacked=digests(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        class_name="FashionMNIST",
        folder="fashion",
    ),
    "kmnist": DataSet(
        "KMNIST",
        ("", "raw", "KMNIST/raw"),
        packed=digests(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        class_name="KMNIST",
        folder="kmnist",
    ),
    "qmnist": DataSet(
        "QMNIST",
        ("", "raw", "QMNIST/raw"),
        (
            "qmnist-train-images-idx3-ubyte",
            "qmnist-train-labels-idx2-int",
            "qmnist-test-images-idx3-ubyte",
            "qmnist-test-labels-idx2-int",
        ),
        packed=digests(
            "ed72d4157d28c017586c42bc6afe6370",
            "0058f8dd561b90ffdd0f734c6a30e5e4",
            "1394631089c404de565df7b7aeaf9412",
            "5b5b05890a5e13444e108efe57b788aa",
        ),
        label_columns=8,
        label_types=("int",),
        class_name="QMNIST",
        folder="qmnist",
    ),
    "emnist-balanced": emnist(
        "balanced",
        "4041b0d6f15785d3fa35263901b5496b",
        "7a35cc7b2b7ee7671eddf028570fbd20",
        "6818d20fe2ce1880476f747bbc80b22b",
        "acd3694070dcbf620e36670519d4b32f",
    ),
    "emnist-byclass": emnist(
        "byclass",
        "712dda0bd6f00690f32236ae4325c377",
        "ee299a3ee5faf5c31e9406763eae7e43",
        "1435209e34070a9002867a9ab50160d7",
        "7a0f934bd176c798ecba96b36fda6657",
    ),
    "emnist-bymerge": emnist(
        "bymerge",
        "4a792d4df261d7e1ba27979573bf53f3",
        "491be69ef99e1ab1f5b7f9ccc908bb26",
        "8eb5d34c91f1759a55831c37ec2a283f",
        "c13f4cd5211cdba1b8fa992dae2be992",
    ),
    "emnist-letters": emnist(
        "letters",
        "8795078f199c478165fe18db82625747",
        "c16de4f1848ddcdddd39ab65d2a7be52",
        "382093a19703f68edac6d01b8dfdfcad",
        "d4108920cd86601ec7689a97f2de7f59",
        first_label=1,
    ),
    "emnist-digits": emnist(
        "digits",
        "d2662ecdc47895a6bbfce25de9e9a677",
        "2223fcfee618ac9c89ef20b6e48bcf9e",
        "a159b8b3bd6ab4ed4793c1cb71a2f5cc",
        "8afde66ea51d865689083ba6bb779fac",
    ),
    "emnist-mnist": emnist(
        "mnist",
        "3663598a39195d030895b6304abb5065",
        "6c092f03c9bb63e678f80f8bc605fe37",
        "fb51b6430fc4dd67deaada1bf25d4524",
        "ae7f6be798a9a5d5f2bd32e078a402dd",
    ),
    "idx": DataSet("an IDX set", ("", "raw"), label_types=("byte", "short", "int", "ubyte")),
}
"""Value of data.name to the data set."""


def md5_of(content: bytes) -> str:
    """MD5 as hex digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def identify(labels: Path) -> str | None:
    """The known data set whose training labels a file holds, by MD5; None for any other file.

    Labels, because they are small. Of some sets only the MD5 of the packed file is known: an unpacked one is recognised
    if the packed file that it came from is beside it, as torchvision leaves it.
    """
    try:
        content = labels.read_bytes()
        packed = labels.with_name(f"{labels.name}.gz")
        if content[:2] == GZIP_MAGIC:
            return known_set(content, is_packed=True)
        if (name := known_set(content, is_packed=False)) or not packed.is_file():
            return name
        beside = packed.read_bytes()
        return known_set(beside, is_packed=True) if gzip.decompress(beside) == content else None
    except (OSError, EOFError, zlib.error):
        return None  # the reader says what is wrong with it


def known_set(labels: bytes, is_packed: bool) -> str | None:
    """The data set of a file of training labels, by its MD5."""
    md5 = md5_of(labels)
    tables = ((name, each.packed if is_packed else each.unpacked) for name, each in DATA_SETS.items())
    return next((name for name, table in tables if table.get(TRAIN_LABELS) == md5), None)


def check_named_right(name: str, files: Mapping[str, Path]) -> None:
    """Refuse the files of another known data set than data.name says; `idx` may be any set.

    Args:
        name: data.name.
        files: role to path.

    Raises:
        UserError: names the set that it is.
    """
    labels = files[TRAIN_LABELS]
    found = identify(labels)
    if found is None or name in (found, "idx"):
        return
    known = DATA_SETS[found]
    renamed = labels.name not in known.variants(TRAIN_LABELS)
    first = f"rename the files to {', '.join(known.names)} and use them" if renamed else "use them"
    raise UserError(
        f"data.name={name}: the files in {labels.parent} are {known.title}; {first} with --data.name={found}"
    )

"""The data sets that `data.name` can name, and the names of their classes. Where their files are: `data.sets`."""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase, digits
from typing import Literal

DataSetName = Literal[
    "mnist",
    "fashion",
    "kmnist",
    "qmnist",
    "emnist-balanced",
    "emnist-byclass",
    "emnist-bymerge",
    "emnist-letters",
    "emnist-digits",
    "emnist-mnist",
    "idx",
]

MIN_CLASSES, MAX_CLASSES = 2, 1000
"""Bounds on the number of classes of `idx`."""
MAX_MATRIX_CLASSES = 100
"""Of more classes, only the cells of a confusion matrix that are not 0 are written."""

DIGITS = tuple(digits)
EMNIST_MERGED = (*digits, *ascii_uppercase, *"abdefghnqrt")
"""Classes of EMNIST where a letter whose two cases look alike is one class."""

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": DIGITS,
    "fashion": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "qmnist": DIGITS,
    "emnist-balanced": EMNIST_MERGED,
    "emnist-byclass": (*digits, *ascii_uppercase, *ascii_lowercase),
    "emnist-bymerge": EMNIST_MERGED,
    "emnist-letters": tuple(ascii_uppercase),
    "emnist-digits": DIGITS,
    "emnist-mnist": DIGITS,
}
"""Names of the classes of each set, in the order of the labels from 0. `idx` has none of its own."""

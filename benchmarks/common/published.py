"""What the recipes are to reach, and what stands in public beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A target that was set before the runs, for a mean over fresh seeds."""

    accuracy: float
    """As a fraction."""
    seeds: int
    """At least."""
    p: float | None = None
    """One-sided p of the mean, below this; None: the mean itself."""
    parameters: int | None = None
    """Fewer than this."""
    seconds: float | None = None
    """Training takes less, on two CPU cores."""


@dataclass(frozen=True)
class Published:
    """A public figure, as its authors report it."""

    name: str
    """On the plots."""
    beside: str
    """The recipe that it stands beside."""
    accuracy: float
    """As a fraction."""
    how: str
    """What the figure is, and how it was chosen."""
    source: str
    """Where it stands, as a link in Markdown."""
    deviation: float | None = None
    seconds: float | None = None
    """Of training."""
    parameters: int | None = None


TARGETS = {
    "speed99": Target(0.99, 30, p=0.01),
    "speed995": Target(0.995, 15, p=0.05, seconds=20),
    "tiny": Target(0.995, 10, parameters=8000),
    "tiny700": Target(0.99, 10, parameters=700),
    "strong": Target(0.997, 8, seconds=20 * 60),
    "record": Target(0.998, 1),
}
DEOTTE = "[MNIST-CNN-99.75](https://github.com/cdeotte/MNIST-CNN-99.75)"
PUBLISHED = (
    Published(
        "train_mnist_fast",
        "speed99",
        0.9904,
        "mean of 30 seeds, 0.76 s on a GTX 1660 Ti",
        "[train_mnist_fast](https://github.com/tuomaso/train_mnist_fast)",
        seconds=0.762,
    ),
    Published(
        "era-s7",
        "tiny",
        0.995,
        "best epoch of one run, 8.9k parameters",
        "[era-s7-ram](https://github.com/The-School-of-AI/era-s7-ram)",
        parameters=8900,
    ),
    Published(
        "Parameter-Efficient-MNIST",
        "tiny700",
        0.9903,
        "best of about 700 runs, each at its best epoch on the test set, 697 parameters",
        "[Parameter-Efficient-MNIST](https://github.com/JoshWarn/Parameter-Efficient-MNIST)",
        parameters=697,
    ),
    Published(
        "MNIST-CNN-99.75, one net",
        "strong",
        0.99641,
        "one net: mean of 1,500, standard deviation 0.047 %; 15 nets take 4 hours on a Tesla K80",
        DEOTTE,
        deviation=0.00047,
        seconds=4 * 3600 / 15,
    ),
    Published(
        "MNIST-CNN-99.75, 15 nets",
        "strong",
        0.99745,
        "ensemble of 15 nets: mean of 100, standard deviation 0.020 %; 4 hours on a Tesla K80",
        DEOTTE,
        deviation=0.0002,
        seconds=4 * 3600,
    ),
    Published(
        "capsules, one net",
        "record",
        0.9983,
        "one net, the best on the test set",
        "[arXiv:2001.09136](https://arxiv.org/abs/2001.09136)",
    ),
    Published(
        "simple CNNs, ensemble",
        "record",
        0.9991,
        "ensemble of ensembles, the best on the test set",
        "[arXiv:2008.10400](https://arxiv.org/abs/2008.10400)",
    ),
)
TUTORIALS = {
    "seeds/cnn": "shapes and feature maps only",
    "seeds/convnet": "97.97 %, seed 1",
    "seeds/basic": "a curve",
    "seeds/deep_head": "training only",
    "seeds/deep_head_fixed": "",
    "seeds/adam": "accuracy on the first 2,000 test images only",
}
"""What the tutorials report that the recipes `seeds/*` grew from."""

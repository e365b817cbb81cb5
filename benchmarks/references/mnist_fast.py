"""The last model and schedule of tuomaso/train_mnist_fast (https://github.com/tuomaso/train_mnist_fast), written anew.

conv 24@5x5, max-pool, ReLU, conv 32@3x3, max-pool, ReLU, linear 256, ReLU, linear 10; Adam at 0.01 with betas 0.7 and
0.9, one cycle stepped with each batch, batch 256, one epoch, fp32; images normalised once and kept in memory. The
reference of time_to_accuracy.py. It prints a JSON object for each seed.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

from mnist_dist.config.sections import DataConfig
from mnist_dist.data.dataset import Splits, read_splits
from mnist_dist.data.loader import normalize
from mnist_dist.data.prepare import ensure_files, resolve_root


def build() -> nn.Module:
    """28x28 -> 24x24 -> 12x12 -> 10x10 -> 5x5."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 5 * 5, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def train(seed: int, splits: Splits, config: DataConfig) -> tuple[float, float]:
    """Accuracy on the test set after one epoch, and the seconds that the epoch took."""
    torch.manual_seed(seed)
    model = build()
    images, labels = normalize(splits.train.images, config), splits.train.labels
    steps = -(-len(labels) // 256)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    start = time.perf_counter()
    for rows in torch.randperm(len(labels)).split(256):
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        predicted = model(normalize(splits.test.images, config)).argmax(1)
    return (predicted == splits.test.labels).float().mean().item(), seconds


def main() -> None:
    """Print accuracy and seconds of each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    options = parser.parse_args()
    config = DataConfig(val_size=0)
    splits = read_splits(ensure_files(resolve_root(""), "auto", lambda text: None), config, seed=0)
    for seed in range(options.first, options.first + options.seeds):
        accuracy, seconds = train(seed, splits, config)
        print(json.dumps({"seed": seed, "accuracy": accuracy, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

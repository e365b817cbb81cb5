"""The accelerate loop of the tutorials: torchvision's dataset and transforms, a DataLoader, `prepare` on everything.

With accelerate's defaults: fp32, PyTorch's memory format, torch's own number of threads. The DataLoader has no workers:
they were tried, and at this size they cost more than they bring. The baseline of loader.py. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST


def build() -> nn.Module:
    """The model of seeds/cnn, as its tutorial writes it."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def main() -> None:
    """Print steps per second, after warming up for a tenth of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="torchvision's root: the folder that holds MNIST/raw")
    parser.add_argument("--steps", type=int, default=200, help="that are timed (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader (default: %(default)s)")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    data = MNIST(options.root, train=True, transform=transform)
    loader = DataLoader(data, batch_size=256, shuffle=True, num_workers=options.workers)
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    model.train()
    warm, step, start = options.steps // 10, 0, 0.0
    while step < warm + options.steps:
        for images, labels in loader:
            if step == warm:
                start = time.perf_counter()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step == warm + options.steps:
                break
    seconds = time.perf_counter() - start
    print(json.dumps({"steps_per_second": options.steps / seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

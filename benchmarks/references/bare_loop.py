"""A bare PyTorch loop over tensors in memory: gather, forward, backward, step. The baseline of overhead.py.

The same model, batch, optimizer, precision and memory format as the trainer's; no metrics, no progress, no tracker, no
checkpoints. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F

from mnist_dist.config.sections import DataConfig
from mnist_dist.data.dataset import read_splits
from mnist_dist.data.prepare import ensure_files, resolve_root
from mnist_dist.models import create_model

BATCH_SIZE = 256


def main() -> None:
    """Print steps per second, after warming up for a tenth of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="that are timed (default: %(default)s)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="default: %(default)s")
    options = parser.parse_args()

    data = read_splits(ensure_files(resolve_root(""), "auto", lambda text: None), DataConfig(val_size=0), seed=0).train
    images = data.images.float().mul_(1 / 255)
    torch.manual_seed(0)
    model = create_model("cnn").to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    model.train()
    order = torch.randperm(len(data))
    warm = options.steps // 10
    start = 0.0
    for step in range(warm + options.steps):
        if step == warm:
            start = time.perf_counter()
        first = step * BATCH_SIZE % (len(data) - BATCH_SIZE)
        rows = order[first : first + BATCH_SIZE]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            logits = model(images[rows])
        loss = F.cross_entropy(logits.float(), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    print(json.dumps({"steps_per_second": options.steps / seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()

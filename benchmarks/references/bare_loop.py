"""A bare PyTorch loop over tensors that already lie in memory: nothing but gather, forward, backward, step.

What the trainer's overhead is measured against. The same net, batch, optimizer, precision and memory format as the
trainer's; no metrics, no progress, no records, no checkpoints.

    python benchmarks/references/bare_loop.py [--steps 400] [--precision no|bf16]
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F

from mnist_dist.config.schema import DataConfig
from mnist_dist.data.dataset import read_splits
from mnist_dist.data.prepare import ensure_files, resolve_root
from mnist_dist.models import create_model


def main() -> None:
    """Print steps per second, without the first tenth of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    data = read_splits(ensure_files(resolve_root(""), "auto", lambda text: None), DataConfig(val_size=0), seed=0).train
    images = data.images.float().mul_(1 / 255)
    torch.manual_seed(0)
    model = create_model(options.model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    model.train()
    order = torch.randperm(len(data))
    warm = options.steps // 10
    start = 0.0
    for step in range(warm + options.steps):
        if step == warm:
            start = time.perf_counter()
        first = step * options.batch_size % (len(data) - options.batch_size)
        rows = order[first : first + options.batch_size]
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

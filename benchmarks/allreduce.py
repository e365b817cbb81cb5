"""Time of torch's all-reduce over gloo on this machine, by number of processes and bytes.

    python benchmarks/allreduce.py > allreduce.json           the table goes to the terminal, JSON to standard output

All processes exist all the time, each with one thread; those that a measurement does not need sleep in a barrier. A
round measures every number of processes and every size once, so that what else the machine does falls on all alike;
medians are taken over the rounds. A time is that of one call of several that follow each other at once. A round during
which other programs took more than 5 % of the machine is repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from quiet import NEVER, OTHERS, TRIES, Others, machine, own_seconds, wait_for_quiet
from rich.console import Console
from rich.table import Table

WORLDS = (1, 2, 4, 8)
DEFAULT_NET = 4 * 94_826  # bytes of the default net's gradient
SIZES = sorted([*(8 * 8**n for n in range(8)), 64 * 2**20, DEFAULT_NET])  # bytes: 8 to 64 MiB
WORK = 4 * 2**20  # bytes that one sample reduces, in as many calls as that takes
CALLS = 20  # of one sample at most


def sample(group: Any, size: int) -> float:
    """Seconds of one all-reduce of `size` bytes, the mean of several calls. Every process of the group calls it."""
    tensor = torch.zeros(size // 4)
    calls = max(1, min(CALLS, WORK // size))
    dist.all_reduce(tensor, group=group)  # also the signal that all are here
    start = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor, group=group)
    return (time.perf_counter() - start) / calls


def measure(rank: int, rounds: int, port: int, answer: Path) -> None:
    """One process's part. Rank 0 writes [[processes, bytes, [seconds, one a round]], ...] to the file `answer`.

    Raises:
        TimeoutError: the machine never was quiet.
    """
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, max(WORLDS), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=max(WORLDS))
    groups = {world: dist.new_group(list(range(world)), backend="gloo") for world in WORLDS}
    one_round(rank, groups)  # warms up
    kept: list[dict[tuple[int, int], float]] = []
    for _ in range(TRIES):
        if rank == 0:
            wait_for_quiet()
        dist.barrier()
        others, before = Others(), own_seconds()
        times = one_round(rank, groups)
        own = torch.tensor(own_seconds() - before)
        dist.all_reduce(own)
        quiet = torch.tensor(others.share(float(own)) < OTHERS)
        dist.broadcast(quiet, 0)
        kept += [times] if quiet else []
        if len(kept) == rounds:
            break
    else:
        raise TimeoutError(NEVER)
    if rank == 0:
        answer.write_text(json.dumps([[world, size, [own[world, size] for own in kept]] for world, size in kept[0]]))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # torch 2.15's gloo threads can abort a process that exits as usual


def one_round(rank: int, groups: dict[int, Any]) -> dict[tuple[int, int], float]:
    """Seconds of one all-reduce by (processes, bytes), of those that this rank takes part in."""
    times = {}
    for world, group in groups.items():
        for size in SIZES:
            dist.barrier()
            if rank < world:
                times[world, size] = sample(group, size)
    return times


def run(rounds: int) -> list[tuple[int, int, list[float]]]:
    """Start the processes, wait for all of them, and give (processes, bytes, [seconds, one a round])."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the system chooses the port
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "times.json")
        mp.spawn(measure, args=(rounds, store.port, answer), nprocs=max(WORLDS))  # ends all where one fails
        return [(world, size, own) for world, size, own in json.loads(answer.read_text())]


def show(points: list[dict[str, Any]], rounds: int) -> None:
    """Microseconds by bytes (rows) and processes (columns)."""
    table = Table(title=f"all-reduce over gloo, us: medians of {rounds} rounds", title_justify="left")
    table.add_column("bytes", justify="right")
    for world in WORLDS:
        table.add_column(f"{world} process{'es' * (world > 1)}", justify="right")
    for size in SIZES:
        table.add_row(f"{size:,}", *(f"{1e6 * p['seconds']:,.0f}" for p in points if p["bytes"] == size))
    Console(stderr=True, highlight=False).print(table)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    points = [
        {"processes": world, "bytes": size, "seconds": statistics.median(own), "least": min(own), "most": max(own)}
        for world, size, own in run(rounds)
    ]
    show(points, rounds)
    print(json.dumps({"machine": machine(), "rounds": rounds, "points": points}, indent=1))


if __name__ == "__main__":
    main()

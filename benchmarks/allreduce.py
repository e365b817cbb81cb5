"""Time of torch's all-reduce over gloo on this machine, by number of processes and bytes.

All processes exist all the time, each with one thread; those that a measurement does not need sleep in a barrier. A
round measures every number of processes and every size once; medians are taken over the rounds. A time is that of one
call of several that follow each other at once. A round during which other programs took more than 5 % of the machine is
repeated. Recorded figures: docs/scaling.md, benchmarks/results/allreduce.json.

examples:
  python benchmarks/allreduce.py                                21 rounds: some minutes, if the machine is idle
  python benchmarks/allreduce.py --rounds 1 --max_load 1        a quick look: about half a minute
  python benchmarks/allreduce.py --json allreduce.json          for scaling_model.py --allreduce
"""

from __future__ import annotations

import common  # noqa: F401  first, so that it says what is not installed

# isort: split

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import spawn

from common.cli import add_count, add_json, build_parser, run_script, write_json
from common.idle import TRIES, OtherLoad, add_max_load, machine, never_idle, own_user_seconds, wait_until_idle
from common.progress import say
from common.rounds import run_rounds
from common.tables import print_table
from mnist_dist.utils.errors import TrainingError

WORLDS = (1, 2, 4, 8)
DEFAULT_MODEL = 4 * 94_826  # bytes of the default model's gradient
SIZES = sorted([*(8 * 8**n for n in range(8)), 64 * 2**20, DEFAULT_MODEL])  # bytes: 8 to 64 MiB
WORK = 4 * 2**20  # bytes that one sample reduces, in as many calls as that takes
CALLS = 20  # of one sample at most
CASE = "all processes and sizes"
PARSER = build_parser(__file__, __doc__)
add_count(PARSER, "rounds", 21, "rounds, of which medians are taken")
add_max_load(PARSER)
add_json(PARSER)

Times = dict[tuple[int, int], float]
"""Seconds of one all-reduce, by (processes, bytes)."""


def work(rank: int, rounds: int, max_load: float, port: int, answers: Connection) -> None:
    """One process's part, rank 0's with messages: ("waits", text), ("busy", share) of a round that is repeated, and
    ("times", Times) of one that counts, `rounds` times."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, max(WORLDS), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=max(WORLDS))
    groups = {world: dist.new_group(list(range(world)), backend="gloo") for world in WORLDS}
    measure_round(rank, groups)  # warms up
    while rounds:
        if rank == 0:
            wait_until_idle(max_load, lambda text: answers.send(("waits", text)))
        dist.barrier()
        load, before = OtherLoad(), own_user_seconds()
        times = measure_round(rank, groups)
        own = torch.tensor(own_user_seconds() - before)
        dist.all_reduce(own)
        share = torch.tensor(load.share(float(own)))
        dist.broadcast(share, 0)  # all decide by what rank 0 saw
        counts = max_load >= 1 or float(share) < max_load
        rounds -= counts
        if rank == 0:
            answers.send(("times", times) if counts else ("busy", float(share)))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # torch 2.15's gloo threads can abort a process that exits as usual


def measure_round(rank: int, groups: Mapping[int, Any]) -> Times:
    """The times of those numbers of processes that this rank belongs to."""
    times = {}
    for world, group in groups.items():
        for size in SIZES:
            dist.barrier()
            if rank < world:
                times[world, size] = sample(group, size)
    return times


def sample(group: Any, size: int) -> float:
    """Seconds of one all-reduce of `size` bytes, the mean of several calls. Every process of the group calls it."""
    tensor = torch.zeros(size // 4)
    calls = max(1, min(CALLS, WORK // size))
    dist.all_reduce(tensor, group=group)  # also the signal that all are here
    start = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor, group=group)
    return (time.perf_counter() - start) / calls


@contextmanager
def started_workers(rounds: int, max_load: float) -> Iterator[Callable[[int], Times]]:
    """Start the processes, which then measure round after round; gives a function that waits for the next one's times.

    The function raises TrainingError if the machine is never idle. All processes are ended at the end.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the system chooses the port
    reader, writer = get_context("spawn").Pipe(duplex=False)
    context = spawn(work, args=(rounds, max_load, store.port, writer), nprocs=max(WORLDS), join=False)

    def next_round(_: int) -> Times:
        busy = 0
        while busy < TRIES:
            if reader not in wait([reader, *context.sentinels]):
                context.join()  # raises what a process raised
            kind, content = reader.recv()
            if kind == "times":
                return dict(content)
            if kind == "busy":
                busy += 1
                say(f"repeated: other programs took {content:.0%} of the machine (--max_load)")
            else:
                say(content)
        raise TrainingError(never_idle(max_load))

    try:
        yield next_round
    finally:
        for process in context.processes:
            process.terminate()
        for process in context.processes:
            process.join()


def describe(name: str, values: Mapping[str, Times]) -> str:
    """What one round found."""
    times = [f"{1e6 * values[name][world, DEFAULT_MODEL]:,.0f}" for world in WORLDS[1:]]
    return f"{DEFAULT_MODEL:,} bytes take {' / '.join(times)} us on {' / '.join(map(str, WORLDS[1:]))} processes"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit code."""
    options = PARSER.parse_args(arguments)
    with started_workers(options.rounds, options.max_load) as next_round:
        results = run_rounds({CASE: next_round}, options.rounds, describe)
    points = []
    for world, size in results.of(CASE)[0]:
        own = [times[world, size] for times in results.of(CASE)]
        seconds = {"seconds": statistics.median(own), "least": min(own), "most": max(own)}
        points.append({"processes": world, "bytes": size, **seconds})
    rows = [
        [f"{size:,}", *(f"{1e6 * point['seconds']:,.0f}" for point in points if point["bytes"] == size)]
        for size in SIZES
    ]
    headings = ("bytes", *(f"{world} process{'es' * (world > 1)}" for world in WORLDS))
    print_table(f"all-reduce over gloo, us: medians of {results.title()}", headings, rows)
    write_json(options.json, {"machine": machine(), "rounds": results.complete(), "points": points})
    return results.exit_code()


if __name__ == "__main__":
    run_script(main)

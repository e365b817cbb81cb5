"""`mnist-dist doctor`: would this run work here? Checks a machine, or under a launcher all of a run's processes.

`accelerate launch --config_file launch/cpu_2.yaml -m mnist_dist doctor` looks at what a run started like that meets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnist_dist.commands.doctor_checks import (
    CHECK_SECONDS,
    EVERYWHERE,
    NOTE,
    OK,
    ON_RANK_0,
    PROBLEM,
    TORCH_SECONDS,
    VERDICTS,
    WITH_TORCH,
    Finding,
    probe,
    run_checks,
)
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.distributed.consistency import describe_clocks
from mnist_dist.distributed.topology import Topology, resolve_topology, set_omp_wait_policy
from mnist_dist.distributed.watchdog.comm_errors import format_ranks
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, TrainingError, UserError
from mnist_dist.utils.exit import report, skip_exit_hooks
from mnist_dist.utils.versions import software

if TYPE_CHECKING:
    from mnist_dist.distributed.runtime import Runtime

MEETING_SECONDS = 60.0
"""How long processes wait for each other, if run.timeout does not say less."""
LATE_SECONDS = 30.0
"""What they may need beyond that to join, measure and leave."""
SLOW_MS = 5.0
"""An all-reduce of one number that takes longer holds a run of small steps back."""

USAGE = """usage: mnist-dist doctor [--json] [what the training command is given]

Checks what a run needs before it is started, and says what to do. Start it as the run will be: under a launcher it
looks at all processes, and rank 0 shows one table. Exit code 0: the run would work; 1: it would fail.

  --json  one JSON object instead of the table"""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist doctor ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments.
        TrainingError: on other ranks than 0, that the processes could not meet.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return EXIT_DONE
    wrong = []
    try:
        topology = resolve_topology()
    except UserError as error:
        topology, wrong = Topology(), [Finding("launcher", str(error), PROBLEM, "start by one launcher only")]
    config = load([each for each in arguments if each != "--json"], topology.world_size, topology.fsdp).config
    seconds = min(config.run.timeout, MEETING_SECONDS)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, timeout=seconds))
    set_omp_wait_policy()
    checks = EVERYWHERE | (ON_RANK_0 if topology.is_main else {})
    findings = run_checks(checks, config, topology, CHECK_SECONDS)
    findings += run_checks(WITH_TORCH, config, topology, TORCH_SECONDS)
    if threading.active_count() > 1:
        skip_exit_hooks()  # a check that hangs must not keep this process
    as_json = "--json" in arguments
    # gloo can take five times its timeout to find that nobody answers; a device can hang for good.
    watch = threading.Timer(seconds + LATE_SECONDS, give_up, [topology, wrong + findings, seconds, as_json])
    watch.daemon = True
    watch.start()
    rows = wrong + meet(config, topology, findings)
    watch.cancel()
    if topology.is_main:
        show(rows, as_json)
    return EXIT_FAILED if any(row.verdict == PROBLEM for row in rows) else EXIT_DONE


def meet(config: Config, topology: Topology, findings: list[Finding]) -> list[Finding]:
    """What all processes found, and what they find together.

    Raises:
        TrainingError: on other ranks than 0, why they could not meet.
    """
    for finding in findings:
        if finding.check == "device" and finding.verdict == PROBLEM:  # a run would end here too, on all this machine
            if topology.is_main:
                return findings
            raise TrainingError(f"{finding.found}; {finding.advice}")
    from mnist_dist.distributed.runtime import start_runtime

    try:
        with start_runtime(config, topology) as runtime:
            answers = runtime.all_gather_object((socket.gethostname(), [dataclasses.asdict(each) for each in findings]))
            every = [[Finding(**each) for each in theirs] for _, theirs in answers]
            return merge(every) + together(runtime, [host for host, _ in answers])
    except (TrainingError, UserError) as error:
        found = f"{topology.address} {probe(topology.address)}" if topology.address else "accelerate"
        if not topology.is_main and isinstance(error, TrainingError):
            raise TrainingError(f"{error}; {found}") from error
        advice = f"check that every machine was started, with its own rank and this address; {found}"
        return [*findings, Finding("meeting", str(error), PROBLEM, advice if topology.world_size > 1 else "")]


def give_up(topology: Topology, findings: list[Finding], seconds: float, as_json: bool) -> None:
    """Say what is known, and end this process, which is stuck where the processes meet."""
    told = f"rank {topology.rank} of {topology.world_size} is stuck: nothing came of it within {seconds:g} s"
    advice = f"{topology.address} {probe(topology.address)}" if topology.address else "is a device or a driver stuck?"
    if topology.is_main:
        show([*findings, Finding("meeting", told, PROBLEM, advice)], as_json)
    else:
        report(f"{told}; {advice}", EXIT_FAILED)
    sys.stdout.flush()
    os._exit(EXIT_FAILED)


def together(runtime: Runtime, hosts: Sequence[str]) -> list[Finding]:
    """What only all processes can find out: what differs between them, and how long an exchange takes."""
    import torch

    world_size = runtime.world_size
    mine = software()
    shown = ", ".join(f"{name} {value}" for name, value in mine.items())
    answers = runtime.all_gather_object((mine, time.time()))
    if world_size == 1:
        return [Finding("software", shown), Finding("precision of the run", runtime.precision)]
    odd = [rank for rank, (theirs, _) in enumerate(answers) if theirs != answers[0][0]]
    if odd:
        rank = odd[0]
        keys = [key for key in mine if answers[rank][0].get(key) != answers[0][0].get(key)]
        told = ", ".join(f"{key} {answers[rank][0].get(key)} against {answers[0][0].get(key)}" for key in keys)
        advice = "install the same on every machine"
        alike = Finding("software", f"{format_ranks(odd)} ({hosts[rank]}) differ from rank 0: {told}", PROBLEM, advice)
    else:
        alike = Finding("software", f"the same everywhere: {shown}")
    clocks = [clock for _, clock in answers]
    spread = f"{max(clocks) - min(clocks):.1f} s apart"
    far_apart = describe_clocks(clocks)
    time_of = {name: all_reduce_ms(runtime, torch.zeros(n)) for name, n in (("4 B", 1), ("1 MiB", 1 << 18))}
    speed = ", ".join(f"{name} {value:.2f} ms" for name, value in time_of.items())
    slow = time_of["4 B"] > SLOW_MS
    return [
        alike,
        Finding("clocks", far_apart or spread, NOTE if far_apart else OK, "set the clocks (NTP)" if far_apart else ""),
        Finding("meeting", runtime.describe()["processes"]),
        Finding("all-reduce", speed, NOTE if slow else OK, "a slow network, or a busy machine" if slow else ""),
        Finding("precision of the run", runtime.precision),
    ]


def all_reduce_ms(runtime: Runtime, tensor: object, rounds: int = 11) -> float:
    """Milliseconds of one all-reduce: the median, the same on every process."""
    import torch

    value = torch.as_tensor(tensor).to(runtime.device)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        runtime.all_reduce_sum(value)
        value.flatten()[0].item()  # wait for the device
        times.append(time.perf_counter() - start)
    return runtime.broadcast(statistics.median(times) * 1000)


def merge(every: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding a check from those of all ranks; where they differ, who found what.

    Args:
        every: by rank.
    """
    rows = []
    for check in dict.fromkeys(finding.check for findings in every for finding in findings):
        groups: dict[Finding, list[int]] = {}
        for rank, findings in enumerate(every):
            for finding in findings:
                if finding.check == check:
                    groups.setdefault(finding, []).append(rank)
        worst = max(groups, key=lambda finding: VERDICTS.index(finding.verdict))
        if len(groups) > 1:
            found = "; ".join(f"{format_ranks(ranks)}: {finding.found}" for finding, ranks in groups.items())
            worst = dataclasses.replace(worst, found=found)
        rows.append(worst)
    return rows


def show(rows: Sequence[Finding], as_json: bool) -> None:
    """Print the table, or the JSON object, and what it comes to."""
    works = all(row.verdict != PROBLEM for row in rows)
    if as_json:
        print(json.dumps({"works": works, "checks": [dataclasses.asdict(row) for row in rows]}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("check", "found", "verdict", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "verdict"))
    colours = {OK: "green", NOTE: "yellow", PROBLEM: "bold red"}
    for row in rows:
        table.add_row(row.check, Text(row.found), Text(row.verdict, colours[row.verdict]), Text(row.advice))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    print("this run would work" if works else "this run would fail: see the problems above")

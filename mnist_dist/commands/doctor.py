"""`mnist-dist doctor`: check whether a run would work here, on one process or under a launcher on all of them."""

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

from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.doctor_checks import (
    ALL_RANK_CHECKS,
    CHECK_SECONDS,
    NOTE,
    OK,
    PROBLEM,
    RANK_0_CHECKS,
    TORCH_SECONDS,
    VERDICTS,
    Finding,
    is_a_check_left,
    probe_address,
    run_checks,
)
from mnist_dist.commands.doctor_torch_checks import TORCH_CHECKS
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.distributed.consistency import describe_clock_skew
from mnist_dist.distributed.topology import Topology, resolve_topology, set_omp_wait_policy
from mnist_dist.distributed.watchdog.comm_errors import format_ranks
from mnist_dist.utils.error_file import write_error_file
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, TrainingError, UserError
from mnist_dist.utils.exit import report, skip_exit_hooks
from mnist_dist.utils.versions import software

if TYPE_CHECKING:
    from mnist_dist.distributed.runtime import Runtime

RENDEZVOUS_SECONDS = 60.0
"""Timeout of the rendezvous and the collectives, unless run.timeout is shorter."""
MARGIN_SECONDS = 30.0
"""Time beyond that timeout until a process that is still stuck is ended."""
WIDE = 120
"""Columns from which the table of the doctor has a column of its own for advice."""
SLOW_MS = 5.0
"""An all-reduce of one number that takes longer slows down small steps."""


def main(arguments: list[str]) -> int:
    """Run `mnist-dist doctor ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments.
        TrainingError: the rendezvous failed; raised on other ranks than 0, which shows it in the table.
        SystemExit: 0, after printing the help.
    """
    options, rest = build_parser().parse_known_args(arguments)
    wrong = []
    try:
        topology = resolve_topology()
    except UserError as error:
        topology, wrong = Topology(), [Finding("launcher", str(error), PROBLEM, "start by one launcher only")]
    config = load(rest, topology.world_size, topology.fsdp).config
    seconds = min(config.run.timeout, RENDEZVOUS_SECONDS)
    config = config.model_copy(update={"run": config.run.model_copy(update={"timeout": seconds})})
    set_omp_wait_policy()
    checks = ALL_RANK_CHECKS | (RANK_0_CHECKS if topology.is_main else {})
    findings = run_checks(checks, config, topology, CHECK_SECONDS)
    findings += run_checks(TORCH_CHECKS, config, topology, TORCH_SECONDS)
    if is_a_check_left():
        skip_exit_hooks()  # a check that hangs must not keep this process
    # gloo can take five times its timeout to find that nobody answers; a device can hang for good.
    stuck = [topology, wrong + findings, seconds, options.json]
    watchdog = threading.Timer(seconds + MARGIN_SECONDS, exit_stuck, stuck)
    watchdog.daemon = True
    watchdog.start()
    rows = wrong + gather_findings(config, topology, findings)
    watchdog.cancel()
    if topology.is_main:
        show(rows, options.json)
    return EXIT_FAILED if any(row.verdict == PROBLEM for row in rows) else EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command. The arguments that it does not know are those of training."""
    parser = Parser(
        prog="mnist-dist doctor",
        usage="%(prog)s [--json]\n       [--config NAME|PATH]... [--section.key=VALUE]...",
        description="Check what a run needs before it is started, and say what to do. Start it like the run, with the "
        "same launcher and settings: it checks all processes, and rank 0 shows one table. Exit code 0: the run would "
        "work; 1: it would fail.",
        examples=[
            "mnist-dist doctor",
            "mnist-dist doctor --config=debug --run.dir=runs/digits --tracking.mode=offline",
            "torchrun --nproc-per-node 2 -m mnist_dist doctor --run.dir=runs/two",
            "torchrun --nproc_per_node 2 -m mnist_dist doctor --json --run.device=cpu",
        ],
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def gather_findings(config: Config, topology: Topology, findings: list[Finding]) -> list[Finding]:
    """The findings of all processes as one row per check, and the checks that need all of them.

    Args:
        findings: those of this process.

    Raises:
        TrainingError: the rendezvous failed; raised on other ranks than 0.
        KeyboardInterrupt: a rank was asked to stop.
    """
    for finding in findings:
        if finding.check == "device" and finding.verdict == PROBLEM:  # a run would fail here, too, on the whole machine
            if topology.is_main:
                return findings
            raise TrainingError(f"{finding.found}; {finding.advice}")
    from mnist_dist.distributed.runtime import start_runtime
    from mnist_dist.training.run_evaluation import interrupt_if_asked

    try:
        with start_runtime(config, topology) as runtime:
            answers = runtime.all_gather_object((socket.gethostname(), [dataclasses.asdict(each) for each in findings]))
            every = [[Finding(**each) for each in theirs] for _, theirs in answers]
            hosts = [host for host, _ in answers]
            found = merge(every) + check_data_sets(runtime, config, hosts) + check_all_ranks(runtime, hosts)
            for _ in range(2):  # the first call has the answer of none
                interrupt_if_asked(runtime)
            return found
    except (TrainingError, UserError) as error:
        probed = f"{topology.address} {probe_address(topology.address)}" if topology.address else "accelerate"
        if not topology.is_main and isinstance(error, TrainingError):
            raise TrainingError(f"{error}; {probed}") from error
        advice = f"check that every machine was started, with its own rank and this address; {probed}"
        return [*findings, Finding("rendezvous", str(error), PROBLEM, advice if topology.world_size > 1 else "")]


def exit_stuck(topology: Topology, findings: list[Finding], seconds: float, as_json: bool) -> None:
    """Report the findings so far and exit: this process is stuck in the rendezvous or in a collective."""
    told = f"rank {topology.rank} of {topology.world_size} is stuck: no answer within {seconds:g} s"
    advice = (
        f"{topology.address} {probe_address(topology.address)}"
        if topology.address
        else "is a device or a driver stuck?"
    )
    if topology.is_main:
        show([*findings, Finding("rendezvous", told, PROBLEM, advice)], as_json)
    else:
        write_error_file(f"{told}; {advice}")
        report(f"{told}; {advice}", EXIT_FAILED)
    sys.stdout.flush()
    os._exit(EXIT_FAILED)


def check_all_ranks(runtime: Runtime, hosts: Sequence[str]) -> list[Finding]:
    """The checks that need all processes: versions, clocks, rendezvous and the time of an all-reduce.

    Args:
        hosts: host name of each rank.
    """
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
    far_apart = describe_clock_skew(clocks)
    time_of = {name: all_reduce_ms(runtime, torch.zeros(n)) for name, n in (("4 B", 1), ("1 MiB", 1 << 18))}
    speed = ", ".join(f"{name} {value:.2f} ms" for name, value in time_of.items())
    slow = time_of["4 B"] > SLOW_MS
    return [
        alike,
        Finding("clocks", far_apart or spread, NOTE if far_apart else OK, "set the clocks (NTP)" if far_apart else ""),
        Finding("rendezvous", runtime.describe()["processes"]),
        Finding("all-reduce", speed, NOTE if slow else OK, "a slow network, or a busy machine" if slow else ""),
        Finding("precision of the run", runtime.precision),
    ]


def check_data_sets(runtime: Runtime, config: Config, hosts: Sequence[str]) -> list[Finding]:
    """Whether all processes that have the data set have the same images and labels; nothing if none has it.

    Args:
        hosts: host name of each rank.
    """
    from mnist_dist.data.dataset import read_splits
    from mnist_dist.data.find_files import find_files
    from mnist_dist.data.prepare import resolve_root

    shown, wrong = "", ""
    try:
        if files := find_files(resolve_root(config.data.root, config.data.name), config.data.name):
            shown = read_splits(files, config.data, config.run.seed, config.train_limit).describe()
    except UserError as error:
        wrong = str(error)
    answers = runtime.all_gather_object((shown, wrong))
    for rank, (_, reason) in enumerate(answers):
        if reason:
            told, _, advice = reason.partition("; ")
            who = f"rank {rank} ({hosts[rank]}): " if runtime.world_size > 1 else ""
            return [Finding("data set", f"{who}{told}", PROBLEM, advice or "mnist-dist data check")]
    groups: dict[str, list[int]] = {}
    for rank, (found, _) in enumerate(answers):
        if found:
            groups.setdefault(found, []).append(rank)
    if len(groups) < 2:
        return [Finding("data set", found) for found in groups]
    told = "; ".join(f"{format_ranks(ranks)} ({hosts[ranks[0]]}): {found}" for found, ranks in groups.items())
    return [Finding("data set", told, PROBLEM, "copy one machine's files to the others")]


def all_reduce_ms(runtime: Runtime, tensor: object, rounds: int = 11) -> float:
    """Median milliseconds of an all-reduce, the same number on every rank."""
    import torch

    value = torch.as_tensor(tensor).to(runtime.device)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        runtime.all_reduce_sum(value)
        value.flatten()[0].item()  # synchronise the device
        times.append(time.perf_counter() - start)
    return runtime.broadcast(statistics.median(times) * 1000)


def merge(every: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding per check, the worst of all ranks. If they differ, it names the ranks with what each found.

    Args:
        every: the findings of each rank.
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
    """Print the table and its verdict, or one JSON object. In a narrow terminal, advice is below what was found."""
    works = all(row.verdict != PROBLEM for row in rows)
    if as_json:
        print(json.dumps({"works": works, "checks": [dataclasses.asdict(row) for row in rows]}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    is_wide = console.width >= WIDE and any(row.advice for row in rows)
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "found", "verdict", *(["what to do"] if is_wide else [])):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "verdict"))
    colours = {OK: "green", NOTE: "yellow", PROBLEM: "bold red"}
    for row in rows:
        verdict = Text(row.verdict, colours[row.verdict])
        if is_wide:
            table.add_row(row.check, Text(row.found), verdict, Text(row.advice))
        else:
            table.add_row(row.check, Text(f"{row.found}\n-> {row.advice}" if row.advice else row.found), verdict)
    console.print(table)
    print("this run would work" if works else "this run would fail: see the problems above")

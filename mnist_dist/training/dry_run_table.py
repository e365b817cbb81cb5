"""What a dry run found, as a table and notes for people."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

import torch

from mnist_dist.checkpoint.manager import VerifiedCheckpoint
from mnist_dist.config.schema import Config
from mnist_dist.config.validation import describe_excess
from mnist_dist.console.console import Console
from mnist_dist.console.formatting import facts_lines, format_bytes
from mnist_dist.data.dataset import Splits
from mnist_dist.distributed.device import peak_memory
from mnist_dist.training.rank_plan import RankPlan
from mnist_dist.training.rank_shares import RankShares
from mnist_dist.training.trial_step import MAX_IMAGES, StepCost


@dataclass(frozen=True)
class DryRun:
    """What N processes would meet."""

    config: Config
    plan: RankPlan
    data: Splits
    shares: RankShares
    cost: StepCost | None
    """None: not measured."""
    checkpoint: VerifiedCheckpoint | None
    """What the run would resume from; None if it starts anew."""


def print_dry_run(found: DryRun, console: Console) -> None:
    """Print the table, then a line for each thing to know about."""
    facts = describe_ranks(found) | describe_images(found) | describe_memory(found)
    columns = shutil.get_terminal_size().columns
    for line in facts_lines(facts, columns):
        console.print(line)
    for note in find_notes(found):
        for line in wrap(f"note: {note}", columns, subsequent_indent="  ", break_on_hyphens=False):
            console.print(line)


def describe_ranks(found: DryRun) -> dict[str, str]:
    """Processes, device, threads, strategy and run directory."""
    plan, config = found.plan, found.config
    count, per_machine = plan.topology.world_size, plan.topology.local_world_size
    machines = plan.topology.machines
    place = f"{machines} machine{'s' * (machines > 1)} with {per_machine} GPU{'s' * (per_machine > 1)} each"
    threads = f"{max(plan.cores // per_machine, 1)} per process with {per_machine} on a machine like this one"
    if per_machine > 1:
        threads += f", {plan.cores} with one"
    if plan.device == "cpu":
        place = "one machine"
    elif not plan.is_here:
        place, threads = "one GPU each", "a machine's cores divided by its processes"
    absent = "; this machine has none, so steps were tried on its CPU"
    return {
        "processes": f"{count}, {place}",
        "device": f"{plan.device}, {plan.precision.replace('no', 'fp32')}{'' if plan.is_here else absent}",
        "threads": f"{config.run.threads} per process" if config.run.threads else threads,
        "gradients": found.cost.strategy if found.cost else "not tried",
        "run": f"resumes {found.checkpoint.folder}" if found.checkpoint else "from step 0",
    }


def describe_images(found: DryRun) -> dict[str, str]:
    """The data set, and each process's share in a batch and in an evaluation."""
    config, shares, data = found.config, found.shares, found.data
    epochs, steps = config.train.epochs, shares.steps_per_epoch
    total = min(config.train.max_steps or epochs * steps, epochs * steps)
    microbatches = f" in {config.train.accumulate} microbatches" if config.train.accumulate > 1 else ""
    facts = {
        "data": data.describe(),
        "steps": f"{total:,} ({epochs} epoch{'s' * (epochs > 1)} x {steps:,})",
        "each batch": f"{sum(shares.batch):,} images: {describe_shares(shares.batch)}{microbatches}",
    }
    if shares.last_batch != shares.batch:
        facts["last batch"] = f"{sum(shares.last_batch):,} images: {describe_shares(shares.last_batch)}"
    for name, label in (("val", "validation"), ("test", "test")):
        if images := sum(shares.evaluation[name]):
            facts[label] = f"{images:,} images: {describe_shares(shares.evaluation[name])}"
    return facts


def describe_memory(found: DryRun) -> dict[str, str]:
    """What a process keeps in memory, and what it sends in a step."""
    cost, data, count = found.cost, found.data, found.plan.topology.world_size
    if cost is None:
        return {}
    about = {
        "activations": f" for {cost.microbatch:,} image{'s' * (cost.microbatch > 1)}",
        "gathered": " from all processes, for a part of a step",
    }
    parts = {f"  {name}": f"{format_bytes(size)}{about.get(name, '')}" for name, size in cost.memory.items() if size}
    images = sum(split.images.nbytes + split.labels.nbytes for split in (data.train, data.val, data.test))
    facts = {
        "memory": f"{format_bytes(sum(cost.memory.values()) + images)} per process, for {cost.parameters:,} parameters",
        **parts,
        "  images": f"{format_bytes(images)}, all of them in each process",
    }
    if found.plan.device == "cpu":
        whole = format_bytes(peak_memory(torch.device("cpu")))
        facts["  in all"] = f"about {whole} with Python and torch, as in this process"
    sent = f"about {format_bytes(cost.sent)} sent and received per process and step, over a ring"
    return facts | {"traffic": sent if count > 1 else "none"}


def describe_shares(shares: Sequence[int]) -> str:
    """As in `4 per process`, or `0 to 1 per process, 20 of 64 without any`."""
    least, most, without = min(shares), max(shares), sum(not share for share in shares)
    each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"{each} per process" + (f", {without} of {len(shares)} without any" if without else "")


def find_notes(found: DryRun) -> Iterator[str]:
    """What is allowed, and may not be meant."""
    config, plan, shares = found.config, found.plan, found.shares
    count, local = plan.topology.world_size, plan.topology.local_world_size
    if config.run.device == "auto" and plan.device == "cpu":
        yield "for processes with a GPU each, which this machine does not have, add --run.device=cuda"
    processes, images = local if plan.is_here else 1, found.data
    yield from describe_excess(config, len(images.train), len(images.test), processes, os.cpu_count() or 1)
    if plan.device == "cpu" and local > plan.cores and not config.run.threads:
        yield f"{local} processes would share {plan.cores} cores if all were on a machine like this one"
    if without := sum(not share for share in shares.last_batch):
        yield f"{without} processes wait during an epoch's last batch; data.drop_last=true leaves that batch out"
    if not plan.shards and count > 1:
        advice = f"; with --train.shards={count} they would not{', and are trained here' if plan.is_here else ''}"
        can_shard = not plan.topology.fsdp and config.train.compile == "no" and config.train.compress == "no"
        yield f"the last bits of the weights depend on the number of processes{advice if can_shard else ''}"
    if found.cost is None:
        yield "memory and traffic were not measured: no step could be tried here"
    if found.cost and plan.precision == "fp16" and not plan.is_here:
        yield "activations were measured in fp32; in fp16 they take about half of that"
    if config.train.compile != "no":
        yield "torch.compile was not tried here"
    if found.cost and found.cost.microbatch > MAX_IMAGES:
        yield f"steps were tried with {MAX_IMAGES} images; activations are calculated from fewer"

"""`run.as_processes=N`: in one process, check what N processes would meet, before anybody starts or rents them.

Every rank's share comes from the real samplers. Rank 0 does real steps in torch's fake process group, which give its
memory and what it sends. Nothing is written but the data set, if it is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from mnist_dist.checkpoint.manager import VerifiedCheckpoint, newest_verified
from mnist_dist.checkpoint.model_files import check_resumable_code
from mnist_dist.checkpoint.resume_checks import check_resumable
from mnist_dist.checkpoint.run_dir import newest_run_to_resume, resolve_checkpoint
from mnist_dist.checkpoint.run_paths import CHECKPOINTS, RUNS, check_not_foreign, not_writable
from mnist_dist.config.loader import LoadedConfig
from mnist_dist.config.schema import Config
from mnist_dist.config.validation import describe_processes, refusal
from mnist_dist.console.console import Console, open_console
from mnist_dist.data.dataset import Splits, name_classes, read_splits
from mnist_dist.data.identity import check_resumable_data
from mnist_dist.data.prepare import provide_files, resolve_root
from mnist_dist.distributed.fake_group import NoFakeGroup, start_fake_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.models import find_builder
from mnist_dist.training.build_model import build_model, find_model
from mnist_dist.training.dry_run_table import DryRun, print_dry_run
from mnist_dist.training.initial_weights import load_initial_weights
from mnist_dist.training.rank_plan import RankPlan, plan_ranks
from mnist_dist.training.rank_shares import RankShares, find_rank_shares
from mnist_dist.training.trial_step import StepCost, measure_step
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home


def dry_run(loaded: LoadedConfig, topology: Topology) -> LoadedConfig | None:
    """Print what run.as_processes processes would meet.

    Args:
        loaded: settings that fit so many processes.
        topology: of this process, which is alone.

    Returns:
        The settings to train with in this process, to the weights of that many. None without fixed shards, where the
        weights depend on the number of processes, and if this machine lacks the device.

    Raises:
        UserError: the run would be refused. The message has all reasons that were found.
    """
    count = loaded.config.run.as_processes
    config = loaded.config.model_copy(update={"run": loaded.config.run.model_copy(update={"as_processes": 0})})
    console = open_console(is_main=True, quiet=config.run.quiet)
    reasons: list[str] = []
    checkpoint: VerifiedCheckpoint | None = None
    cost: StepCost | None = None
    plan: RankPlan | None = None
    with noted(reasons):
        plan = plan_ranks(config, topology, count)
    with noted(reasons):
        data = read_data(config, console.print)
        config = name_classes(config, data)
        with noted(reasons):
            checkpoint = find_checkpoint(config, data, console.warn)
        if plan is not None:
            shares = find_rank_shares(config, data, count, plan.shards)
            with noted(reasons):
                cost = try_step(config, plan, data, shares, checkpoint is not None, console)
            print_dry_run(DryRun(config, plan, data, shares, cost, checkpoint), console)
    if reasons:
        raise refusal(count, reasons)
    assert plan is not None
    verdict = f"{describe_processes(count)}: would train"
    if not plan.shards or not plan.is_here:
        console.print(verdict)
        return None
    console.print(f"{verdict}; this process goes on as they would, to the same weights")
    return replace(loaded, config=config)


@contextlib.contextmanager
def noted(reasons: list[str]) -> Iterator[None]:
    """End the block at a UserError, and add its message to `reasons`."""
    try:
        yield
    except UserError as error:
        reasons.append(str(error))


def read_data(config: Config, say: Callable[[str], None]) -> Splits:
    """The data set, downloaded as a run would do it.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    name = config.data.name
    files = provide_files(resolve_root(config.data.root, name), config.data.source, say, name)
    return read_splits(files, config.data, config.run.seed, config.train_limit)


def find_checkpoint(config: Config, data: Splits, warn: Callable[[str], None]) -> VerifiedCheckpoint | None:
    """The checkpoint that the run would resume from; None if it would start anew.

    Raises:
        UserError: run.dir holds something else, or the checkpoint is of other settings or data.
    """
    resume, checkpoint = config.run.resume, None
    if resume not in ("auto", "never", "last"):
        checkpoint = resolve_checkpoint(expand_home(resume, "run.resume="), warn)
    elif resume != "never" and (config.run.dir or resume == "last"):
        folder = newest_run_to_resume() if resume == "last" else expand_home(config.run.dir, "run.dir=")
        try:
            if folder.exists():
                check_not_foreign(folder)
            checkpoint = newest_verified(folder / CHECKPOINTS, warn)
        except OSError as error:
            raise not_writable(folder, error) from None
    if checkpoint is not None:
        saved = checkpoint.parse().state
        check_resumable(config, saved["config"], checkpoint.folder)
        check_resumable_code(saved["code"], find_builder(config.model.name).digests, checkpoint.folder)
        saved_root = saved["config"].get("data", {}).get("root", "")
        root = resolve_root(config.data.root, config.data.name)
        check_resumable_data(saved["data"], saved_root, data.digests, root, checkpoint.folder, warn)
    return checkpoint


def try_step(
    config: Config, plan: RankPlan, data: Splits, shares: RankShares, is_resumed: bool, console: Console
) -> StepCost | None:
    """Do steps as rank 0, on this machine's GPU if the processes would have one; None if torch has no fake group.

    Args:
        is_resumed: whether a checkpoint has the weights, so that model.init_from does not count.

    Raises:
        UserError: the weights of model.init_from do not fit, or a step fails.
    """
    cpu = plan.device == "cpu" or not plan.is_here
    precision = "no" if cpu and plan.precision == "fp16" else plan.precision
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    try:
        with start_fake_runtime(config, plan.topology, plan.shards, cpu) as runtime:
            builder = find_model(config, runtime)
            num_classes = len(config.data.class_names)
            model = build_model(builder, config, runtime, num_classes, len(data.train), console.warn)
            if config.model.init_from and not is_resumed:
                folder = expand_home(config.run.dir or str(RUNS / "new"), "run.dir=")
                load_initial_weights(model, config, data, folder, runtime, console)
            return measure_step(model, config, runtime, data.train.to(runtime.device), shares)
    except NoFakeGroup:
        return None
    except (RuntimeError, ValueError, TypeError, LookupError, ImportError) as error:
        lines = str(error).splitlines()
        raise UserError(f"a step of rank 0 fails: {type(error).__name__}: {lines[0] if lines else ''}") from error

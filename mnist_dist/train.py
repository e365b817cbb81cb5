"""Train a model on MNIST: `accelerate launch -m mnist_dist.train [--config NAME|PATH]... [--section.key=value]...`.

This file builds a run from top to bottom. torch is imported only after the settings are checked, so that help and
errors of the configuration appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_dist.checkpoint.state import check_config_readable
from mnist_dist.config.loader import LoadedConfig, dump, load, print_config
from mnist_dist.config.schema import Config, flat
from mnist_dist.config.validation import describe_excess
from mnist_dist.distributed.launcher import is_called_by_launcher
from mnist_dist.distributed.topology import Topology, resolve_topology, set_omp_wait_policy
from mnist_dist.tracking.wandb_auth import WandbKeyCheck, check_tracking, describe_tracking
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Stopped
from mnist_dist.utils.exit import exit_with, run_to_exit_code
from mnist_dist.utils.resume_command import resume_command
from mnist_dist.utils.stdio import ignore_output_errors
from mnist_dist.utils.versions import software, versions

if TYPE_CHECKING:
    from mnist_dist.checkpoint.run_dir import RunDir
    from mnist_dist.console.console import Console
    from mnist_dist.data.dataset import Splits
    from mnist_dist.distributed.runtime import Runtime
    from mnist_dist.training.train_step import TrainStep


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit code of the process.

    Args:
        arguments: command-line arguments; those of the process by default.

    Raises:
        SystemExit: the exit code is not 0, and accelerate's notebook_launcher or debug_launcher called this function:
            they ignore what it returns.
    """
    code = run_to_exit_code(lambda: start(sys.argv[1:] if arguments is None else arguments))
    if code and is_called_by_launcher():
        raise SystemExit(code)
    return code


def start(arguments: Sequence[str]) -> int:
    """Check everything that can be checked before torch is imported, then train. Returns the exit code.

    Raises:
        UserError: a setting, the launcher or the wandb setup is wrong.
        Stopped, TrainingError: see `train_and_test`.
    """
    topology = resolve_topology()
    loaded = load(arguments, topology.world_size, topology.fsdp)
    if loaded.print_config:
        if topology.is_main:
            print_config(loaded.config)
        return EXIT_DONE
    check_config_readable(loaded.config)
    # Machines may have different keys and environments, of which rank 0's count: `check_ranks` checks these.
    if topology.machines == 1:
        check_tracking(loaded.config)
    key_check = WandbKeyCheck(loaded.config) if topology.is_main else None
    set_omp_wait_policy()
    return train(loaded, topology, key_check, arguments)


def train(
    loaded: LoadedConfig, topology: Topology, key_check: WandbKeyCheck | None, arguments: Sequence[str] = ()
) -> int:
    """Build a run, in this order: data files, runtime, data, run directory, checkpoint, model, training state.

    Then train and test it. Returns the exit code.

    Args:
        key_check: the check of the wandb key that is under way, on the main process only.
        arguments: the command line, for the command that resumes a stopped run.

    Raises:
        Stopped, TrainingError: see `train_and_test`.
        UserError: something is wrong with the launcher, the data, the run directory or the checkpoint.
    """
    import torch

    from mnist_dist.checkpoint.run_dir import (
        check_resumable,
        open_run_dir,
        prepare_run_dir,
        warn_if_other_hardware,
    )
    from mnist_dist.checkpoint.run_lock import RunLock
    from mnist_dist.console.console import open_console
    from mnist_dist.console.tee import TeeConsole
    from mnist_dist.data.dataset import name_classes, read_splits
    from mnist_dist.data.identity import check_resumable_data
    from mnist_dist.data.prepare import is_default_root, provide_files, resolve_root
    from mnist_dist.data.sets import check_named_right
    from mnist_dist.distributed.consistency import check_ranks_agree
    from mnist_dist.distributed.runtime import start_runtime
    from mnist_dist.models import create_model
    from mnist_dist.tracking.tracker import new_run_id
    from mnist_dist.training.state import TrainingState
    from mnist_dist.training.train_step import TrainStep

    config = loaded.config
    ignore_output_errors("training goes on without it")
    console = open_console(topology.is_main, config.run.quiet)
    if "console" in config.tracking.share and topology.is_main and not config.run.quiet:
        console = TeeConsole(console)

    # The data files, before any rank waits for another. Into the default folder one process per machine downloads them.
    name = config.data.name
    root = resolve_root(config.data.root, name)
    if topology.is_local_main or not is_default_root(root, name):
        provide_files(root, config.data.source, console.print, name)

    run_lock = RunLock(topology.launcher_pid, topology.worker_pid, topology.restart_count, dump(config))
    with run_lock as lock, start_runtime(config, topology) as runtime:
        check_ranks(loaded, runtime, console)
        files = provide_files(root, "local", console.print, name)
        data = read_splits(files, config.data, config.run.seed, config.train_limit).to(runtime.device)
        check_ranks_agree(runtime, {"the data set": data.shown_digests})
        config = name_classes(config, data)

        # The run directory, locked, and the checkpoint to resume from. Rank 0 opens and reads them for all ranks, which
        # may be on machines without this directory.
        run_dir = runtime.run_on_main(lambda: open_run_dir(config, loaded.recipes, lock, console.warn))
        saved, source = run_dir.load(), run_dir.checkpoint.folder if run_dir.checkpoint else None
        if saved and source:
            check_resumable(config, saved.state["config"], source)
            saved_root = saved.state["config"].get("data", {}).get("root", "")
            check_resumable_data(saved.state["data"], saved_root, data.digests, root, source, console.warn)
        if saved and run_dir.same_run:
            run_id: str = saved.state["run_id"]
        else:
            check_named_right(name, files)
            run_id = runtime.run_on_main(lambda: new_run_id(config, run_dir.folder))

        # The model: the same on all ranks, because each initialises it from the same seed.
        torch.manual_seed(config.run.seed)
        torch.autograd.set_detect_anomaly(config.train.detect_anomaly)
        model = runtime.to_device(create_model(config.model.name, len(config.data.class_names)))

        # The training state: restored from the checkpoint, then wrapped for training.
        state = TrainingState(model, config, runtime, images=len(data.train))
        if saved and source:
            state.restore(saved, str(source))
            warn_if_other_hardware(saved.state["machine"], runtime.fingerprint(), console.warn)
        train_step = TrainStep(state)

        # Up to here only the lock was written: an error above leaves no other file in the run directory.
        was_finished = runtime.run_on_main(lambda: prepare_run_dir(run_dir, config, lock))
        if was_finished and state.progress.step >= state.last_step:
            console.print(
                f"{run_dir.folder} holds this run, finished; to train longer, give more --train.epochs and another "
                "--run.dir; --run.resume=never starts this one over"
            )
        else:
            try:
                train_and_test(train_step, data, console, run_dir, run_id, key_check)
            except Stopped as stopped:
                raise Stopped(f"{stopped}; {how_to_go_on(config, topology, arguments, run_dir)}") from stopped
        lock.mark_finished()
    return EXIT_DONE


def check_ranks(loaded: LoadedConfig, runtime: Runtime, console: Console) -> None:
    """Check that all ranks have the same settings, code and versions.

    Warns if their clocks differ, and if the launcher started fewer than it was told to.

    Raises:
        UserError: something differs, or wandb would refuse the tracking settings of rank 0.
    """
    from mnist_dist.distributed.consistency import check_ranks_agree, describe_clock_skew
    from mnist_dist.distributed.launch_options import describe_missing_processes

    clocks = check_ranks_agree(
        runtime,
        {
            "the configuration": flat(loaded.config),
            "the software": software() if runtime.world_size > 1 else {},
            "the machine (which --train.shards=0 would allow)": runtime.fingerprint() if runtime.shards else {},
            "the precision (which --train.precision decides)": {"precision": runtime.precision},
            "the launcher's fsdp_config": {"FSDP": repr(runtime.topology.fsdp)},
        },
    )
    if runtime.topology.machines > 1:
        runtime.run_on_main(lambda: check_tracking(loaded.config))
    if skew := describe_clock_skew(clocks):
        console.warn(skew)
    if missing := describe_missing_processes(runtime.topology):
        console.warn(missing)


def how_to_go_on(config: Config, topology: Topology, arguments: Sequence[str], run_dir: RunDir) -> str:
    """The command by which a stopped run goes on, in words."""
    # The folder may have been named by the program, and run.resume is for the first start.
    extra = [] if config.run.dir else [f"--run.dir={run_dir.folder}"]
    extra += [] if config.run.resume == "auto" else ["--run.resume=auto"]
    by_other_launcher = not topology.launcher_pid and topology.world_size > 1
    command = resume_command(arguments, extra, topology.launcher_pid, by_other_launcher)
    return f"to go on: {command}" + (" (likewise on the other machines)" if topology.machines > 1 else "")


def train_and_test(
    train_step: TrainStep, data: Splits, console: Console, run_dir: RunDir, run_id: str, key_check: WandbKeyCheck | None
) -> None:
    """Open metrics.jsonl and the tracker, train, test, and write summary.json.

    Args:
        train_step: its state is new, or restored from a checkpoint.
        run_id: the run's id in the tracker.
        key_check: the check of the wandb key that is under way, on the main process only.

    Raises:
        Stopped: a rank was asked to stop; a checkpoint is written.
        TrainingError: train.nonfinite ends the run, or a file cannot be written.
    """
    from mnist_dist.checkpoint.run_dir import write_config, write_summary
    from mnist_dist.checkpoint.run_paths import CHECKPOINTS, METRICS, PROFILE
    from mnist_dist.console.tee import TeeConsole
    from mnist_dist.tracking.metrics_file import MetricsFile
    from mnist_dist.tracking.tracker import open_tracker
    from mnist_dist.training.metric_logger import MetricLogger
    from mnist_dist.training.profiler import measure_peak_flops
    from mnist_dist.training.summary import describe_resolved, summarize
    from mnist_dist.training.trainer import Trainer
    from mnist_dist.training.visualizer import Visualizer, wants_media

    state, config, runtime = train_step.state, train_step.state.config, train_step.state.runtime
    folder, resumed = run_dir.folder, run_dir.same_run
    resumed_from = run_dir.checkpoint.folder if run_dir.checkpoint else None
    tracked = key_check.offline_if_refused(config, console.warn) if key_check else config
    tracking = describe_tracking(tracked) if runtime.is_main else ""  # only rank 0 is sure to have the wandb key
    facts = {"data": data.describe(), "tracking": tracking, "run": str(folder)}
    console.header(runtime.describe() | state.describe() | facts)
    processes = runtime.topology.local_world_size
    for line in describe_excess(config, len(data.train), len(data.test), processes, os.cpu_count() or 1):
        console.warn(line)
    if resumed_from:
        console.print(f"resuming from {resumed_from}")

    metrics_file: MetricsFile | None = None
    if runtime.is_main:
        write_config(folder, config)
        metrics_file = MetricsFile(folder / METRICS, state.progress.step if resumed else -1, console.warn)
    resolved = describe_resolved(state, data) | versions()
    has_media = wants_media(config, tracked, runtime)
    tracker = open_tracker(tracked, folder, run_id, resumed, console.warn, runtime.is_main, resolved)
    if isinstance(console, TeeConsole):
        console.copy_lines_to(tracker.write_logs)

    code, summary = EXIT_FAILED, dict[str, Any]()
    try:
        peak_flops = measure_peak_flops(runtime) if config.train.profile else 0.0
        trainer = Trainer(
            train_step,
            data,
            console,
            MetricLogger(state, console, tracker, metrics_file, peak_flops),
            run_id,
            checkpoint_dir=folder / CHECKPOINTS,
            profile_dir=folder / PROFILE,
            visualizer=Visualizer(state, data, tracker) if has_media else None,
            saved_step=state.progress.step if resumed_from else -1,
        )
        trainer.train()
        already_tested = trainer.held_out_split == "test" and trainer.held_out_metrics
        test = already_tested or trainer.evaluate("test")
        summary = summarize(trainer, test, resumed_from)
        code = EXIT_DONE
    except Stopped:
        code = EXIT_STOPPED
        raise
    finally:
        console.close()
        tracker.finish(summary, code)
        if tracker.view_hint:
            console.print(tracker.view_hint)
    if runtime.is_main:
        write_summary(folder, summary)
    console.summary(summary | {"run.dir": str(folder)}, test.confusion, config.data.class_names)


if __name__ == "__main__":
    exit_with(main)

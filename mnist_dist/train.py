"""Train a model on MNIST: `accelerate launch -m mnist_dist.train [--config NAME|PATH]... [--section.key=value]...`.

From Python: `mnist_dist.train(config)`. This file builds a run from top to bottom. torch is imported only after the
settings are checked, so that help and errors of the configuration appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

try:
    from mnist_dist.checkpoint.run_paths import CHECKPOINTS, CONFIG
    from mnist_dist.checkpoint.state import check_config_readable
    from mnist_dist.config.arguments import check_config
    from mnist_dist.config.loader import LoadedConfig, dump, load, print_config
    from mnist_dist.config.schema import Config
    from mnist_dist.console.waiting import waiting_line
    from mnist_dist.distributed.launcher import is_called_by_launcher, is_inside_launch_function
    from mnist_dist.distributed.openmp import release_threads_before_forks
    from mnist_dist.distributed.topology import Topology, resolve_topology, set_omp_wait_policy
    from mnist_dist.tracking.wandb_auth import WandbKeyCheck, check_tracking
    from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED, Stopped, UserError
    from mnist_dist.utils.exit import exit_with, library_function, report, run_to_exit_code
    from mnist_dist.utils.resume_command import resume_command
    from mnist_dist.utils.stdio import ignore_output_errors
except KeyboardInterrupt:  # later ones are caught by `run_to_exit_code`
    if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
        sys.exit("mnist_dist: error: interrupted")
    raise

if TYPE_CHECKING:
    from mnist_dist.checkpoint.run_dir import RunDir
    from mnist_dist.training.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit code of the process.

    Args:
        arguments: command-line arguments; those of the process by default.

    Raises:
        SystemExit: the exit code is not 0, and accelerate's notebook_launcher or debug_launcher called this function:
            they ignore what it returns.
    """

    def start_on_screen() -> int:
        with waiting_line("train"):
            return start(sys.argv[1:] if arguments is None else arguments)

    code = run_to_exit_code(start_on_screen)
    if code and (is_called_by_launcher() or is_inside_launch_function()):
        raise SystemExit(code)
    return code


def start(arguments: Sequence[str]) -> int:
    """Train by a command line, and return the exit code.

    Raises:
        UserError, Stopped, TrainingError: see `run_training`. TrainingError also: train.target_accuracy is not reached.
    """
    topology = resolve_topology()
    loaded = load(arguments, topology.world_size, topology.fsdp)
    if loaded.print_config:
        if topology.is_main:
            print_config(loaded.config)
        return EXIT_DONE
    if run := run_training(loaded, topology, arguments):
        from mnist_dist.training.early_stopping import check_target

        check_target(run.summary)
    return EXIT_DONE


@library_function
def train(config: Config) -> Run:
    """Train as `mnist-dist train` does, in this process: the same files, the same weights bit for bit.

    Under a launcher (torchrun, `accelerate launch`, accelerate's notebook_launcher and debug_launcher) each process
    calls it. At the end, handlers of signals, threads, environment variables and torch's settings are as they were.

    Args:
        config: as `Config.from_recipe` gives it.

    Raises:
        UserError: a setting, the data, the run directory or the launcher is wrong; nothing was written. After a dry
            run (run.as_processes) without fixed shards, which trains nothing.
        Stopped: the run was asked to stop, as by a first Ctrl-C; a checkpoint is written, and the message says how to
            go on.
        KeyboardInterrupt: a second Ctrl-C.
        TrainingError: the run cannot continue.

    >>> from mnist_dist import Config, train
    >>> run = train(Config.from_recipe("debug", {"run.seed": 3, "run.quiet": True}))  # doctest: +ELLIPSIS
    runs/debug-...
    >>> run.folder, run.summary["train.steps"], run.summary["test.count"]  # doctest: +ELLIPSIS
    (PosixPath('runs/debug-...'), 40, 1000)
    """
    topology = resolve_topology()
    try:
        run = run_training(check_config(config, topology.world_size, topology.fsdp), topology, None)
    except Stopped as stopped:
        if topology.is_main and is_called_by_launcher():
            report(stopped, EXIT_STOPPED, "stopped")  # notebook_launcher raises only that it got the signal
        raise
    if run is None:
        raise UserError(
            f"run.as_processes={config.run.as_processes}: without fixed shards there is no run to return; set "
            f"train.shards={config.run.as_processes} to train as that many processes would"
        )
    return run


def run_training(loaded: LoadedConfig, topology: Topology, arguments: Sequence[str] | None) -> Run | None:
    """Build a run: settings, data files, runtime, data, run directory, checkpoint, model, training state.

    Then train and test it. torch is imported once the settings are checked.

    Args:
        arguments: the command line, for the command that resumes a stopped run; None if there is none.

    Returns:
        The finished run; None after a dry run (run.as_processes) that trains nothing.

    Raises:
        UserError: something is wrong with a setting, wandb's setup, the launcher, the data, the run directory or the
            checkpoint.
        Stopped, TrainingError: see `train_and_test`.
    """
    config = loaded.config
    check_config_readable(config)
    # Machines may have different keys and environments, of which rank 0's count: `check_ranks` checks these.
    if topology.machines == 1:
        check_tracking(config)
    set_omp_wait_policy()
    if config.run.as_processes:
        from mnist_dist.training.dry_run import dry_run

        as_processes = dry_run(loaded, topology)
        if as_processes is None:
            return None
        loaded, config = as_processes, as_processes.config
    key_check = WandbKeyCheck(config) if topology.is_main else None

    import torch

    from mnist_dist.checkpoint.manager import list_checkpoints
    from mnist_dist.checkpoint.model_files import check_resumable_code
    from mnist_dist.checkpoint.resume_checks import check_resumable, warn_if_other_hardware
    from mnist_dist.checkpoint.run_dir import open_run_dir, prepare_run_dir
    from mnist_dist.checkpoint.run_lock import RunLock
    from mnist_dist.console.console import open_console
    from mnist_dist.console.tee import TeeConsole
    from mnist_dist.data.dataset import name_classes, read_splits
    from mnist_dist.data.identity import check_resumable_data
    from mnist_dist.data.prepare import is_default_root, provide_files, resolve_root
    from mnist_dist.data.sets import check_named_right
    from mnist_dist.distributed.consistency import check_ranks_agree
    from mnist_dist.distributed.runtime import start_runtime
    from mnist_dist.tracking.tracker import new_run_id
    from mnist_dist.training.build_model import build_model, find_model
    from mnist_dist.training.early_stopping import is_finished
    from mnist_dist.training.initial_weights import load_initial_weights
    from mnist_dist.training.rank_checks import check_ranks
    from mnist_dist.training.run import finished_run, open_status_file, train_and_test
    from mnist_dist.training.state import TrainingState
    from mnist_dist.training.train_step import TrainStep

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
        builder = find_model(config, runtime)

        # The run directory, locked, and the checkpoint to resume from. Rank 0 opens and reads them for all ranks, which
        # may be on machines without this directory.
        run_dir = runtime.run_on_main(lambda: open_run_dir(config, loaded.recipes, lock, console.warn))
        saved, source = run_dir.load(), run_dir.checkpoint.folder if run_dir.checkpoint else None
        if saved and source:
            check_resumable(config, saved.state["config"], source)
            check_resumable_code(saved.state["code"], builder.digests, source)
            saved_root = saved.state["config"].get("data", {}).get("root", "")
            check_resumable_data(saved.state["data"], saved_root, data.digests, root, source, console.warn)
        if saved and run_dir.same_run:
            run_id: str = saved.state["run_id"]
        else:
            check_named_right(name, files)
            run_id = runtime.run_on_main(lambda: new_run_id(config, run_dir.folder))

        # The model: the same on all ranks.
        torch.autograd.set_detect_anomaly(config.train.detect_anomaly)
        num_classes = len(config.data.class_names)
        model = build_model(builder, config, runtime, num_classes, len(data.train), console.warn)

        # The training state: restored from the checkpoint, then wrapped for training.
        initial_weights = None
        if config.model.init_from and not saved:
            initial_weights = load_initial_weights(model, config, data, run_dir.folder, runtime, console)
        state = TrainingState(model, config, runtime, len(data.train), initial_weights, builder.files)
        if saved and source:
            state.restore(saved, str(source))
            warn_if_other_hardware(saved.state["machine"], runtime.fingerprint(), console.warn)
        train_step = TrainStep(state)

        # Up to here only the lock was written: an error above leaves no other file in the run directory.
        is_done = is_finished(state)
        was_finished = runtime.run_on_main(lambda: prepare_run_dir(run_dir, config, lock, not is_done))
        if was_finished and is_done:
            run = finished_run(state, run_dir, console)
        else:
            with open_status_file(state, run_dir.folder, console) as status_file:
                try:
                    run = train_and_test(train_step, data, console, run_dir, run_id, key_check, status_file)
                except Stopped as stopped:
                    raise Stopped(f"{stopped}; {how_to_go_on(config, topology, arguments, run_dir)}") from stopped
                except BaseException:  # an error, or a second Ctrl-C
                    if topology.is_main and (checkpoints := list_checkpoints(run_dir.folder / CHECKPOINTS)):
                        how = how_to_go_on(config, topology, arguments, run_dir)
                        console.print(f"the newest checkpoint is {checkpoints[-1].name}; {how}")
                    raise
        lock.mark_finished()
    return run


def how_to_go_on(config: Config, topology: Topology, arguments: Sequence[str] | None, run_dir: RunDir) -> str:
    """The command, or the call, by which a stopped run goes on, in words."""
    # The folder may have been named by the program, and run.resume is for the first start.
    if arguments is None:
        overrides = {"run.dir": str(run_dir.folder), "run.resume": "auto"}
        return f"to go on: train(Config.from_recipe({str(run_dir.folder / CONFIG)!r}, {overrides}))"
    extra = [] if config.run.dir else [f"--run.dir={run_dir.folder}"]
    extra += [] if config.run.resume == "auto" else ["--run.resume=auto"]
    by_other_launcher = not topology.launcher_pid and topology.world_size > 1
    command = resume_command(arguments, extra, topology.launcher_pid, by_other_launcher)
    return f"to go on: {command}" + (" (likewise on the other machines)" if topology.machines > 1 else "")


class CallableModule(ModuleType):
    """This module, which `from mnist_dist import train` gives too once it was imported: a call is one of `train`."""

    def __call__(self, config: Config) -> Run:
        return self.train(config)

    def __reduce__(self) -> tuple[Any, ...]:  # a launch function may send it to the processes that it starts
        return import_module, (self.__name__,)


CallableModule.__call__.__doc__ = train.__doc__
sys.modules[__name__].__class__ = CallableModule
__qualname__ = train.__qualname__  # notebook_launcher asks for it
release_threads_before_forks()

if __name__ == "__main__":
    exit_with(main)

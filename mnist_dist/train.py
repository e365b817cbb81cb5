"""Train a network on MNIST: `accelerate launch -m mnist_dist.train [--config NAME|PATH]... [--section.key=value]...`.

Reads from top to bottom in the order in which a run is built. torch is imported only once the settings are known to be
good, so that help and errors come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.checkpoint.run_dir import warn_if_other_hardware
from mnist_dist.config.loader import LoadedConfig, load, print_config
from mnist_dist.config.schema import flat
from mnist_dist.distributed.consistency import describe_clocks
from mnist_dist.distributed.topology import Topology, resolve_topology, yield_while_waiting
from mnist_dist.tracking.tracker import new_run_id
from mnist_dist.tracking.wandb_auth import WandbKeyCheck, check_tracking, describe_tracking
from mnist_dist.training.visualizer import wants_media
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Stopped
from mnist_dist.utils.exit import exit_with, run_to_exit_code
from mnist_dist.utils.versions import software

if TYPE_CHECKING:
    from mnist_dist.training.trainer import Trainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say, and give the process's exit code."""
    return run_to_exit_code(lambda: start(sys.argv[1:] if arguments is None else arguments))


def start(arguments: Sequence[str]) -> int:
    """Check everything that can be checked before torch is imported, then train."""
    topology = resolve_topology()
    loaded = load(arguments, topology.world_size, topology.fsdp)
    if loaded.print_config:
        if topology.is_main:
            print_config(loaded.config)
        return EXIT_DONE
    key = None
    if topology.is_main:
        check_tracking(loaded.config)
        key = WandbKeyCheck(loaded.config)
    yield_while_waiting()
    return train(loaded, topology, key)


def train(loaded: LoadedConfig, topology: Topology, key: WandbKeyCheck | None) -> int:
    """Build one run, in this order: data, processes, checkpoint, model, folder; then train it to its summary."""
    import torch

    from mnist_dist.checkpoint.run_dir import check_resumable, open_run_dir, prepare_run_dir
    from mnist_dist.checkpoint.run_lock import RunLock
    from mnist_dist.console.console import open_console
    from mnist_dist.console.tee import TeeConsole
    from mnist_dist.data.dataset import read_splits
    from mnist_dist.data.prepare import ensure_files, resolve_root
    from mnist_dist.distributed.runtime import start_runtime
    from mnist_dist.models import create_model
    from mnist_dist.training.trainer import Trainer

    config = loaded.config
    console = open_console(topology.is_main, config.run.quiet)
    if "console" in config.tracking.share and topology.is_main and not config.run.quiet:
        console = TeeConsole(console)

    # The data: one process a machine fetches it, before any process waits for another.
    root = resolve_root(config.data.root)
    if topology.is_local_main:
        ensure_files(root, config.data.source, console.say)

    with RunLock(topology.launcher) as lock, start_runtime(config, topology) as runtime:
        alike = {
            "the configuration": flat(config),
            "the software": software() if runtime.world_size > 1 else {},
            "the machine (which --train.shards=0 would allow)": runtime.fingerprint() if runtime.shards else {},
            "the precision (which --train.precision decides)": {"precision": runtime.precision},
            "the launcher's fsdp_config": {"FSDP": repr(topology.fsdp)},
        }
        far_apart = describe_clocks(runtime.check_ranks_agree(alike))
        if far_apart:
            console.warn(far_apart)
        files = ensure_files(root, "local", console.say)
        splits = read_splits(files, config.data, config.run.seed, config.train_limit).to(runtime.device)

        # The folder, from here on this run's alone, and the checkpoint to go on from. The main process decides and
        # reads for all: the others may have no such folder on their machine.
        claim = runtime.run_on_main(lambda: open_run_dir(config, loaded.recipes, lock, console.warn))
        saved, source = claim.load(), claim.checkpoint.folder if claim.checkpoint else None
        if saved and source:
            check_resumable(config, saved.state["config"], source)
        run_id = saved.state["run_id"] if saved and claim.same_run else runtime.broadcast(new_run_id())

        # The model, the same on every process because each draws it from the same seed; then what trains it.
        torch.manual_seed(config.run.seed)
        torch.autograd.set_detect_anomaly(config.train.detect_anomaly)
        model = runtime.place(create_model(config.model.name))
        trainer = Trainer(config, runtime, model, splits, console, run_id)
        if saved and source:
            trainer.restore(saved, str(source))
            warn_if_other_hardware(saved.state["machine"], runtime.fingerprint(), console.warn)

        # Nothing but the lock is written before everything above is known to be good.
        finished = runtime.run_on_main(lambda: prepare_run_dir(claim, config, lock))
        if finished and trainer.progress.step >= trainer.last_step:
            console.say(f"{claim.folder} holds this run, finished; --run.resume=never starts it over")
        else:
            train_to_summary(trainer, claim.folder, source, claim.same_run, key)
        lock.finished = True
    return EXIT_DONE


def train_to_summary(
    trainer: Trainer, folder: Path, checkpoint: Path | None, same_run: bool, key: WandbKeyCheck | None
) -> None:
    """Open the records, train, test, and write the summary.

    Args:
        loop: at the step to go on from.
        checkpoint: where that came from, if from anywhere.
        same_run: it is this run's own, so that the records go on too.
        key: what wandb's server says of its key, on the main process.
    """
    from mnist_dist.checkpoint.run_dir import CHECKPOINTS, METRICS, PROFILE, write_config, write_summary
    from mnist_dist.console.tee import TeeConsole
    from mnist_dist.tracking.metrics_file import MetricsFile
    from mnist_dist.tracking.tracker import open_tracker
    from mnist_dist.training.summary import resolved, summarize
    from mnist_dist.training.visualizer import Visualizer
    from mnist_dist.utils.versions import versions

    config, runtime, console = trainer.config, trainer.runtime, trainer.console
    recording = key.settle(config, console.warn) if key else config
    described = describe_tracking(recording) if runtime.is_main else ""  # others may not have the key that it tells of
    facts = {"data": trainer.data.describe(), "tracking": described, "run": str(folder)}
    console.header(runtime.describe() | trainer.describe() | facts)
    if checkpoint:
        console.say(f"going on from {checkpoint}")
    rows: MetricsFile | None = None
    if runtime.is_main:
        write_config(folder, config)
        rows = MetricsFile(folder / METRICS, trainer.progress.step if same_run else -1, console.warn)
    known = resolved(trainer) | versions()
    shows = wants_media(config, recording, runtime)
    tracker = open_tracker(recording, folder, trainer.run_id, same_run, console.warn, runtime.is_main, known)
    visualizer = Visualizer(trainer.state, trainer.data, config, tracker.show) if shows else None
    if isinstance(console, TeeConsole):
        console.share(tracker.say)

    def record(row: dict[str, Any]) -> None:
        if rows is not None:
            rows.write(row)
        tracker.log(row)

    def rewind(step: int) -> None:
        if rows is not None:
            rows.rewind(step)

    code, summary = EXIT_FAILED, {}
    try:
        trainer.train(folder / CHECKPOINTS, record, rewind, folder / PROFILE, visualizer)
        test = (
            trainer.held_out_metrics
            if trainer.held_out == "test" and trainer.held_out_metrics
            else trainer.evaluate("test")
        )
        summary = summarize(trainer, test, checkpoint)
        code = EXIT_DONE
    except Stopped:
        code = EXIT_STOPPED
        raise
    finally:
        console.close()
        tracker.finish(summary, code)
        if tracker.look:
            console.say(tracker.look)
    if runtime.is_main:
        write_summary(folder, summary)
    console.summary(summary | {"run.dir": str(folder)}, test.confusion, config.data.classes)


if __name__ == "__main__":
    exit_with(main)

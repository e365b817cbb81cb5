"""wandb, on a thread of its own that is fed by a queue.

Whatever happens there (not installed, no network, an exception, a hang), training neither waits nor stops: it is said
once, and metrics.jsonl has everything all the same. wandb is imported on that thread only.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mnist_dist.config import Config
from mnist_dist.ending import skip_exit_hooks
from mnist_dist.media import Media

QUEUE_ROWS = 10_000
BEST = {"val/accuracy": "max", "val/loss": "min"}  # what wandb's own summary keeps of them
# Nothing leaves but our configuration and metrics: no environment, command line, code, packages, git or machine.
PRIVATE = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "symlink": False,
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandbTracker:
    """Mirrors rows to wandb on a thread of its own. Arguments as in `open_tracker`; mode: `online` or `offline`."""

    def __init__(
        self, config: Config, folder: Path, run_id: str, resumed: bool, mode: str, warn: Callable[[str], None]
    ) -> None:
        self.hung = False
        self.look = ""
        self._config, self._folder, self._run_id, self._resumed = config, folder, run_id, resumed
        self._mode, self._warn = mode, warn
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._dropped = False
        self._files: Path | None = None  # where this segment of the run is
        self._end: tuple[dict[str, Any], int] = ({}, 1)
        self._ended = threading.Event()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's crash reports go over the network too
        threading.Thread(target=self._work, name="wandb", daemon=True).start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl. Returns at once."""
        if self._ended.is_set() or self._dropped:
            return
        if self._rows.qsize() < QUEUE_ROWS:
            self._rows.put(dict(row))
        else:
            self._dropped = True
            self._warn(f"wandb does not keep up; from step {row['step']} on, rows are in metrics.jsonl only")

    def show(self, step: int, epoch: int, media: Media) -> None:
        """Nothing yet."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Take the run's summary and wait until everything is recorded, tracking.timeout seconds at most."""
        self._end = dict(summary), exit_code
        self._rows.put(None)
        timeout = self._config.tracking.timeout
        if self.hung or self._ended.wait(timeout):
            return
        self.hung = True
        skip_exit_hooks()  # wandb's may wait for ever
        stop_service()
        self.look = self._how_to_look()
        self._warn(f"wandb did not finish within {timeout:g} s and was stopped; metrics.jsonl has everything")

    # On the thread

    def _work(self) -> None:
        """Import wandb, mirror rows until the end, and see that nothing of wandb is left."""
        wandb: Any = None
        try:
            import wandb

            self._mirror(self._start(wandb))
            wandb.teardown(self._end[1])
        except BaseException as error:  # SystemExit too: nothing of wandb's is the training's business
            if not self.hung:
                self._warn(f"wandb failed ({one_line(error)}); training goes on, and metrics.jsonl has everything")
            forget(wandb)
        finally:
            self._ended.set()

    def _start(self, wandb: Any) -> Any:
        """A wandb run: online where that was asked for and works, else offline."""
        config, tracking = self._config, self._config.tracking
        wanted = PRIVATE | {"init_timeout": tracking.timeout / 2}  # leaves time to begin again offline
        settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields})

        def init(mode: str) -> Any:
            wandb.setup(settings=settings)  # before init, which else announces and may ask
            return wandb.init(
                mode=mode,
                id=self._run_id,
                resume="allow",
                dir=str(self._folder),
                name=self._folder.resolve().name,
                project=tracking.project,
                entity=tracking.entity or None,
                group=tracking.group or None,
                tags=list(tracking.tags) or None,
                config=config.to_dict(),
                allow_val_change=self._resumed,
                settings=settings,
            )

        try:
            run = init(self._mode)
        except Exception as error:
            if self._mode == "offline":
                raise
            self._warn(f"wandb cannot go online ({one_line(error)}); this run is recorded offline")
            self._mode = "offline"
            forget(wandb)
            run = init("offline")
        self._files = Path(run.settings.sync_dir)
        if not self._files.resolve().is_relative_to(self._folder.resolve()):
            self._warn(f"wandb cannot write to {self._folder}, and records in {self._files}")
        self.look = f"wandb: {run.url}" if self._mode == "online" else self._how_to_look()
        return run

    def _how_to_look(self) -> str:
        """What to do with the files, in one line; empty where there are none."""
        if self._files is None:
            return ""
        path, folder = shlex.quote(str(self._files)), shlex.quote(str(self._files.parent))
        upload = f"beta sync --id {self._run_id} {folder}" if self._resumed else f"sync {path}"
        return f"wandb, offline: see it with `wandb beta leet {path}`, upload it with `wandb {upload}`"

    def _mirror(self, run: Any) -> None:
        """Log rows until the end, then the summary."""
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
        for key, best in BEST.items():
            run.define_metric(key, step_metric="global_step", summary=best)
        while (row := self._rows.get()) is not None:
            metrics = {wandb_key(k): v for k, v in row.items() if k not in ("step", "time") and not isinstance(v, list)}
            run.log({"global_step": row["step"], "_timestamp": row["time"], **metrics})
        summary, exit_code = self._end
        values = {wandb_key(key): value for key, value in summary.items() if not isinstance(value, list)}
        run.summary.update({key: value for key, value in values.items() if key not in BEST})
        run.finish(exit_code=exit_code)


def wandb_key(key: str) -> str:
    """`train.loss` as `train/loss`: wandb groups charts by what stands before the slash."""
    return key.replace(".", "/")


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".rstrip(": ")


def forget(wandb: Any) -> None:
    """End wandb's service without waiting for it, and unhook wandb from this process's exit."""
    stop_service()
    if wandb is not None:
        with contextlib.suppress(Exception):
            wandb.teardown()


def stop_service() -> None:
    """End the wandb-core processes that this process started: none may outlive it."""
    services = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.terminate()
                services.append(child)
    for child in psutil.wait_procs(services, timeout=1)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
            child.wait(timeout=1)

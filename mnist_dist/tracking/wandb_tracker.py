"""wandb, on a thread of its own that is fed by a queue.

Whatever happens there (not installed, no network, an exception, a hang), training neither waits nor stops: it is said
once, and metrics.jsonl has everything all the same. wandb is imported on that thread only.

One run of ours is one run of wandb's, over all its stops and resumes: its id is in the checkpoint. Online, wandb goes
on where it was. Offline each segment is a folder of its own, and `wandb beta sync --id` uploads them as one run.

Rows and media are entries of wandb's history of their own, none of which replaces another; `global_step` is what charts
have below them. Steps that were undone (a rollback, or a crash after the last checkpoint) are logged again: wandb then
has two entries of that step and draws both, the later one is right, and metrics.jsonl has that one only. The summary is
made from metrics.jsonl at the end, so it knows all segments and nothing undone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

import mnist_dist
from mnist_dist.config.schema import Config, TrackingConfig
from mnist_dist.tracking.media import Media, wandb_key
from mnist_dist.tracking.wandb_artifacts import Row, model_artifacts, read_rows
from mnist_dist.tracking.wandb_media import media_values, row_values
from mnist_dist.utils.exit import skip_exit_hooks

QUEUE_ROWS = 10_000
QUEUE_MEDIA = 20  # some hundred kilobytes each
# What wandb's summary keeps of a metric, beside its last value. Not of the test set, on which nothing is chosen.
BEST = {
    **dict.fromkeys(("val.accuracy", "val.top2", "epoch.train.accuracy"), max),
    **dict.fromkeys(("val.loss", "epoch.train.loss"), min),
}
# Nothing leaves but our configuration and metrics: no environment, command line, code, packages, git or machine.
PRIVATE = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "host": "",
    "symlink": False,
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "program": "mnist_dist",  # else its path
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
SYSTEM = {"x_disable_stats": False, "x_disable_machine_info": False, "x_stats_sampling_interval": 5.0}
Warn = Callable[[str], None]
CODE = Path(mnist_dist.__file__).parent


class WandbTracker:
    """Mirrors rows to wandb on a thread of its own. Arguments as in `open_tracker`; mode: `online` or `offline`."""

    def __init__(
        self, config: Config, folder: Path, run_id: str, resumed: bool, mode: str, warn: Warn, facts: Row
    ) -> None:
        self.hung = False
        self.look = ""
        self._config, self._folder, self._run_id, self._resumed = config, folder, run_id, resumed
        self._mode, self._warn, self._facts = mode, warn, facts
        self._jobs: queue.SimpleQueue[Callable[[Any, Any], None] | None] = queue.SimpleQueue()
        self._shown = self._rendered = 0  # media; each number is changed by one thread only
        self._step = 0
        self._dropped = False
        self._files: Path | None = None  # where this segment of the run is
        self._end: tuple[Row, int] = ({}, 1)
        self._ended = threading.Event()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's crash reports go over the network too
        threading.Thread(target=self._work, name="wandb", daemon=True).start()

    def log(self, row: Row) -> None:
        """Take a row of metrics.jsonl. Returns at once."""
        row, config = dict(row), self._config
        self._step = row["step"]
        classes = config.data.classes if config.tracking.has_media(row["epoch"], config.train.epochs) else ()
        self._offer(lambda wandb, run: log(run, row["step"], row["time"], row_values(wandb, row, classes)))

    def show(self, step: int, epoch: int, media: Media) -> None:
        """Take what is shown of a step of an epoch, from 1. Returns at once."""
        now, classes = time.time(), self._config.data.classes

        def render(wandb: Any, run: Any) -> None:
            log(run, step, now, {"epoch": epoch, **media_values(wandb, step, epoch, media, classes)})
            self._rendered += 1

        self._step = step
        if self._offer(render, full=self._shown - self._rendered >= QUEUE_MEDIA):
            self._shown += 1

    def say(self, line: str) -> None:
        """Take a line that the run prints. Returns at once."""
        self._offer(lambda wandb, run: run.write_logs(line))

    def _offer(self, job: Callable[[Any, Any], None], full: bool = False) -> bool:
        """Queue what the thread is to do with wandb and its run; whether there was room."""
        if self._ended.is_set() or self._dropped:
            return False
        if full or self._jobs.qsize() >= QUEUE_ROWS:
            self._dropped = True
            self._warn(f"wandb does not keep up; from step {self._step} on, rows are in metrics.jsonl only")
            return False
        self._jobs.put(job)
        return True

    def finish(self, summary: Row, exit_code: int) -> None:
        """Take the run's summary and wait until everything is recorded, tracking.timeout seconds at most."""
        self._end = dict(summary), exit_code
        self._jobs.put(None)
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

            with staging_in(self._folder):
                self._mirror(wandb, self._start(wandb))
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
        wanted = settings_for(tracking)
        settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields})

        def init(mode: str) -> Any:
            wandb.setup(settings=settings)  # before init, which else announces and may ask
            return wandb.init(
                mode=mode,
                id=self._run_id,
                resume="allow",
                dir=str(self._folder),
                name=self._folder.resolve().name[:128],
                project=tracking.project,
                entity=tracking.entity or None,
                group=tracking.group or None,
                job_type=tracking.job_type or None,
                notes=tracking.notes or None,
                tags=list(tracking.tags) or None,
                config=config.to_dict() | {"facts": {wandb_key(key): value for key, value in self._facts.items()}},
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
        if self._mode == "online":  # wandb sync skips such folders unasked, though not all in them was uploaded
            upload = f"sync --include-online {path}"
        else:
            upload = f"beta sync --id {self._run_id} {folder}" if self._resumed else f"sync {path}"
        return f"wandb, offline: see it with `wandb beta leet {path}`, upload it with `wandb {upload}`"

    def _mirror(self, wandb: Any, run: Any) -> None:
        """Do what is queued until the end, then the summary and the model."""
        run.define_metric("global_step", hidden=True)
        run.define_metric("epoch", step_metric="global_step", hidden=True)
        run.define_metric("*", step_metric="global_step")
        for key, best in BEST.items():
            run.define_metric(wandb_key(key), step_metric="global_step", summary=f"{best.__name__},last")
        if "code" in self._config.tracking.share:
            run.log_code(str(CODE), name="source-mnist_dist", include_fn=lambda path: path.endswith(".py"))
        while (job := self._jobs.get()) is not None:
            job(wandb, run)
        summary, exit_code = self._end
        rows = read_rows(self._folder)
        run.summary.update(plain_summary(summary) | bests(rows))
        charts = {key: value for key, value in summary.items() if isinstance(value, list)}
        if charts:
            log(run, summary["train.steps"], time.time(), row_values(wandb, charts, self._config.data.classes))
        if self._config.tracking.artifacts:
            self._keep_models(wandb, run, rows)
        try:
            run.finish(exit_code=exit_code)
            whole = self._mode == "offline" or not upload_failed(self._files)
        except TimeoutError:
            whole = False
        if not whole and not self.hung:
            self.look = self._how_to_look()
            self._warn("wandb's server did not take everything; metrics.jsonl has everything")

    def _keep_models(self, wandb: Any, run: Any, rows: list[Row]) -> None:
        """Record the newest and the best checkpoint; what cannot be read is said."""
        try:
            for artifact, aliases in model_artifacts(wandb, self._folder, self._run_id, rows, self._end[0]):
                run.log_artifact(artifact, aliases=aliases)
        except (OSError, ValueError, KeyError) as error:
            self._warn(f"wandb does not have the model ({one_line(error)}); it is in {self._folder}")


def settings_for(tracking: TrackingConfig) -> dict[str, Any]:
    """wandb's settings: private but for what is shared."""
    # Leaves time to begin again offline, and to write down what was not uploaded.
    in_time = {"init_timeout": tracking.timeout / 2, "finish_timeout": tracking.timeout / 2}
    return PRIVATE | in_time | {"finish_timeout_raises": True} | (SYSTEM if "system" in tracking.share else {})


def log(run: Any, step: int, when: float, values: Mapping[str, Any]) -> None:
    """An entry of the run's history, of its own."""
    run.log({"global_step": step, "_timestamp": when, **values})


def upload_failed(files: Path | None) -> bool:
    """Whether wandb gave up on uploading rows, as on a key that was taken back: it says so in its log alone."""
    try:
        return files is not None and b"filestream: fatal error" in (files / "logs" / "debug-internal.log").read_bytes()
    except OSError:
        return False


def plain_summary(summary: Row) -> dict[str, Any]:
    """What wandb's summary takes of summary.json: neither lists nor what `bests` gives."""
    return {wandb_key(key): value for key, value in summary.items() if not isinstance(value, list) and key not in BEST}


def bests(rows: list[Row]) -> dict[str, dict[str, float]]:
    """The best and the last value of each metric that has a best one."""
    found = {key: [row[key] for row in rows if row.get(key) is not None] for key in BEST}
    return {
        wandb_key(key): {BEST[key].__name__: BEST[key](values), "last": values[-1]}
        for key, values in found.items()
        if values
    }


@contextlib.contextmanager
def staging_in(folder: Path) -> Iterator[None]:
    """Have wandb keep artifacts that it has not uploaded in the run's folder, not in the user's home."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb")
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)


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

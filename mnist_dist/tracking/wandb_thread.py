"""wandb on a thread: opening and abandoning a run; and a second machine that adds its load to the run of the first.

With wandb's shared mode several processes write into one run. The first machine is its primary writer; each of the
others sends the load and memory of its machine, under a label, and nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_dist.tracking.media import Media
from mnist_dist.tracking.queued_tracker import QueuedTracker
from mnist_dist.tracking.wandb_service import (
    create_temporary_folders,
    force_teardown,
    kill_service,
    remove_temporary_folders,
    set_up,
)
from mnist_dist.tracking.wandb_settings import wandb_environment

# wandb gets the configuration and the metrics: no environment, command line, code, packages, git state or machine.
PRIVATE_SETTINGS = {
    "silent": True,
    "quiet": True,
    "console": "off",
    "host": "",
    "symlink": False,
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "program": "mnist_dist",  # otherwise the path of the program
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
SYSTEM_SETTINGS = {"x_disable_stats": False, "x_disable_machine_info": False, "x_stats_sampling_interval": 5.0}


@dataclass(frozen=True)
class SharedLoad:
    """Where a machine sends its load."""

    machine: int
    """Its number. 0: it has the run."""
    run_id: str
    project: str
    entity: str
    address: str
    """The base URL of the wandb server."""


def shared_settings(machine: int) -> dict[str, Any]:
    """wandb's settings of a machine that writes into a run with others."""
    is_primary = machine == 0
    return {"x_label": f"machine-{machine}", "x_primary": is_primary, "x_update_finish_state": is_primary}


class WandbThread(QueuedTracker):
    """Base of what runs wandb on its thread."""

    def init(self, wandb: Any, settings: dict[str, Any], mode: str, **options: Any) -> Any:
        """`wandb.init`, private but for these settings. It prints nothing, and never prompts."""
        wanted = PRIVATE_SETTINGS | settings | {"mode": mode}
        known = wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields})
        set_up(wandb, known, self._warn)  # before init, which would otherwise print and may prompt
        return wandb.init(mode=mode, settings=known, **options)

    def abandon(self) -> None:
        """End wandb's service without waiting for it, and remove wandb's exit hooks unless its thread may hold them."""
        if self.timed_out:
            kill_service()
            self.clean_up()
        else:
            force_teardown(sys.modules.get("wandb"))

    def clean_up(self) -> None:
        """Remove wandb's temporary folders."""
        if wandb := sys.modules.get("wandb"):
            remove_temporary_folders(wandb)


class MachineLoadTracker(WandbThread):
    """Sends the load of another machine than the first, on which the console is silent. It takes nothing else."""

    def __init__(self, load: SharedLoad, timeout: float) -> None:
        warn = f"warning: machine {load.machine}: {{}}".format
        super().__init__("wandb", timeout, lambda line: print(warn(line), file=sys.stderr))
        self._load = load
        self.start_thread()

    def log(self, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_media(self, step: int, epoch: int, media: Media) -> None:
        """Does nothing."""

    def write_logs(self, line: str) -> None:
        """Does nothing."""

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Does nothing."""

    def record(self) -> None:
        """Send the load until `finish` is called."""
        import wandb

        create_temporary_folders(wandb)
        load, half = self._load, self._timeout / 2
        settings = SYSTEM_SETTINGS | shared_settings(load.machine) | {"base_url": load.address}
        settings |= {"init_timeout": half, "finish_timeout": half, "finish_timeout_raises": True}
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, wandb_environment(Path(folder)):
            run = self.init(
                wandb, settings, "shared", id=load.run_id, project=load.project, entity=load.entity or None, dir=folder
            )
            for call in self.queued_calls():
                call()
            run.finish(exit_code=self._result[1])
        wandb.teardown(self._result[1])

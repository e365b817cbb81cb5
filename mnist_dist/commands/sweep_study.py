"""A sweep as an Optuna study: it draws the parameters of the next run and says which run to end early."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

from mnist_dist.commands.sweep_config import Sweep
from mnist_dist.commands.sweep_runs import FAILED, FINISHED, INTERRUPTED, RESULTS, STOPPED_EARLY, Run, best_value
from mnist_dist.commands.sweep_search_space import grid_point, import_optuna
from mnist_dist.config.validation import shown
from mnist_dist.utils.errors import UserError

JOURNAL = "study.journal"
STUDY = "sweep"
"""Name of the study in the journal, as in `optuna.load_study(study_name="sweep", storage=...)`."""
RECORDED = ("values", "seconds", "error", "summary")
"""The fields of a Run that are user attributes of its trial."""


class SweepStudy:
    """The study of one sweep, in a journal in its folder.

    A run is a trial. A failed or interrupted run stays RUNNING for Optuna: its FAIL is final, and the same command
    starts these runs again. Parameters and values are written as they come, so a killed sweep goes on, too.

    Args:
        folder: the sweep's, locked by this process.

    Raises:
        UserError: the folder holds another sweep, or the journal is damaged.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.optuna = import_optuna()
        self.sweep, self.path = sweep, folder / JOURNAL
        self.space = sweep.search_space()
        if (folder / RESULTS).exists() and not self.path.exists():
            raise UserError(f"{folder}: holds a sweep without {JOURNAL}, which cannot go on; choose another --dir")
        try:
            drop_torn_line(self.path)
            self.storage = self.optuna.storages.JournalStorage(
                self.optuna.storages.journal.JournalFileBackend(str(self.path), lock_obj=FolderLock())
            )
            self.study = self.optuna.create_study(
                storage=self.storage,
                study_name=STUDY,
                direction=sweep.goal,
                pruner=self.build_pruner(),
                load_if_exists=True,
            )
            definition = self.study.user_attrs.get("definition")
        except Exception as error:  # of many kinds: whatever a damaged line makes of Optuna's replay
            reason = f"{type(error).__name__}: {shown(' '.join(str(error).split()))}"
            raise UserError(
                f"{self.path}: cannot be read ({reason}); remove {folder}, or choose another --dir"
            ) from None
        if definition is None:
            self.study.set_user_attr("definition", sweep.definition)
        elif definition != sweep.definition:
            raise UserError(
                f"{self.path}: belongs to another sweep, or to this one before it was changed; choose another --dir"
            )

    def build_pruner(self) -> Any:
        """The pruner of early_terminate.

        wandb's hyperband has one bracket, which is Optuna's SuccessiveHalvingPruner; its HyperbandPruner has several.
        """
        early = self.sweep.early_terminate()
        if early is None:
            return self.optuna.pruners.NopPruner()
        return self.optuna.pruners.SuccessiveHalvingPruner(early.min_iter, early.eta)

    def build_sampler(self, seed: int) -> Any:
        """The sampler of the next run. A grid needs none: its points are enqueued."""
        if self.sweep.definition["method"] != "bayes":
            return self.optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)  # Optuna 4
            return self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # unfinished runs count as bad ones

    def runs(self) -> list[Run]:
        """All runs so far, in order of their numbers."""
        states = self.optuna.trial.TrialState
        # FAIL: it finished, but the metric was never a number.
        done = {states.COMPLETE: FINISHED, states.PRUNED: STOPPED_EARLY, states.FAIL: FINISHED}
        runs = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state is states.WAITING:  # enqueued by a sweep that was killed just then
                continue
            run = Run(
                trial.number + 1, {}, **{key: trial.user_attrs[key] for key in RECORDED if key in trial.user_attrs}
            )
            run.state = done.get(trial.state, FAILED if run.error else INTERRUPTED)
            run.parameters = {name: trial.params[name] for name in self.space if name in trial.params}
            if len(run.parameters) < len(self.space):  # the sweep was killed while it drew them
                run.parameters = self.draw(self.open_trial(run))
            runs.append(run)
        return runs

    def next_run(self) -> Run | None:
        """Draw the next run; None when the grid is done. The same results and the same number give the same run."""
        waiting = self.optuna.trial.TrialState.WAITING
        trials = self.study.get_trials(deepcopy=False)
        if self.sweep.definition["method"] == "grid":
            point = grid_point(self.space, sum(trial.state is not waiting for trial in trials))
            if point is None:
                return None
            if not any(trial.state is waiting for trial in trials):
                self.study.enqueue_trial(point)
        self.study.sampler = self.build_sampler(len(trials))
        trial = self.study.ask()
        return Run(trial.number + 1, self.draw(trial))

    def draw(self, trial: Any) -> dict[str, Any]:
        """All parameters of a trial. Those that it has stay as they are."""
        for name, distribution in self.space.items():
            if hasattr(distribution, "choices"):
                trial.suggest_categorical(name, distribution.choices)
            elif isinstance(distribution.low, int):
                trial.suggest_int(
                    name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
                )
            else:
                trial.suggest_float(
                    name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
                )
        params = self.study.get_trials(deepcopy=False)[trial.number].params  # as read back: of plain types
        return {name: params[name] for name in self.space}

    def open_trial(self, run: Run) -> Any:
        """The trial of a run that is not done."""
        study_id = self.storage.get_study_id_from_name(STUDY)
        self.study.sampler = self.build_sampler(run.number - 1)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, run.number - 1)
        return self.optuna.trial.Trial(self.study, trial_id)

    def report(self, run: Run) -> bool:
        """Report a run's new values, the first one as step 1.

        Returns:
            Whether to end it: at min_iter, min_iter x eta, ... values it is not among the best 1 / eta.
        """
        trial, early = self.open_trial(run), self.sweep.early_terminate()
        reported = self.study.get_trials(deepcopy=False)[run.number - 1].last_step or 0
        prune = False
        for step, value in enumerate(run.values[reported:], reported + 1):
            trial.report(value, step)
            if early and step < early.max_iter:
                prune |= trial.should_prune()  # also of a run that has ended: later ones are compared with it
        return prune

    def record(self, run: Run) -> None:
        """Write how a run ended; if it is done, for good."""
        self.report(run)
        trial = self.open_trial(run)
        for key in RECORDED:
            trial.set_user_attr(key, getattr(run, key))
        if run.state == STOPPED_EARLY:
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        elif run.state == FINISHED and run.values:
            self.study.tell(trial, best_value(run, self.sweep.goal))
        elif run.state == FINISHED:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)


class FolderLock:
    """A lock for Optuna's journal that does nothing: the sweep's folder is locked already, and that lock is not left
    behind by a process that is killed."""

    def acquire(self) -> bool:
        """Always succeeds."""
        return True

    def release(self) -> None:
        """Does nothing."""


def drop_torn_line(path: Path) -> None:
    """Remove a last line that was not written to its end, which Optuna would not read past."""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)

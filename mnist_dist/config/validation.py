"""Checks of settings: that a name exists, with the nearest one as a suggestion; and that settings fit each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from mnist_dist.config.data_sets import CLASS_NAMES, MAX_CLASSES, MIN_CLASSES
from mnist_dist.config.fsdp import USE_FSDP, FSDPConfig
from mnist_dist.config.hints import hint_for_option
from mnist_dist.config.model_names import ARGUMENTS
from mnist_dist.config.schema import FIELDS, SECTIONS, Config
from mnist_dist.utils.errors import UserError


def check_together(config: Config, world_size: int, fsdp: FSDPConfig | None, origins: Mapping[str, str]) -> None:
    """Check settings against each other, the number of processes and what the launcher asks for.

    Args:
        world_size: number of processes.
        fsdp: the launcher's FSDP settings; None without FSDP.
        origins: where each setting that was given came from; the others have their default.

    Raises:
        UserError: names the settings, their origins, and values that would work: those of the first conflict, and with
            run.as_processes of all of them.
    """
    as_processes = config.run.as_processes
    if as_processes and world_size > 1:
        raise UserError(
            f"{describe_setting(config, 'run.as_processes', origins)}: checks in one process what that many would "
            f"meet, but {world_size} were started; start one, or leave it out"
        )
    conflicts = [*find_conflicts(config, as_processes or world_size, origins)]
    if fsdp:
        conflicts += find_fsdp_conflicts(config, os.environ, origins)
    if conflicts and as_processes:
        raise refusal(as_processes, conflicts)
    if conflicts:
        raise UserError(conflicts[0])


def refusal(processes: int, reasons: Sequence[str]) -> UserError:
    """The error for a run that so many processes would be refused, with all reasons on one line."""
    listed = reasons[0] if len(reasons) == 1 else " ".join(f"({n}) {each}" for n, each in enumerate(reasons, start=1))
    return UserError(f"{describe_processes(processes)}: would be refused: {listed}")


def describe_processes(count: int) -> str:
    """1 process, 2 processes"""
    return f"{count} process{'es' * (count > 1)}"


def find_conflicts(config: Config, world_size: int, origins: Mapping[str, str]) -> Iterator[str]:
    """One line for each conflict of settings with each other or with the number of processes. See `check_together`."""
    train, data = config.train, config.data

    def named(key: str) -> str:
        return describe_setting(config, key, origins)

    processes = describe_processes(world_size)
    if train.shards > 0 and train.compress != "no":
        yield (
            f"{named('train.shards')} and {named('train.compress')} exclude each other: fixed shards give the "
            "same bits at any number of processes, compressed gradients do not; use train.shards=0 or train.compress=no"
        )
    if max(train.shards, 0) % world_size:
        near = multiples_near(train.shards, world_size)
        yield f"{named('train.shards')}: cannot be divided by {processes}; {near} or 0 would work"
    parts = (world_size if train.shards <= 0 else train.shards) * train.accumulate
    if train.batch_size % parts:
        divisor = processes if train.shards <= 0 else named("train.shards")
        yield (
            f"{named('train.batch_size')}: cannot be divided by {divisor} x {named('train.accumulate')}; "
            f"{multiples_near(train.batch_size, parts)} would work"
        )
    if train.compile != "no" and train.shards > 0:
        yield f"{named('train.compile')}: not with {named('train.shards')}; use --train.shards=0"
    if train.compile == "reduce-overhead" and train.accumulate > 1:
        yield (
            f"{named('train.compile')}: each pass overwrites the results of the one before, so not with "
            f"{named('train.accumulate')}; set that to 1, or use --train.compile=default"
        )
    if train.precision == "fp16" and config.run.device == "cpu":
        yield f"{named('train.precision')}: needs a GPU, but {named('run.device')}; use bf16 or no"
    if train.overfit_batches and data.limit:
        yield (
            f"{named('train.overfit_batches')} and {named('data.limit')} both choose the training images; "
            "set one of them to 0"
        )
    if config.model.init_from and config.run.resume not in ("auto", "never", "last"):
        raise UserError(
            f"{named('model.init_from')} and {named('run.resume')} exclude each other: one starts a new run from "
            "weights, the other continues a run; give one of them"
        )
    if wrong := wrong_classes(config):
        yield f"data.classes={shown(list(data.classes))} ({origins.get('data.classes', 'default')}): {wrong}"
    if data.name == "idx" and not data.root:
        yield f"{named('data.name')}: needs the folder with the files; name it with --data.root=DIR"
    if train.protocol == "honest":
        yield from find_selections(config, origins)


def find_selections(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    """One line for each setting by which the test set could decide what an honest run reports. See `check_together`."""
    held_out = "with data.val_size=0 the test set would decide when the run ends; hold out images, or set it to 0"
    without_val = {
        "train.patience": held_out,
        "train.target_accuracy": held_out,
        "train.eval_steps": "with data.val_size=0 it would evaluate the test set before the end; hold out images, or "
        "set it to 0",
    }
    always = {
        "data.test_limit": "a part of the test set is a chosen one; set it to 0",
        "model.init_from": "nobody knows what these weights were chosen by; leave it out",
    }
    for key, reason in (({} if config.data.val_size else without_val) | always).items():
        section, _, name = key.partition(".")
        if getattr(getattr(config, section), name):
            setting = describe_setting(config, key, origins)
            yield f"{setting}: not with {describe_setting(config, 'train.protocol', origins)}: {reason}"


def wrong_classes(config: Config) -> str:
    """What data.classes must be: different names, as many as the data set has classes; empty if they are right."""
    classes, count = config.data.classes, len(CLASS_NAMES.get(config.data.name, ()))
    right = len(classes) == count if count else MIN_CLASSES <= len(classes) <= MAX_CLASSES
    if not classes or (right and len(set(classes)) == len(classes)):
        return ""
    wanted = str(count) if count else f"{MIN_CLASSES} to {MAX_CLASSES}"
    other = "; data.name=idx takes any number of classes" if count and len(classes) != count else ""
    return f"must be {wanted} different names, one for each label{other}"


def describe_excess(config: Config, train: int, test: int, processes: int, cpus: int) -> list[str]:
    """One line for each setting that asks for more than there is, and how much the run uses instead.

    Args:
        train: number of training images, after data.val_size and the limits.
        test: number of test images.
        processes: number of processes on this machine.
        cpus: number of logical CPUs of this machine.
    """
    data, batch_size, threads = config.data, config.train.batch_size, config.run.threads
    lines = []
    if batch_size > train:
        lines.append(f"train.batch_size={batch_size}: there are {train} training images; each epoch is one step on all")
    if config.train_limit > train:
        key, value = (
            ("data.limit", data.limit) if data.limit else ("train.overfit_batches", config.train.overfit_batches)
        )
        lines.append(f"{key}={value}: there are {train} training images; all are used")
    if data.test_limit > test:
        lines.append(f"data.test_limit={data.test_limit}: there are {test} test images; all are used")
    if data.no_aug_epochs >= config.train.epochs:
        count = "is 1 epoch" if config.train.epochs == 1 else f"are {config.train.epochs} epochs"
        lines.append(f"data.no_aug_epochs={data.no_aug_epochs}: there {count}; no image is augmented")
    if threads * processes > cpus:
        each = f" in each of {processes} processes" if processes > 1 else ""
        lines.append(f"run.threads={threads}{each}: this machine has {cpus} CPUs; threads that share one slow training")
    return lines


def describe_early_stopping(config: Config, epoch_steps: int, last_step: int) -> list[str]:
    """One line for each way in which early stopping does other than one may expect.

    Args:
        epoch_steps: steps of an epoch.
        last_step: step at which the run ends without early stopping.
    """
    train, lines = config.train, []
    used = [
        f"train.{name}={getattr(train, name):g}" for name in ("patience", "target_accuracy") if getattr(train, name)
    ]
    if used and not config.data.val_size:
        lines.append(
            f"{' and '.join(used)}: data.val_size=0, so the test set decides when the run ends, and the test "
            "accuracy is too good an estimate for new images"
        )
    ends = set(range(epoch_steps, last_step + 1, epoch_steps))
    evaluations = len(ends.union(range(train.eval_steps, last_step + 1, train.eval_steps) if train.eval_steps else ()))
    if train.patience >= max(evaluations, 1):
        lines.append(
            f"train.patience={train.patience}: the held-out set is evaluated {evaluations} times in {last_step} steps, "
            "so it ends nothing; lower it, or evaluate more often with --train.eval_steps"
        )
    return lines


def describe_setting(config: Config, key: str, origins: Mapping[str, str]) -> str:
    """A setting as errors name it, as in `train.shards=4 (command line)`."""
    section, _, name = key.partition(".")
    return f"{key}={getattr(getattr(config, section), name)} ({origins.get(key, 'default')})"


def multiples_near(value: int, step: int) -> str:
    """The positive multiples of `step` around a value that is none, as in `99 or 102`."""
    below = value // step * step
    return " or ".join(str(multiple) for multiple in (below, below + step) if multiple)


def find_fsdp_conflicts(config: Config, environment: Mapping[str, str], origins: Mapping[str, str]) -> Iterator[str]:
    """One line for each conflict with FSDP, which the launcher asked for: the setting, its origin, and what would work.

    Args:
        environment: variables of the launcher's.
        origins: where each setting that was given came from; the others have their default.
    """
    train, fp16 = config.train, "its gradient scaler does not support sharded gradients; use bf16 or no"
    conflicts = {
        "optim.name": config.optim.name == "muon" and "Muon needs whole matrices; use adamw, adam or sgd",
        "train.shards": train.shards > 0 and "fixed shards need the whole model in every process; use -1 or 0",
        "train.compress": train.compress != "no" and "only DDP's gradients can be compressed; use no",
        "train.compile": train.compile != "no" and "torch.compile does not see when FSDP gathers parameters; use no",
        "train.precision": train.precision == "fp16" and fp16,
    }
    for key, reason in conflicts.items():
        if reason:
            yield f"{describe_setting(config, key, origins)}: not with FSDP ({USE_FSDP}, environment): {reason}"
    if train.precision == "auto" and environment.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        yield f"fp16 (what the launcher says): not with FSDP ({USE_FSDP}, environment): {fp16}"


def check_key(key: str, origin: str) -> None:
    """Raise UserError, with a suggestion, unless `key` is a setting, such as `optim.lr`."""
    if key in FIELDS or key.startswith(f"{ARGUMENTS}."):
        return
    section, dot, _ = key.partition(".")
    names = list(SECTIONS[section].model_fields) if section in SECTIONS else []
    if names and not dot:
        raise UserError(f"{key} ({origin}): is a section; give one of its settings, as in --{key}.{names[0]}=...")
    hint = hint_for_option(key) or (
        f"; settings of {section}: {', '.join(names)}" if names else "; --help lists all settings"
    )
    raise UserError(f"{shown(key)} ({origin}): unknown setting{hint}")


def shown(value: str | list[str]) -> str:
    """A value as errors show it: on one line, at most 80 characters."""
    text = value if isinstance(value, str) else f"[{', '.join(value)}]"
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:81])
    return text if len(text) <= 80 else f"{text[:77]}..."

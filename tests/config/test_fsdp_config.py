"""FSDP settings of the launcher: what is read, what is refused by name, and which of our settings exclude FSDP."""

from __future__ import annotations

import math

import pytest

from mnist_dist.config.fsdp import UNSUPPORTED_ENGINES, USE_FSDP, FSDPConfig, read_fsdp
from mnist_dist.config.loader import load
from mnist_dist.distributed.topology import read_topology
from mnist_dist.utils.errors import UserError

AS_LAUNCHED = {  # by accelerate 1.15 for a file that says nothing but `fsdp_version: 2`
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def refused(variables: dict[str, str]) -> str:
    with pytest.raises(UserError) as error:
        read_topology({**TWO, **variables})
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, FSDPConfig(True, math.inf)),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, FSDPConfig(False, math.inf)),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "5"}, FSDPConfig(True, 5)),
        ({"FSDP_MIN_NUM_PARAMS": "5"}, FSDPConfig(True, math.inf)),
        ({"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, FSDPConfig()),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}, None),
    ],
)
def test_supported_values_are_read(variables: dict[str, str], expected: FSDPConfig | None) -> None:
    assert read_topology({**TWO, **AS_LAUNCHED, **variables}).fsdp == expected


def test_one_process_needs_no_fsdp() -> None:
    assert read_fsdp(AS_LAUNCHED) == FSDPConfig()
    assert read_topology(AS_LAUNCHED).fsdp is None


@pytest.mark.parametrize("name", UNSUPPORTED_ENGINES)
def test_other_engines_are_refused(name: str) -> None:
    assert refused({name: "true"}).startswith(f"{name}=true (environment): ")
    assert read_topology({**TWO, name: "false"}).fsdp is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_VERSION", "1"),
        ("FSDP_SHARDING_STRATEGY", "SHARD_GRAD_OP"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_FORWARD_PREFETCH", "true"),
        ("FSDP_BACKWARD_PREFETCH", "BACKWARD_PRE"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "true"),
        ("FSDP_IGNORED_MODULES", "head"),
        ("FSDP_RESHARD_AFTER_FORWARD", "full_shard"),
        ("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP"),
        ("FSDP_MIN_NUM_PARAMS", "many"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name_in_the_file(name: str, value: str) -> None:
    said = refused({**AS_LAUNCHED, name: value})
    assert said.startswith(f"{name.lower()}={value} (the launcher's fsdp_config, {name}): is not supported; ")


@pytest.mark.parametrize(
    ("argument", "cure"),
    [
        ("--optim.name=muon", "use adamw, adam or sgd"),
        ("--train.shards=4", "use -1 or 0"),
        ("--train.compress=bf16", "use no"),
        ("--train.compile=default", "use no"),
        ("--train.precision=fp16", "use bf16 or no"),
    ],
)
def test_settings_that_need_the_whole_model_are_refused(argument: str, cure: str) -> None:
    assert load([argument], 2)
    with pytest.raises(UserError) as error:
        load([argument], 2, FSDPConfig())
    assert str(error.value).startswith(f"{argument[2:]} (command line): not with FSDP ({USE_FSDP}, environment): ")
    assert str(error.value).endswith(f"; {cure}")
    assert len(str(error.value).splitlines()) == 1


def test_fp16_from_the_launcher_is_refused_if_the_settings_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match=r"^fp16 \(what the launcher says\): not with FSDP .*; use bf16 or no$"):
        load([], 2, FSDPConfig())
    assert load(["--train.precision=bf16"], 2, FSDPConfig())


def test_the_default_recipe_works_with_fsdp() -> None:
    assert load([], 2, FSDPConfig()).config.train.shards == -1

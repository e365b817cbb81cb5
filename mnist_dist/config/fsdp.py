"""FSDP options that `accelerate launch` passes to its processes in the environment.

Of accelerate's sharding engines this package supports FSDP2, in the setting below. Other engines and other values are
refused here, because accelerate itself ignores some of them on CPUs without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mnist_dist.utils.errors import UserError

USE_FSDP = "ACCELERATE_USE_FSDP"
DYNAMO_BACKEND = "ACCELERATE_DYNAMO_BACKEND"
LAUNCHER = "the launcher's file or options"
UNSUPPORTED_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Names of engines by the variable with which `accelerate launch` turns them on."""

TRUE = "y", "yes", "t", "true", "on", "1"
FALSE = "n", "no", "f", "false", "off", "0", ""

REQUIRED_VALUES = {
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_BACKWARD_PREFETCH": "NO_PREFETCH",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "FSDP_IGNORED_MODULES": "",
}
"""The one supported value of each variable, which is also used if the variable is not set. Variables about how weights
reach the other ranks (FSDP_SYNC_MODULE_STATES, FSDP_CPU_RAM_EFFICIENT_LOADING) are ignored: every rank initialises the
whole model from the seed."""


@dataclass(frozen=True)
class FSDPConfig:
    """FSDP2 settings: every rank keeps a shard of each parameter, gradient and optimizer state."""

    reshard_after_forward: bool = True
    """Whether gathered parameters are freed after the forward pass, and gathered again for the backward pass."""
    min_num_params: float = math.inf
    """Layers with more parameters than this are wrapped, and gathered, one by one; the rest of the model at once."""


def read_fsdp(environment: Mapping[str, str]) -> FSDPConfig | None:
    """Read what the launcher's `fsdp_config` says; None if it does not ask for FSDP.

    Raises:
        UserError: it asks for another engine, for torch.compile, or for a value that is not supported.
    """
    backend = environment.get(DYNAMO_BACKEND) or "no"
    if backend.lower() != "no":
        raise UserError(
            f"dynamo_backend={backend.lower()} ({LAUNCHER}, {DYNAMO_BACKEND}): is not supported; "
            "leave it out, and compile by --train.compile=default"
        )
    for name, engine in UNSUPPORTED_ENGINES.items():
        if is_on(environment, name):
            raise UserError(
                f"{name}={environment[name]} (environment): {engine} is not supported; start with a file from launch/"
            )
    if not is_on(environment, USE_FSDP):
        return None
    for name, required in REQUIRED_VALUES.items():
        value = environment.get(name) or required
        if value.lower() != required.lower():
            raise unsupported(name, value, f"use {required}" if required else "leave it out")
    reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false"):
        raise unsupported("FSDP_RESHARD_AFTER_FORWARD", reshard, "use true or false")
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    if policy not in ("NO_WRAP", "SIZE_BASED_WRAP"):
        raise unsupported("FSDP_AUTO_WRAP_POLICY", policy, "use NO_WRAP or SIZE_BASED_WRAP")
    min_num_params = environment.get("FSDP_MIN_NUM_PARAMS", "100000000")
    if not min_num_params.isdecimal():
        raise unsupported("FSDP_MIN_NUM_PARAMS", min_num_params, "use a whole number")
    return FSDPConfig(reshard == "true", int(min_num_params) if policy == "SIZE_BASED_WRAP" else math.inf)


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Whether a boolean variable of accelerate's is true, by accelerate's own words for it.

    Raises:
        UserError: it is neither true nor false.
    """
    text = environment.get(name, "").lower()
    if text not in (*TRUE, *FALSE):
        raise UserError(f"{name}={environment[name]} (environment): must be true or false; correct it, or unset it")
    return text in TRUE


def unsupported(name: str, value: str, advice: str) -> UserError:
    """The error for an unsupported value, under the name that the launcher's YAML file has for it."""
    return UserError(f"{name.lower()}={value} (the launcher's fsdp_config, {name}): is not supported; {advice}")

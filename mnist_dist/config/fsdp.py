"""What `accelerate launch` was told about engines that cut up the model: FSDP2 is one of ours, the others are refused.

On CPUs accelerate itself would pass over some of this without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mnist_dist.utils.errors import UserError

FSDP = "ACCELERATE_USE_FSDP"
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""What `accelerate launch` sets for engines that are not supported."""

ONLY = {
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
"""Settings of which there is one value, also where nothing is said. Those that are not here say how accelerate itself
brings the weights to the processes; here each process draws them from the seed."""


@dataclass(frozen=True)
class Fsdp:
    """How the processes are to share the model's parameters, gradients and moments, each keeping a piece of all."""

    reshard_after_forward: bool = True
    """Whether the gathered parameters are let go between the forward and the backward pass."""
    min_num_params: float = math.inf
    """Layers of more parameters than this are gathered one at a time, the rest of the model at once."""


def read_fsdp(environment: Mapping[str, str]) -> Fsdp | None:
    """What the launcher's file says under `fsdp_config`; None where it does not ask for FSDP.

    Raises:
        UserError: it asks for another engine, or for what is not supported.
    """
    for name, engine in REFUSED.items():
        if is_on(environment, name):
            raise UserError(
                f"{name}={environment[name]} (environment): {engine} is not supported; start with a file from launch/"
            )
    if not is_on(environment, FSDP):
        return None
    for name, value in ONLY.items():
        given = environment.get(name) or value
        if given.lower() != value.lower():
            raise unsupported(name, given, f"only {value} is" if value else "nothing is left whole")
    reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in ("true", "false"):
        raise unsupported("FSDP_RESHARD_AFTER_FORWARD", reshard, "only true and false are")
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    if policy not in ("NO_WRAP", "SIZE_BASED_WRAP"):
        raise unsupported("FSDP_AUTO_WRAP_POLICY", policy, "only NO_WRAP and SIZE_BASED_WRAP are")
    least = environment.get("FSDP_MIN_NUM_PARAMS", "100000000")
    if not least.isdecimal():
        raise unsupported("FSDP_MIN_NUM_PARAMS", least, "it must be a whole number")
    return Fsdp(reshard == "true", int(least) if policy == "SIZE_BASED_WRAP" else math.inf)


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Whether a switch of accelerate's is on."""
    return environment.get(name, "").lower() in ("1", "true", "yes")


def unsupported(name: str, value: str, why: str) -> UserError:
    """The refusal of a setting, by its name in the launcher's file."""
    return UserError(f"{name.lower()}={value} (the launcher's fsdp_config, {name}): is not supported, {why}")

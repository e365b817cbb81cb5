"""How launch/README.md starts several machines, each with its own rank: the same commands, on machines of a network."""

from __future__ import annotations

from collections.abc import Callable

from network import Machine
from programs import ACCELERATE, LAUNCH, PYTHON, TORCHRUN

PORT = "29500"

Launcher = Callable[[int, int, int, str], list[str]]
"""Takes a machine's number, how many there are, the processes of each, and the main address."""


def accelerate(machine: int, machines: int, each: int, address: str) -> list[str]:
    size = ["--num_machines", str(machines), "--num_processes", str(machines * each)]
    place = ["--machine_rank", str(machine), "--main_process_ip", address, "--main_process_port", PORT]
    return [*ACCELERATE, "--config_file", str(LAUNCH / "multi_node_cpu.yaml"), *size, *place]


def torchrun_static(machine: int, machines: int, each: int, address: str) -> list[str]:
    place = ["--node-rank", str(machine), "--master-addr", address, "--master-port", PORT]
    return [*TORCHRUN, "--nnodes", str(machines), "--nproc-per-node", str(each), *place]


def torchrun_c10d(machine: int, machines: int, each: int, address: str) -> list[str]:
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{PORT}", "--rdzv-id", "two"]
    return [*TORCHRUN, "--nnodes", str(machines), "--nproc-per-node", str(each), *meeting]


def by_hand(machine: int, machines: int, each: int, address: str) -> list[str]:
    """One process without a launcher that would wait for the others first, as srun and Kubeflow start it."""
    assert each == 1
    place = {"RANK": machine, "WORLD_SIZE": machines, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    meeting = {"MASTER_ADDR": address, "MASTER_PORT": PORT}
    return ["env", *(f"{name}={value}" for name, value in (place | meeting).items()), *PYTHON]


LAUNCHERS = (accelerate, torchrun_static, torchrun_c10d)


def commands(
    launcher: Launcher, machines: list[Machine], *settings: str, each: int = 1, address: str = ""
) -> list[list[str]]:
    """How a run is started, machine by machine."""
    address = address or machines[0].address
    return [
        machine.command(*launcher(number, len(machines), each, address), "-m", "mnist_dist.train", *settings)
        for number, machine in enumerate(machines)
    ]

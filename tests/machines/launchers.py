"""The commands of launch/README.md that start several machines, for the machines of a test network."""

from __future__ import annotations

from collections.abc import Callable

from network import Machine
from programs import ACCELERATE, LAUNCH, PYTHON, TORCHRUN

PORT = "29500"

Launcher = Callable[[int, int, int, str], list[str]]
"""Takes a machine's number, the number of machines, of processes on each, and the rendezvous host."""


def accelerate(machine: int, machines: int, each: int, address: str) -> list[str]:
    size = ["--num_machines", str(machines), "--num_processes", str(machines * each)]
    rendezvous = ["--machine_rank", str(machine), "--main_process_ip", address, "--main_process_port", PORT]
    return [*ACCELERATE, "--config_file", str(LAUNCH / "multi_node_cpu.yaml"), *size, *rendezvous]


def torchrun_static(machine: int, machines: int, each: int, address: str) -> list[str]:
    rendezvous = ["--node-rank", str(machine), "--master-addr", address, "--master-port", PORT]
    return [*TORCHRUN, "--nnodes", str(machines), "--nproc-per-node", str(each), *rendezvous]


def torchrun_c10d(machine: int, machines: int, each: int, address: str) -> list[str]:
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{PORT}", "--rdzv-id", "two"]
    return [*TORCHRUN, "--nnodes", str(machines), "--nproc-per-node", str(each), *rendezvous]


def without_launcher(machine: int, machines: int, each: int, address: str) -> list[str]:
    """One process that no launcher keeps waiting for the other machines, as srun and Kubeflow start it."""
    assert each == 1
    ranks = {"RANK": machine, "WORLD_SIZE": machines, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    rendezvous = {"MASTER_ADDR": address, "MASTER_PORT": PORT}
    return ["env", *(f"{name}={value}" for name, value in (ranks | rendezvous).items()), *PYTHON]


LAUNCHERS = (accelerate, torchrun_static, torchrun_c10d)


def commands(
    launcher: Launcher, machines: list[Machine], *settings: str, each: int = 1, address: str = ""
) -> list[list[str]]:
    """The commands that start a run, one a machine."""
    address = address or machines[0].address
    return [
        machine.command(*launcher(number, len(machines), each, address), "-m", "mnist_dist.train", *settings)
        for number, machine in enumerate(machines)
    ]

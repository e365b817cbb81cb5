"""Every test starts without a launcher's environment variables and without the user's settings of accelerate.

The whole suite runs in several processes, each with one test file at a time; chosen files run in one process, which a
debugger can stop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Threads that wait leave their core to the other test processes. OpenMP reads it when torch is imported."""
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    # A shell starts `pytest &` and `nohup pytest` with these ignored, and every process of a test would inherit that.
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
LAUNCHER_PREFIXES = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "FSDP_",
    "SLURM_",
    "OMPI_",
    "PMI_",
    "PMIX_",
    "MPI_LOCAL",
    "PET_",
)

LONG_WAITS = ("tests/slurm/", "tests/machines/", "tests/tracking/test_wandb_online.py")
"""Tests that mostly wait: for Slurm's time limits, cut connections, slow servers. They start first: others run
meanwhile."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many test processes `-n auto` means: 3 for the whole suite, since one of them mostly waits; else none.

    The long version of the fault tests runs in one process: it kills at chosen moments, and has seconds to react.
    """
    whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 3 if whole_suite and config.option.markexpr == "not faults" else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that mostly wait first."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG_WAITS))


@pytest.fixture(scope="session", autouse=True)
def no_launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove launchers' variables, and the default_config.yaml that `accelerate launch` would read.

    Processes that a test starts or forks inherit the environment.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(LAUNCHER_PREFIXES)]:
            patch.delenv(name)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
        yield

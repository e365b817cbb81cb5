"""Every test starts without a launcher's environment variables and without the user's settings of accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

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

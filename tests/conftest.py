"""What every test starts from: no launcher's variables, and no settings of the user's for accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

LAUNCHER = (
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
    """One process without a launcher; `accelerate launch` finds no default_config.yaml that would change what it does.

    What is started from here, or forked later, inherits this.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(LAUNCHER)]:
            patch.delenv(name)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
        yield

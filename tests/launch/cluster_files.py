"""The files for Kubernetes, SkyPilot and containers: their content, checks by their own tools, and their commands."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import LAUNCH

KUBERNETES = LAUNCH / "kubernetes"
SKYPILOT = LAUNCH / "skypilot" / "train.yaml"
CONTAINERFILE = LAUNCH / "Containerfile"
STARTER = ["-m", "mnist_dist.train"]

Check = Callable[[Any], None]


class Refused(Exception):
    """A tool refuses a file."""


def documents(path: Path) -> list[Any]:
    """The YAML documents of a file, with aliases resolved to copies."""
    return [copy.deepcopy(json.loads(json.dumps(each))) for each in yaml.safe_load_all(path.read_text())]


# Checks by the tools


def check_kubernetes(document: Any) -> None:
    """Check an object against the JSON schemas that Kubernetes publishes. Raises Refused."""
    tool = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (extra `launchers`) is not installed")
    try:
        tool.validate(document, tool.latest_version(), strict=True)
    except (tool.ValidationError, tool.SchemaNotFoundError, KeyError, TypeError, AttributeError) as error:
        raise Refused(str(error)) from error


def check_trainjob(document: Any) -> None:
    """Check a TrainJob against the models that Kubeflow Trainer publishes. Raises Refused."""
    reason = "kubeflow-trainer-api (extra `launchers`) is not installed"
    models = pytest.importorskip("kubeflow_trainer_api.models", reason=reason)
    try:
        known = models.TrainerV1alpha1TrainJob.from_dict(document).to_dict()
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(str(error)) from error
    if known != document:
        raise Refused("keys that no model has")


def check_pytorchjob(document: Any) -> None:
    """Check a PyTorchJob against the Training Operator's models, and its pods against Kubernetes. Raises Refused.

    The operator's models accept any value for a string or a mapping; Kubernetes' schemas do not.
    """
    reason = "kubeflow-training (extra `launchers`) is not installed"
    training = pytest.importorskip("kubeflow.training", reason=reason)
    client = training.ApiClient()
    response = training.utils.utils.FakeResponse(document)
    try:
        known = client.sanitize_for_serialization(client.deserialize(response, "KubeflowOrgV1PyTorchJob"))
        pods = [replicas["template"] for replicas in document["spec"]["pytorchReplicaSpecs"].values()]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise Refused(str(error)) from error
    if known != document:
        raise Refused("keys that no model has")
    check_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"]})
    for pod in pods:
        check_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": pod})


SKY_PROGRAM = """
import json, os, sys
import sky
for task in json.load(sys.stdin):
    try:
        sky.Task.from_yaml_config(task)
        print("accepted")
    except Exception as error:  # of its own classes, or built-in ones
        print("refused:", " ".join(str(error).split()))
"""


def check_skypilot(tasks: list[Any], home: Path) -> list[str]:
    """`accepted` or `refused: why` for each task, by SkyPilot, in a process of its own with `home` as home folder.

    SkyPilot needs a hundred packages: SKYPILOT_PYTHON may name the Python of an environment that has them.
    """
    python = os.environ.get("SKYPILOT_PYTHON") or (sys.executable if find_spec("sky") else "")
    if not python:
        pytest.skip("skypilot is not installed (pip install skypilot; or SKYPILOT_PYTHON names a Python that has it)")
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [python, "-c", SKY_PROGRAM]
    ended = subprocess.run(
        command,
        input=json.dumps(tasks),
        env=environment,
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    return [line for line in ended.stdout.splitlines() if line.startswith(("accepted", "refused:"))]


# Copies with one mistake

FREE_KEYS = {"labels", "annotations", "requests", "limits", "envs", "file_mounts"}  # their keys are the user's choice
UNCHECKED_KEYS = {"pytorchReplicaSpecs"}  # their keys are checked by the operator only, not by its models


def with_one_mistake(document: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a document with one mistake each (a key misspelt, a value of another type), and its place."""
    for path, parent, key in walk(document, ()):
        where = ".".join(str(step) for step in (*path, key))
        value = parent[key]
        if isinstance(key, str) and not {path[-1] if path else ""} & (FREE_KEYS | UNCHECKED_KEYS):
            yield f"{where} misspelt", changed(document, path, key, value, rename=f"{key}x")
        yield f"{where} of another type", changed(document, path, key, another_type(value))


def another_type(value: Any) -> Any:
    """A value that is not of this one's type."""
    return {"wrong": ["type"]} if isinstance(value, str) else "text"


def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Every value of a document: the path of its parent, the parent, and its key or index there."""
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield path, node, key
        yield from walk(node[key], (*path, key))


def changed(document: Any, path: tuple[Any, ...], key: Any, value: Any, rename: str | None = None) -> Any:
    """A copy with another value in one place, or another key."""
    result = copy.deepcopy(document)
    node = result
    for step in path:
        node = node[step]
    if rename is not None:
        del node[key]
    node[rename or key] = value
    return result


# The commands


def pods(document: Any) -> list[Any]:
    """The pod specifications of a Job, a PyTorchJob, or of a TrainJob's patch."""
    spec = document["spec"]
    if document["kind"] == "Job":
        return [spec["template"]["spec"]]
    if document["kind"] == "PyTorchJob":
        return [replicas["template"]["spec"] for replicas in spec["pytorchReplicaSpecs"].values()]
    patches = [patch["trainingRuntimeSpec"]["template"]["spec"] for patch in spec["runtimePatches"]]
    jobs = [job for patch in patches for job in patch["replicatedJobs"]]
    return [job["template"]["spec"]["template"]["spec"] for job in jobs]


def containers(document: Any) -> list[Any]:
    """The parts of a Job, a PyTorchJob or a TrainJob that have command and resources, one for each kind of pod."""
    if document["kind"] == "TrainJob":
        trainer = document["spec"]["trainer"]
        return [{**trainer, "resources": trainer["resourcesPerNode"]}]
    return [container for pod in pods(document) for container in pod["containers"]]


def command_of(container: Any) -> list[str]:
    """The command line of a container."""
    return [*container["command"], *container["args"]]


def skypilot_command() -> list[str]:
    """The last command of SkyPilot's script, split into words; shell variables are not expanded."""
    (task,) = documents(SKYPILOT)
    lines = task["run"].replace("\\\n", " ").strip().splitlines()
    return shlex.split(lines[-1])


def settings_of(words: list[str]) -> list[str]:
    """The program's arguments in a command line."""
    start = next(i for i in range(len(words)) if words[i : i + 2] == STARTER)
    return words[start + 2 :]

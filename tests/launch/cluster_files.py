"""The files that clusters read: what is in them, what their own tools make of them, and what each would start."""

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
    """What a tool says of a file that it would not take."""


def documents(path: Path) -> list[Any]:
    """The YAML documents of a file, without shared parts."""
    return [copy.deepcopy(json.loads(json.dumps(each))) for each in yaml.safe_load_all(path.read_text())]


# What the tools say


def check_kubernetes(document: Any) -> None:
    """Of Kubernetes' own objects, by the JSON schemas that it publishes. Raises Refused."""
    tool = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (extra `launchers`) is not installed")
    try:
        tool.validate(document, tool.latest_version(), strict=True)
    except (tool.ValidationError, tool.SchemaNotFoundError, KeyError, TypeError, AttributeError) as error:
        raise Refused(str(error)) from error


def check_trainjob(document: Any) -> None:
    """Of a TrainJob, by the models that Kubeflow Trainer publishes. Raises Refused."""
    reason = "kubeflow-trainer-api (extra `launchers`) is not installed"
    models = pytest.importorskip("kubeflow_trainer_api.models", reason=reason)
    try:
        known = models.TrainerV1alpha1TrainJob.from_dict(document).to_dict()
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(str(error)) from error
    if known != document:
        raise Refused("keys that no model has")


def check_pytorchjob(document: Any) -> None:
    """Of a PyTorchJob, by the models that the Training Operator publishes, and its pods by Kubernetes. Raises Refused.

    The first models take any value for a text or a mapping of their own, and Kubernetes' schemas do not.
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
        print("taken")
    except Exception as error:  # whatever it says, in its own classes and in built-in ones
        print("refused:", " ".join(str(error).split()))
"""


def sky_says(tasks: list[Any], home: Path) -> list[str]:
    """`taken` or `refused: why` for each task, by SkyPilot itself, in a process and a home folder of its own.

    SkyPilot brings a hundred packages: SKYPILOT_PYTHON may name the Python of an environment that has them.
    """
    python = os.environ.get("SKYPILOT_PYTHON") or (sys.executable if find_spec("sky") else "")
    if not python:
        pytest.skip("skypilot is not installed (pip install skypilot; or SKYPILOT_PYTHON names a Python that has it)")
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [python, "-c", SKY_PROGRAM]
    said = subprocess.run(
        command,
        input=json.dumps(tasks),
        env=environment,
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert said.returncode == 0, said.stderr
    return [line for line in said.stdout.splitlines() if line.startswith(("taken", "refused:"))]


# Copies with a mistake

FREE_KEYS = {"labels", "annotations", "requests", "limits", "envs", "file_mounts"}  # whose keys are the user's
NAMED = {"pytorchReplicaSpecs"}  # keys that only the operator itself knows


def spoilt(document: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a document with one mistake each, and where it is: each key misspelt, each value of a wrong type."""
    for path, parent, key in places(document, ()):
        where = ".".join(str(step) for step in (*path, key))
        value = parent[key]
        if isinstance(key, str) and not {path[-1] if path else ""} & (FREE_KEYS | NAMED):
            yield f"{where} misspelt", changed(document, path, key, value, rename=f"{key}x")
        yield f"{where} of another type", changed(document, path, key, another_type(value))


def another_type(value: Any) -> Any:
    """A value that is not of this one's type."""
    return {"wrong": ["type"]} if isinstance(value, str) else "text"


def places(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Where each value of a document is: the path of its parent, the parent, and its key or index there."""
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield path, node, key
        yield from places(node[key], (*path, key))


def changed(document: Any, path: tuple[Any, ...], key: Any, value: Any, rename: str | None = None) -> Any:
    """A copy in which one place has another value, or another key."""
    result = copy.deepcopy(document)
    node = result
    for step in path:
        node = node[step]
    if rename is not None:
        del node[key]
    node[rename or key] = value
    return result


# What each would start


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
    """What has the command and the resources in a Job, a PyTorchJob or a TrainJob, one for each kind of pod."""
    if document["kind"] == "TrainJob":
        trainer = document["spec"]["trainer"]
        return [{**trainer, "resources": trainer["resourcesPerNode"]}]
    return [container for pod in pods(document) for container in pod["containers"]]


def command_of(container: Any) -> list[str]:
    """The command line of a container."""
    return [*container["command"], *container["args"]]


def sky_words() -> list[str]:
    """The last command of SkyPilot's script, in words; the shell's variables are still in it."""
    (task,) = documents(SKYPILOT)
    lines = task["run"].replace("\\\n", " ").strip().splitlines()
    return shlex.split(lines[-1])


def settings_of(words: list[str]) -> list[str]:
    """What a command line gives to the program."""
    start = next(i for i in range(len(words)) if words[i : i + 2] == STARTER)
    return words[start + 2 :]

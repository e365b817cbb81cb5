"""train.compile: whole batches of training are compiled, all else is as without; where it fails, all go on alike."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_ranks
from programs import write_digits
from small_training import open_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier

BATCH = 12
SIZES = (BATCH * 3 + 1, 20)  # the last batch of an epoch has one image: all but one of several processes have none
RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--train.shards=0", "--tracking.log_steps=1", "--train.epochs=2"),
    *(f"--train.batch_size={BATCH}", "--optim.name=sgd", "--optim.lr=0.01", "--optim.warmup=0"),
)
COMPILED = (*RECIPE, "--train.compile=default")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")),
    reason="no C++ compiler (g++), which torch.compile needs on CPUs",
)


class Telltale(ImageClassifier):
    """Gives zeros unless it is compiled, so that losses tell which steps were: they are log(10) where not."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1.0 if torch.compiler.is_compiling() else 0.0)


def telltale() -> nn.Module:
    """One linear layer that tells."""
    return Telltale(nn.Sequential(nn.Flatten()), nn.Linear(784, 10))


def normed() -> nn.Module:
    """A batch norm, whose statistics the trial run must leave alone, and a linear layer."""
    return ImageClassifier(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), nn.Linear(784, 10))


NETWORKS = {"telltale": telltale, "normed": normed}


@dataclass(frozen=True)
class Run:
    """What a rank brings home."""

    sha256: str
    names: list[str]
    rows: list[dict[str, Any]]
    said: list[str]
    warnings: list[str]

    def losses(self, key: str = "train.loss") -> list[float]:
        return [row[key] for row in self.rows if key in row]


def train(network: str, arguments: tuple[str, ...], folder: Path, cache: Path, broken: int = -1) -> Run:
    """Train, on ranks of which one may have a C++ compiler that does not work."""
    topology = read_topology()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    if topology.rank == broken:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        torch._inductor.config.cpp.cxx = ("/bin/false",)
    config = load(arguments, topology.world_size).config
    said, warnings, rows = list[str](), list[str](), list[dict[str, Any]]()
    with start_runtime(config, topology) as runtime:
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        trainer = open_trainer(runtime, config, checkpoints, SIZES, network=NETWORKS[network], rows=rows)
        trainer.console.print, trainer.console.warn = said.append, warnings.append  # type: ignore[method-assign]
        trainer.train()
        rows.append(trainer.evaluate("test").row("end"))
        return Run(weights_sha256(trainer.state.model), list(trainer.state.model.state_dict()), rows, said, warnings)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the compiler has compiled once it need not compile again."""
    return tmp_path_factory.mktemp("inductor")


@needs_compiler
@pytest.mark.parametrize(
    ("world_size", "options"),
    [(1, ("--train.precision=bf16", "--data.shift=2", "--train.accumulate=2")), (3, ())],
)
def test_whole_batches_of_training_are_compiled_and_nothing_else_is(
    world_size: int, options: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    runs = run_ranks(world_size, train, "telltale", (*COMPILED, *options), tmp_path, cache)
    for run in runs:
        assert run.warnings == []
        assert run.said[0] == "compiling the model (train.compile=default)"
        assert len(run.said) == 2
        assert run.names == ["head.weight", "head.bias"]
        assert run.sha256 == runs[0].sha256
    eager = [loss == pytest.approx(math.log(10), abs=1e-6) for loss in runs[0].losses()]
    assert eager == [False, False, False, True] * 2
    assert runs[0].losses("test.loss") + runs[0].losses("end.loss") == pytest.approx([math.log(10)] * 3)


@needs_compiler
def test_a_compiled_run_computes_the_same_and_goes_on_as_if_undisturbed(tmp_path: Path, cache: Path) -> None:
    plain, whole = (
        run_ranks(1, train, "normed", arguments, tmp_path / name, cache)[0]
        for name, arguments in (("plain", RECIPE), ("whole", COMPILED))
    )
    assert whole.losses() == pytest.approx(plain.losses(), rel=1e-4)
    assert whole.losses("test.loss") == pytest.approx(plain.losses("test.loss"), rel=1e-4)
    first, rest = (
        run_ranks(1, train, "normed", (*COMPILED, f"--train.max_steps={steps}"), tmp_path / "parts", cache)[0]
        for steps in (3, 8)  # in front of the last batch, which alone would decide what is compiled
    )
    assert first.losses() + rest.losses() == whole.losses()
    assert rest.sha256 == whole.sha256


@pytest.mark.parametrize("broken", [0, 1])
def test_where_one_process_cannot_compile_all_go_on_without(broken: int, tmp_path: Path, cache: Path) -> None:
    runs = run_ranks(2, train, "normed", COMPILED, tmp_path / "broken", cache, broken)
    plain = run_ranks(2, train, "normed", RECIPE, tmp_path / "plain", cache)
    for run, other in zip(runs, plain, strict=True):
        (warning,) = run.warnings
        assert warning.startswith(f"train.compile=default: failed on rank {broken} (")
        assert "compiler" in warning
        assert warning.endswith("); training goes on without it")
        assert "\n" not in warning
        assert (run.sha256, run.losses(), run.losses("test.loss")) == (
            other.sha256, other.losses(), other.losses("test.loss")
        )  # fmt: skip


def test_a_run_that_is_not_compiled_does_not_load_the_compiler(tmp_path: Path) -> None:
    """It takes a second. (torch itself loads it for run.deterministic.)"""
    write_digits(tmp_path, train=600, test=20)
    options = ["--config=debug", "--run.deterministic=false", "--data.source=local", f"--data.root={tmp_path}"]
    script = (
        "import sys; from mnist_dist.train import main\n"
        f"code = main({[*options, f'--run.dir={tmp_path}/run', '--data.val_size=100', '--data.limit=0']})\n"
        "sys.exit(code or 100 * ('torch._dynamo' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").exists()

"""train.compile: only full training batches run compiled; if compilation fails on one rank, all ranks run eagerly."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from compiler import needs_compiler
from harness import run_ranks
from programs import write_digits
from small_training import open_trainer
from torch import Tensor, nn

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.models import ImageClassifier
from mnist_dist.training import trainer as trainer_module

pytestmark = pytest.mark.timeout(900)
COMPILER_SECONDS = 300.0
"""Timeout of ranks that run the C++ compiler, on a busy machine with an empty cache."""
BATCH = 12
SIZES = (BATCH * 3 + 1, 20)  # the last batch of an epoch has one image, which only one rank gets
RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--train.shards=0", "--tracking.log_steps=1", "--train.epochs=2"),
    *(f"--train.batch_size={BATCH}", "--optim.name=sgd", "--optim.lr=0.01", "--optim.warmup=0"),
)
COMPILED = (*RECIPE, "--train.compile=default")


class ZeroIfEager(ImageClassifier):
    """Returns zeros unless it is compiled: the loss of an eager forward pass is log(10)."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1.0 if torch.compiler.is_compiling() else 0.0)


def zero_if_eager() -> nn.Module:
    """One linear layer."""
    return ZeroIfEager(nn.Sequential(nn.Flatten()), nn.Linear(784, 10))


def batch_norm() -> nn.Module:
    """A batch norm, whose statistics must not change during compilation, and a linear layer."""
    return ImageClassifier(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), nn.Linear(784, 10))


MODELS = {"zero if eager": zero_if_eager, "batch norm": batch_norm}


@dataclass(frozen=True)
class Run:
    """Result of a run on one rank."""

    sha256: str
    names: list[str]
    """Keys of the model's state dict."""
    rows: list[dict[str, Any]]
    lines: list[str]
    """Lines printed to the console."""
    warnings: list[str]

    def losses(self, key: str = "train.loss") -> list[float]:
        return [row[key] for row in self.rows if key in row]


def train(model: str, arguments: tuple[str, ...], folder: Path, cache: Path, broken_rank: int = -1) -> Run:
    """Train one of MODELS.

    Args:
        cache: folder of compiled kernels.
        broken_rank: the rank whose C++ compiler fails.
    """
    topology = read_topology()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    if topology.rank == broken_rank:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        torch._inductor.config.cpp.cxx = ("/bin/false",)
    config = load(arguments, topology.world_size).config
    lines, warnings, rows = list[str](), list[str](), list[dict[str, Any]]()
    with start_runtime(config, topology) as runtime:
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        trainer = open_trainer(runtime, config, checkpoints, SIZES, build_model=MODELS[model], rows=rows)
        trainer.console.print, trainer.console.warn = lines.append, warnings.append  # type: ignore[method-assign]
        trainer.train()
        rows.append(trainer.evaluate("test").row("end"))
        return Run(weights_sha256(trainer.state.model), list(trainer.state.model.state_dict()), rows, lines, warnings)


def train_without_kernels(*arguments: Any) -> Run:
    """As `train`, but the backend of torch.compile only traces: what runs compiled is the same, within a second."""
    compile_module = nn.Module.compile
    nn.Module.compile = functools.partialmethod(compile_module, backend="eager")  # type: ignore[method-assign]
    return train(*arguments)


def train_four_times(folder: Path, cache: Path) -> list[Run]:
    """An eager run, a compiled one, and one that is stopped after three steps and resumed."""
    runs = []
    halves = "--train.accumulate=2"  # forward passes over as many images as on each of two ranks
    for name, *arguments in (
        ("eager", *RECIPE),
        ("compiled", *COMPILED),
        ("resumed", *COMPILED, "--train.max_steps=3"),  # the resumed run starts with the smaller last batch
        ("resumed", *COMPILED, "--train.max_steps=8"),
    ):
        runs.append(train("batch norm", (*arguments, halves), folder / name, cache))
    return runs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of compiled kernels, shared by the tests of this file."""
    return tmp_path_factory.mktemp("inductor")


@pytest.mark.parametrize(
    ("world_size", "options"),
    [(1, ("--train.precision=bf16", "--data.shift=2", "--train.accumulate=2")), (3, ())],
)
def test_only_full_training_batches_are_compiled(
    world_size: int, options: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    runs = run_ranks(world_size, train_without_kernels, "zero if eager", (*COMPILED, *options), tmp_path, cache)
    for run in runs:
        assert run.warnings == []
        assert run.lines[0] == "compiling the model (train.compile=default)"
        assert len(run.lines) == 2
        assert run.names == ["head.weight", "head.bias"]
        assert run.sha256 == runs[0].sha256
    eager = [loss == pytest.approx(math.log(10), abs=1e-6) for loss in runs[0].losses()]
    assert eager == [False, False, False, True] * 2
    assert runs[0].losses("test.loss") + runs[0].losses("end.loss") == pytest.approx([math.log(10)] * 3)


@needs_compiler
def test_a_compiled_run_has_the_losses_of_an_eager_one_and_resumes_bit_for_bit(tmp_path: Path, cache: Path) -> None:
    ((eager, compiled, first, resumed),) = run_ranks(1, train_four_times, tmp_path, cache, timeout=COMPILER_SECONDS)
    assert compiled.warnings == first.warnings == resumed.warnings == []
    assert compiled.losses() == pytest.approx(eager.losses(), rel=1e-4)
    assert compiled.losses("test.loss") == pytest.approx(eager.losses("test.loss"), rel=1e-4)
    assert first.losses() + resumed.losses() == compiled.losses()
    assert resumed.sha256 == compiled.sha256 != eager.sha256
    ranks = run_ranks(2, train, "batch norm", COMPILED, tmp_path / "ranks", cache, timeout=COMPILER_SECONDS)
    assert [run.warnings for run in ranks] == [[], []]
    assert ranks[0].sha256 == ranks[1].sha256


def test_if_one_rank_cannot_compile_all_train_eagerly(tmp_path: Path, cache: Path) -> None:
    eager = run_ranks(2, train, "batch norm", RECIPE, tmp_path / "eager", cache)
    for broken_rank in (0, 1):
        arguments = ("batch norm", COMPILED, tmp_path / str(broken_rank), cache, broken_rank)
        runs = run_ranks(2, train, *arguments, timeout=COMPILER_SECONDS)
        for run, other in zip(runs, eager, strict=True):
            (warning,) = run.warnings
            assert warning.startswith(f"train.compile=default: failed on rank {broken_rank} (")
            assert "compiler" in warning
            assert warning.endswith("); training goes on without it")
            assert "\n" not in warning
            assert (run.sha256, run.losses(), run.losses("test.loss")) == (
                other.sha256, other.losses(), other.losses("test.loss")
            )  # fmt: skip


def train_with_graphs(arguments: tuple[str, ...], folder: Path) -> Run:
    """As `train`, with a stand-in for CUDA graphs: each forward pass writes its output over that of the last one."""

    class Replay(torch.autograd.Function):
        outputs: ClassVar[dict[torch.Size, Tensor]] = {}

        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            return Replay.outputs.setdefault(logits.shape, torch.empty_like(logits)).copy_(logits).detach()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    @contextmanager
    def compiled(model: nn.Module, *arguments: Any) -> Iterator[None]:
        model.register_forward_hook(lambda module, inputs, logits: Replay.apply(logits))
        yield

    if "--train.compile=reduce-overhead" in arguments:
        trainer_module.compiled = compiled
    return train("batch norm", arguments, folder, folder)


def test_the_counts_keep_no_memory_of_cuda_graphs(tmp_path: Path) -> None:
    """They keep logits for several steps."""
    arguments = (*RECIPE, "--tracking.log_steps=3")
    ((eager,), (graphs,)) = (
        run_ranks(1, train_with_graphs, (*arguments, f"--train.compile={mode}"), tmp_path / mode)
        for mode in ("no", "reduce-overhead")
    )
    for key in ("train.loss", "train.accuracy", "epoch.train.confusion"):
        assert graphs.losses(key) == eager.losses(key)


def test_a_run_that_is_not_compiled_does_not_import_dynamo(tmp_path: Path) -> None:
    """The import takes a second. The debug recipe asks for deterministic kernels and anomaly detection too."""
    write_digits(tmp_path, train=600, test=20)
    options = ["--config=debug", "--data.source=local", f"--data.root={tmp_path}"]
    script = (
        "import sys; from mnist_dist.train import main\n"
        f"code = main({[*options, f'--run.dir={tmp_path}/run', '--data.val_size=100', '--data.limit=0']})\n"
        "sys.exit(code or 100 * ('torch._dynamo' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").exists()

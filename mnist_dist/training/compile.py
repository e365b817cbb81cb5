"""torch.compile, where it works: train.compile."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mnist_dist.console.console import Console
from mnist_dist.distributed.runtime import Runtime


@contextmanager
def compiled(model: nn.Module, mode: str, images: int, runtime: Runtime, console: Console) -> Iterator[None]:
    """Have a model compiled in here, in place, so that the names of its weights stay; on all processes or on none.

    Only whole batches of training are compiled. Each other size, and evaluations, would cost seconds of compilation to
    save less; and an empty share of a batch, as there may be at an epoch's end, cannot be compiled. So what is compiled
    does not depend on the batch that a run goes on with.

    Args:
        mode: of torch.compile; `no`: nothing is done, and torch's compiler is not even imported.
        images: that one forward pass of this process is given of a whole batch.
    """
    if mode == "no":
        yield
        return
    console.say(f"compiling the model (train.compile={mode})")
    start, failure = time.perf_counter(), ""
    for noisy in ("torch._inductor", "torch.utils.cpp_extension"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    torch.compiler.reset()
    model.compile(mode=mode, dynamic=False)
    try:
        rehearse(model, images, runtime)
    except Exception as error:  # a compiler may fail in any way
        failure = str(error).strip().partition("\n")[0] or type(error).__name__
    failures = [(rank, text) for rank, text in enumerate(runtime.all_gather_object(failure)) if text]
    try:
        if not failures:
            console.say(f"compiled in {time.perf_counter() - start:.1f} s")
            torch.compiler.set_stance("eager_on_recompile")
        else:
            remove(model)
            rank, text = failures[0]
            console.warn(f"train.compile={mode}: failed on rank {rank} ({text}); training goes on without it")
        yield
    finally:
        remove(model)
        torch.compiler.set_stance("default")


def rehearse(model: nn.Module, images: int, runtime: Runtime) -> None:
    """Compute a gradient of blank images, and keep nothing of it.

    Without DistributedDataParallel: if it failed in there on one process only, the processes would no longer agree on
    what to exchange.
    """
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    try:
        loss = runtime.scale(model(torch.zeros(images, 1, 28, 28, device=runtime.device)).sum())
        torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


def remove(model: nn.Module) -> None:
    """Undo `model.compile()`, for which torch has no call."""
    model._compiled_call_impl = None

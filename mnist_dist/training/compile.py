"""train.compile: torch.compile on all ranks, or on none if it fails on one."""

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
    """Compile a model in place for the duration of a block. The names of its weights stay the same.

    Only forward passes over `images` images in training mode run compiled. To compile for other batch sizes and for
    evaluation would take seconds and save less, and an empty slice of an epoch's last batch cannot be compiled at all.
    So a resumed run compiles the same as an uninterrupted one. If compilation fails on a rank, all ranks train
    uncompiled, and rank 0 warns. Every rank must enter the block.

    Args:
        mode: mode of torch.compile; `no` does nothing, and does not import torch's compiler.
        images: images of one forward pass of this rank, in a full batch.
        console: shows how long compilation took, or warns.
    """
    if mode == "no":
        yield
        return
    console.print(f"compiling the model (train.compile={mode})")
    start, failure = time.perf_counter(), ""
    for noisy in ("torch._inductor", "torch.utils.cpp_extension"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    torch.compiler.reset()
    model.compile(mode=mode, dynamic=False)
    try:
        compile_now(model, images, runtime)
    except Exception as error:  # compilers raise all kinds of errors
        failure = str(error).strip().partition("\n")[0] or type(error).__name__
    failures = [(rank, text) for rank, text in enumerate(runtime.all_gather_object(failure)) if text]
    try:
        if not failures:
            console.print(f"compiled in {time.perf_counter() - start:.1f} s")
            torch.compiler.set_stance("eager_on_recompile")
        else:
            undo_compile(model)
            rank, text = failures[0]
            console.warn(f"train.compile={mode}: failed on rank {rank} ({text}); training goes on without it")
        yield
    finally:
        undo_compile(model)
        torch.compiler.set_stance("default")


def compile_now(model: nn.Module, images: int, runtime: Runtime) -> None:
    """Compile by one forward and backward pass over blank images. Gradients and buffers stay as they were.

    The model is called without its DDP wrapper: if one rank failed inside DDP, the others would wait in a collective.
    """
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    try:
        loss = runtime.mixed_precision.scale_loss(model(torch.zeros(images, 1, 28, 28, device=runtime.device)).sum())
        torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


def undo_compile(model: nn.Module) -> None:
    """Undo `model.compile()`. torch has no function for it."""
    model._compiled_call_impl = None

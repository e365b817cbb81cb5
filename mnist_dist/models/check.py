"""Check a model before it is trained: one forward and backward pass of a copy, which leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mnist_dist.models.builder import ModelBuilder
from mnist_dist.utils.errors import UserError

SHARE = "with {} images, this process's share of an epoch's last batch (data.drop_last=true leaves that out):"
IMAGES = 2  # of the batch with which a model is tried: one alone is too few for a batch norm


def check_model(
    builder: ModelBuilder,
    model: nn.Module,
    num_classes: int | None,
    batch_sizes: Iterable[int] = (),
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[str]:
    """Try a model in training and in eval mode. Its buffers and gradients, and the random state, stay as they are.

    Args:
        model: what the builder built, on its device.
        num_classes: number of logits; None: any.
        batch_sizes: sizes of batches that are tried too, because the run will have them.
        autocast: context of a forward pass.

    Returns:
        Names of the parameters that want a gradient but get none.

    Raises:
        UserError: no parameter wants a gradient, a tensor has a dtype that is not supported, the output is no float
            tensor (B, num_classes), or the model raises an exception; with the user's own file and line.
    """
    where = f"model.name={builder.name}"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError(f"{where}: has no parameter that requires a gradient, so there is nothing to train")
    for name, tensor in model.named_parameters():
        if tensor.dtype != torch.float32:
            raise UserError(f"{where}: parameter {name} is {tensor.dtype}, not torch.float32")
    device = next(iter(trained.values())).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 1, 28, 28, generator=generator).to(device)

    def try_batch(batch: Tensor, doing: str) -> Tensor:
        with builder.running(doing), autocast():
            logits = tried(batch)
        check_output(logits, len(batch), num_classes, where)
        return logits

    with torch.random.fork_rng([]):  # that of the CPU: each step seeds the device's
        with builder.running("when it is copied:"):
            tried = copy.deepcopy(model)
        logits = try_batch(images, "")
        if not logits.requires_grad:
            raise UserError(f"{where}: its output depends on no parameter that requires a gradient (no_grad? detach?)")
        parameters = dict(tried.named_parameters())
        with builder.running("in the backward pass:"):
            found = torch.autograd.grad(logits.float().sum(), [parameters[name] for name in trained], allow_unused=True)
        for size in sorted(set(batch_sizes) - {IMAGES}):
            batch = torch.randn(size, 1, 28, 28, generator=generator).to(device)
            try_batch(batch, SHARE.format(size))
        tried.eval()
        with torch.no_grad():
            try_batch(images, "in eval mode:")
    return [name for name, gradient in zip(trained, found, strict=True) if gradient is None]


def check_output(logits: object, images: int, num_classes: int | None, where: str) -> None:
    """Raise UserError unless the output for a batch is a float tensor (images, num_classes)."""
    classes = "K" if num_classes is None else num_classes
    wanted = f"for {images} images float (B, 1, 28, 28), must be float ({images}, {classes}): a logit of each class"
    if not isinstance(logits, Tensor):
        raise UserError(f"{where}: its output is {type(logits).__name__}; {wanted}")
    shape = tuple(logits.shape)
    fits = len(shape) == 2 and shape[0] == images and num_classes in (None, shape[1])
    if not fits or not logits.is_floating_point():
        raise UserError(f"{where}: its output is {str(logits.dtype).removeprefix('torch.')} {shape}; {wanted}")

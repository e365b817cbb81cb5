"""Torch's `meta` device in place of a GPU: whatever waits for the device, or mixes it with the CPU, is noticed.

A tensor on `meta` has a shape and no data. So a step, an evaluation, a row and a checkpoint run to their end, and the
numbers are meaningless.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnist_dist.distributed import runtime
from mnist_dist.training import state

META = torch.device("meta")
WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim", "item")
"""Operations whose result, or its shape, the host needs from the device."""
SUPPORTED = ["meta", "cuda"]
FUSED = ("_fused_adamw_", "_fused_adam_", "_fused_sgd_")


class Autocast(torch.autocast):
    """torch has no autocast for `meta`: that of the CPU, which is off."""

    def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
        super().__init__("cpu" if device_type == "meta" else device_type, *arguments, **options)


class StandInDevice(TorchDispatchMode):
    """Counts the waits of the host for the device, and refuses other operations on tensors of both.

    Attributes:
        waits: operations that waited, as names.
        copies: copies from the host to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation. What the host reads from the device is zeros."""
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.is_meta for tensor in tensors)
        if name == "_to_copy" and tensors[0].is_meta and torch.device(kwargs.get("device") or META).type == "cpu":
            self.waits.append("copy to the host")
            return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if name == "copy_" and tensors[1].is_meta and not tensors[0].is_meta:
            self.waits.append("copy to the host")
            return tensors[0].zero_()
        if name in ("_to_copy", "copy_"):
            if any(not tensor.is_meta for tensor in tensors) and (
                on_device or torch.device(kwargs.get("device") or "cpu").type == "meta"
            ):
                self.copies.append(name)
            return function(*args, **kwargs)
        if name in WAITS and on_device:
            self.waits.append(name)
            return 0
        boolean_index = name in ("index", "index_put", "index_put_") and any(
            tensor.dtype == torch.bool and tensor.ndim for tensor in tensors
        )
        if boolean_index and on_device:
            self.waits.append(name)
        if on_device and any(not tensor.is_meta and tensor.ndim for tensor in tensors):
            raise AssertionError(f"{name}: a tensor is on the CPU, another on the device")
        return function(*args, **kwargs)

    @contextmanager
    def allow(self, count: int) -> Iterator[None]:
        """Fail unless the host waits for the device so many times within the block, and copies nothing to it."""
        before = len(self.waits), len(self.copies)
        yield
        waits, copies = self.waits[before[0] :], self.copies[before[1] :]
        assert len(waits) == count, f"the host waits for the device: {waits}"
        assert not copies, f"the host copies to the device: {copies}"


@contextmanager
def stand_in_device(*, fused: bool) -> Iterator[StandInDevice]:
    """Within the block, `start_runtime` of a run on the CPU gives a runtime on the stand-in device.

    Args:
        fused: whether optimizers are fused, as on CUDA. Otherwise they are not, as on MPS.
    """
    create_accelerator = runtime.create_accelerator

    def create(*arguments: Any) -> Accelerator:
        accelerator = create_accelerator(*arguments)
        accelerator.state.device = META
        return accelerator

    meta = library.Library("aten", "IMPL", "Meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "create_accelerator", create)
        patch.setattr(state, "can_fuse", lambda runtime: fused)
        patch.setattr(torch, "autocast", Autocast)
        if fused:
            patch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", SUPPORTED.copy)
            for name in FUSED:
                meta.impl(name, lambda *arguments, **options: None, allow_override=True)
        with StandInDevice() as device:
            yield device
    meta._destroy()

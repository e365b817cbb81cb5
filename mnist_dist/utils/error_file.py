"""The error file of a process under torchrun, or `accelerate launch` of several: their report quotes it as the cause.

Without it, the report says that no traceback is there, below the one line that says what is wrong. The format is that
of torch.distributed.elastic's ErrorHandler.record_exception, which would import torch, and quote a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from mnist_dist.utils.errors import Stopped, TrainingError, UserError


@contextlib.contextmanager
def error_file() -> Iterator[None]:
    """Write the exception that leaves the block into the error file: its message if it is one of ours, or a traceback.

    All ranks write it, also those that report nothing: the launcher quotes the one that ends first.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        message = str(error) if isinstance(error, UserError | TrainingError | Stopped) else traceback.format_exc()
        write_error_file(f"stopped: {message}" if isinstance(error, Stopped) else message)
        raise


def write_error_file(message: str) -> None:
    """Write the error file; does nothing if there is no launcher that reads it, or it cannot be written."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        if path:
            Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))

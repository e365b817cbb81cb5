"""What the benchmarks share. Importing it checks that the package and its dependencies are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def require(*modules: str, install: str) -> None:
    """End the script with exit code 2 and one line if a module is not installed.

    Args:
        install: the command that installs them.
    """
    for module in modules:
        if find_spec(module) is None:
            print(f"{Path(sys.argv[0]).name}: module {module} is not installed; run: {install}", file=sys.stderr)
            sys.exit(2)


require("mnist_dist", "torch", "torchvision", "accelerate", "rich", "psutil", install="pip install -e .")

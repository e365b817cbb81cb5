"""Marks tests that run a C++ compiler, as torch.compile does on CPUs."""

from __future__ import annotations

import os
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")),
    reason="no C++ compiler (g++), which torch.compile needs on CPUs",
)

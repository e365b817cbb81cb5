"""Recorded versions, the software that ranks compare, the digest of the code, and clock skew."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import mnist_dist
from mnist_dist.distributed.consistency import describe_clock_skew
from mnist_dist.utils.versions import RECORDED, code_digest, software, versions


def test_recorded_versions_are_those_of_this_process() -> None:
    found = versions()
    assert found.keys() == {f"versions.{name}" for name in ("mnist_dist", "python", *RECORDED)}
    assert torch.__version__.startswith(found["versions.torch"])
    assert found["versions.python"] == platform.python_version()


def test_software_has_the_torch_version_without_its_build() -> None:
    found = software()
    assert found.keys() == {"mnist_dist", "torch", "accelerate", "code"}
    assert found["mnist_dist"] == mnist_dist.__version__
    assert found["torch"] == torch.__version__.partition("+")[0]


def test_the_digest_depends_on_content_and_names_of_python_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    first = code_digest(tmp_path)
    (tmp_path / "a.pyc").write_text("compiled")
    assert code_digest(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2")
    second = code_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_digest(tmp_path)}) == 3
    assert code_digest() == code_digest(Path(mnist_dist.__file__).parent)


def test_clocks_more_than_5_s_apart_are_described() -> None:
    assert describe_clock_skew([100.0]) is None
    assert describe_clock_skew([100.0, 104.9, 101.0]) is None
    assert str(describe_clock_skew([100.0, 112.2, 90.0])).startswith("the clock of rank 1 is 22 s ahead of rank 2's: ")

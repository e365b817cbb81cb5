"""docs/tour.ipynb: runs from top to bottom in a kernel, on small data; and is kept without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from programs import free_port, write_digits

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
NEEDS = "not installed; pip install -e '.[notebook]'"


def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason=f"nbformat: {NEEDS}")
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient: {NEEDS}")
    pytest.importorskip("ipykernel", reason=f"ipykernel: {NEEDS}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    (tmp_path / "mnist_dist").mkdir()
    write_digits(tmp_path / "mnist_dist", train=2600, test=500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=os.pathsep)
    for cell in cells:
        cell.source = cell.source.replace("num_processes=2", f"num_processes=2, use_port='{free_port()}'")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    results = [output.data["text/plain"] for cell in cells for output in cell.outputs if "data" in output]
    assert any("epoch 1/1: train loss" in output.get("text", "") for cell in cells for output in cell.outputs)
    assert "right; worst: " in "".join(results)
    assert results[-1] == "True"
    assert (tmp_path / "runs" / "two" / "summary.json").exists()

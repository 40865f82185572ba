"""Every notebook runs from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all, which imports once; each notebook finds its namespace empty."""
    manager = KernelManager(kernel_name="python3")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    backend = "module://matplotlib_inline.backend_inline"
    manager.start_kernel(cwd=str(ROOT / "notebooks"), env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": backend})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, new_code_cell("get_ipython().reset(new_session=True)"))
    NotebookClient(notebook, timeout=120, km=kernel).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    # Figures of its own, and those that the library makes of a dataset.
    assert drawn == sum("fig, ax" in cell.source or ".plot(ds)[" in cell.source for cell in cells)
    assert cells[1].outputs == [] or cells[1].execution_count == 1  # the imports, in a namespace of their own


def test_there_is_a_notebook():
    assert NOTEBOOKS

"""The notebook runs from start to end on a run of the demo's layout, and is stored without what it printed."""

import base64
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "ratio_ablation.ipynb"


def executed(folder: Path, monkeypatch) -> nbformat.NotebookNode:
    """Returns the notebook after a run on `folder`, started where it lies, as an editor does."""
    monkeypatch.setenv("CADENCE_RUN", str(folder))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return notebook


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_plots_the_rows_and_closes_a_loop(debug_run, monkeypatch):
    outputs = [output for cell in executed(debug_run, monkeypatch).cells for output in cell.get("outputs", [])]
    pictures = [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert "7 rows; two_rate on the patrol: ratios [1, 8], latencies [0, 4], 3 episodes a cell" in said
    assert "two_rate on patrol, ratio 6, latency 3, control none" in said
    assert "planner    o0" in said


def test_without_a_run_it_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError, match=r"rows\.jsonl is missing: run `make demo`, or set CADENCE_RUN"):
        executed(tmp_path, monkeypatch)

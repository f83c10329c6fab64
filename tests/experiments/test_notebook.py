"""The notebooks run from start to end on a run of the demo's layout, and are stored without what they printed."""

import base64
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[2] / "experiments" / "notebooks"
STORED = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def executed(name: str, folder: Path, monkeypatch) -> nbformat.NotebookNode:
    """Returns a notebook after a run on `folder`, started where it lies, as an editor does."""
    monkeypatch.setenv("CADENCE_RUN", str(folder))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CADENCE_EPISODES", "4")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return notebook


def shown(notebook: nbformat.NotebookNode) -> tuple[list[bytes], str]:
    """Returns the pictures that a notebook drew, and what it printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
    return pictures, "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.parametrize("name", STORED)
def test_it_is_stored_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_plots_the_rows_and_closes_a_loop(debug_run, monkeypatch):
    pictures, said = shown(executed("ratio_ablation", debug_run, monkeypatch))
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert "7 rows; two_rate on the patrol: ratios [1, 8], latencies [0, 4], 3 episodes a cell" in said
    assert "two_rate on patrol, ratio 6, latency 3, control none" in said
    assert "planner    o0" in said


def test_it_says_what_is_in_a_plan(debug_run, monkeypatch):
    pictures, said = shown(executed("what_is_in_a_plan", debug_run, monkeypatch))
    assert len(pictures) == 3
    assert "numbers, 4 episodes, ratio 8, latency 0" in said
    assert all(
        line in said for line in ("the next pad's place: ", "the stage of the order: ", "each cart goes to the other's pad: ")
    )


@pytest.mark.parametrize(
    ("name", "missing"), [("ratio_ablation", r"rows\.jsonl is missing"), ("what_is_in_a_plan", "no training run")]
)
def test_without_a_run_it_says_what_to_do(name, missing, tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError, match=rf"{missing}: run `make demo`, or set CADENCE_RUN"):
        executed(name, tmp_path, monkeypatch)

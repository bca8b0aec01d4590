"""The notebook of the Laplace example, executed as Jupyter would."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples/pinn_laplace/pinn_laplace.ipynb"


@pytest.fixture
def notebook():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_it_is_kept_with_the_outputs_of_one_run(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) == 3
    # Neither progress bars nor warnings, which differ from machine to machine.
    assert {o.get("name", "stdout") for o in outputs} == {"stdout"}
    assert "relative L2 error" in outputs[-2].text


def test_it_runs_learns_and_draws(notebook):
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assert "epochs = 2000" in parameters.source
    parameters.source = parameters.source.replace("2000", "300")
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(PATH.parent)}}
    ).execute()

    outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 3
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert float(printed.rpartition("relative L2 error: ")[2]) < 0.1  # untrained: about 1
    shown = [o.data["text/plain"] for o in outputs if o.output_type == "execute_result"]
    weights = eval(next(text for text in shown if "'boundary'" in text and "{" in text))
    assert list(weights) == ["pde", "boundary", "data"] and weights["boundary"] > 1
    assert shown[-1].startswith("[")  # the findings

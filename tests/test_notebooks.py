"""The notebooks: kept with their outputs, and executed."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 700_000  # bytes of a notebook with its pictures


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_kept_with_its_outputs_and_no_more(file):
    text = file.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(output["output_type"] == "error" for output in outputs)
    assert len(text) < LARGEST and not re.search(r"/(tmp|home|work|root|Users)/", text)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (file.parent / link).exists(), link


def execute(file, folder, monkeypatch, **parameters):
    """Runs a notebook in `folder`, with values for names of its cell that is tagged so."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(file, 4)
    (cell,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    for name, value in parameters.items():
        assert re.search(rf"^{name} = ", cell.source, re.M)
        cell.source += f"\n{name} = {value!r}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=1200, kernel_name="python3", resources=where).execute()
    return book


def test_a_run_is_looked_at_in_a_notebook(pixel_run, tmp_path, monkeypatch):
    file = ROOT / "notebooks" / "your_run.ipynb"
    execute(file, tmp_path, monkeypatch, RUN=str(pixel_run), N=3, STEPS=2)


@pytest.mark.slow
def test_the_quickstart_trains_in_a_notebook(tmp_path, monkeypatch):
    file = ROOT / "notebooks" / "quickstart.ipynb"
    execute(file, tmp_path, monkeypatch, STEPS={"first_stage": 60, "ldm": 110}, DRAWN=16)
    assert (tmp_path / "runs" / "notebook" / "samples" / "evaluation").is_dir()

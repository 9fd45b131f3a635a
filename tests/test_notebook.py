"""The Colab notebook runs from top to bottom, and stores no output."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

PATH = pathlib.Path(__file__).parents[1] / "colab/quickstart.ipynb"
SMALL = {
    "steps": 2,
    "dump_every": 1,
    "rollout.prompts": 4,
    "eval.every": 1,
    "eval.problems": 8,
    "eval.batch": 8,
}


def test_no_stored_output():
    cells = nbformat.read(PATH, as_version=4).cells
    assert all(not c.get("outputs") for c in cells)
    assert all(c.get("execution_count") is None for c in cells)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # The kernel has one device, as a laptop has.
    book = nbformat.read(PATH, as_version=4)
    # The package is installed already; the test's run is small and in its own folder.
    book.cells = [c for c in book.cells if "install" not in c.metadata.get("tags", ())]
    (settings,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    words = [f"--config.{name}={value}" for name, value in SMALL.items()]
    settings.source += f"\nRUN = pathlib.Path({str(tmp_path / 'run')!r})\nOVERRIDES = {words!r}"
    client = NotebookClient(book, timeout=300, resources={"metadata": {"path": PATH.parent}})
    client.execute()
    text = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", ())
    )
    assert "gain (paired)" in text
    assert "its teacher read: d" in text
    images = [o for c in book.cells for o in c.get("outputs", ()) if "data" in o]
    assert any("image/png" in o["data"] for o in images)

"""The Colab notebook runs from top to bottom, and stores no output."""

import pathlib

import nbformat
import pytest
import small_notebook

PATH = pathlib.Path(__file__).parents[1] / "colab/quickstart.ipynb"


def test_no_stored_output():
    cells = nbformat.read(PATH, as_version=4).cells
    assert all(not c.get("outputs") for c in cells)
    assert all(c.get("execution_count") is None for c in cells)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # The kernel has one device, as a laptop has.
    small_notebook.check(PATH, tmp_path)

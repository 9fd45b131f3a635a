"""Runs the Colab notebook with small parameters and checks what it shows.

As a script it runs the notebook with the packages of its own Python:

    python small_notebook.py NOTEBOOK FOLDER
"""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

SMALL = {
    "steps": 2,
    "dump_every": 1,
    "rollout.prompts": 4,
    "eval.every": 1,
    "eval.problems": 8,
    "eval.batch": 8,
}


def check(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Runs the notebook at `path` in `folder`, which gets the run's files."""
    book = nbformat.read(path, as_version=4)
    # The package is installed already; the test's run is small.
    book.cells = [c for c in book.cells if "install" not in c.metadata.get("tags", ())]
    (settings,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", ())]
    words = [f"--config.{name}={value}" for name, value in SMALL.items()]
    settings.source += f"\nOVERRIDES = {words!r}"
    NotebookClient(book, timeout=300, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "gain (paired)" in text
    assert "its teacher read: d" in text
    assert any("image/png" in output.get("data", ()) for output in outputs)


if __name__ == "__main__":
    check(*map(pathlib.Path, sys.argv[1:]))

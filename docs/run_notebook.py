"""Execute docs/notebook.ipynb and write it with its outputs.

python docs/run_notebook.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def executed(folder: Path, epochs: int | None = None) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `folder`, which has data/sample. epochs: in place of its own."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if epochs is not None and cell.source.startswith("EPOCHS = "):
            cell.source = f"EPOCHS = {epochs}"
        cell.get("outputs", []).clear()
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=place, record_timing=False, coalesce_streams=True
    ).execute()
    return notebook


def main() -> None:
    """Run it on the sample, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data").symlink_to(ROOT / "data")
        notebook = executed(folder)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()

"""docs/notebook.ipynb and docs/library.md do what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, SAMPLE

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def few_of_the_sample(target: Path) -> Path:
    """target/{train,test}: some pictures of three classes of the sample."""
    for name, count in (("train", 6), ("test", 3)):
        for label in ("cat", "dog", "ship"):
            (target / name / label).mkdir(parents=True)
            for picture in sorted((SAMPLE / name / label).glob("*.png"))[:count]:
                shutil.copy(picture, target / name / label)
    return target


def shown(notebook) -> list[dict]:
    """The data of each output that is displayed, by its type."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if output["output_type"] == "execute_result"]


def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="nbclient is not installed: the notebook is not run")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: the notebook is not run")
    few_of_the_sample(tmp_path / "data" / "sample")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'deploy'}")
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "docs" / "run_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = [data.get("text/html", "") for data in shown(module.executed(tmp_path, epochs=1))]
    assert [page.count("<img") for page in pages if page] == [1, 0, 1]
    assert (tmp_path / "models" / "cnn.onnx").is_file()


def test_the_notebook_is_kept_with_small_outputs_and_without_a_machines_paths():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 250_000
    assert not re.search(r"/(work|tmp|home|root|Users)/", text)
    notebook = json.loads(text)
    assert len([data for data in shown(notebook) if "text/html" in data]) == 3
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_the_lines_of_the_page_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((few_of_the_sample(tmp_path / "data") / "test" / "cat").iterdir()), "cat.jpg")
    names: dict = {}
    for block in blocks:
        quick = block.replace("epochs=20", "epochs=1, device='cpu'")
        exec(compile(quick, str(ROOT / "docs" / "library.md"), "exec"), names)
    printed = capsys.readouterr().out
    assert "VerifyResult(ok: 1 of 1 runtime answers" in printed
    assert re.search(r"print\(error\)\n# (.*)", PAGE).group(1) in printed
